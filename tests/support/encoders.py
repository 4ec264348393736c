"""Encoders that several jobs of a process share, with what was compiled for them."""

from collections.abc import Iterator
import contextlib
import pathlib

import pytest

from pomp_jax import hosts
from pomp_jax.evaluate import opening


@contextlib.contextmanager
def encoders_opened_once() -> Iterator[None]:
  """Gives each job the encoder that an earlier one opened with the same fields and
  weights."""
  opened, encoders = opening.open_encoder, {}

  def open_once(clip, class_size=1, feature_store="", devices=None):
    model = pathlib.Path(clip.model)
    files = model.rglob("*") if model.is_dir() else [model] if model.is_file() else []
    weights = sorted(
      (str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files
    )
    key = repr((clip, class_size, feature_store, hosts.devices(), devices, weights))
    if key not in encoders:
      encoders[key] = opened(clip, class_size, feature_store, devices)
    return encoders[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(opening, "open_encoder", open_once)
    yield
