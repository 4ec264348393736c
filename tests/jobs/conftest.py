"""What tests of the jobs share: CLIPs opened and compiled once. Finished runs: `shared`."""

from collections.abc import Iterator
import pathlib

import jax
import pytest

from pomp_jax.evaluate import inputs
from tests.support.clips import write_fewer_layers
from tests.support.region_jobs import write_region_set
from tests.support.shared_runs import Shared


@pytest.fixture(scope="session", autouse=True)
def encoders_opened_once() -> Iterator[None]:
  """Gives each job the encoder that an earlier one opened with the same fields and weights."""
  opened, encoders = inputs.open_encoder, {}

  def open_once(clip, class_size=1, feature_store="", devices=None):
    model = pathlib.Path(clip.model)
    files = model.rglob("*") if model.is_dir() else [model] if model.is_file() else []
    weights = sorted((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    key = repr((clip, class_size, feature_store, jax.device_count(), devices, weights))
    if key not in encoders:
      encoders[key] = opened(clip, class_size, feature_store, devices)
    return encoders[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(inputs, "open_encoder", open_once)
    yield


@pytest.fixture(scope="session")
def region_set(shared: Shared) -> pathlib.Path:
  """The folder of `region_jobs.write_region_set`."""
  return shared("region_set", write_region_set)


@pytest.fixture(scope="session")
def one_layer(shared: Shared) -> str:
  """Path of the world's CLIP with one layer, the cheapest to train with."""
  return str(shared("one_layer", lambda folder: write_fewer_layers(folder / "clip", 1)) / "clip")
