"""Runs on meshes: what other numbers of devices change; `test_main` has those that
are refused."""

import shutil

import jax
import numpy as np
import pytest

from pomp_jax.evaluate import opening
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import loop, setup
from tests.support.small_run import small_config, trained

pytestmark = pytest.mark.mesh


@pytest.fixture(scope="module")
def on_eight(one_layer, tmp_path_factory):
  """The config of a training on eight devices, its folder, and its context."""
  config = small_config(steps=6, **{"clip.model": one_layer, "checkpoint.every": 2})
  folder = tmp_path_factory.mktemp("eight")
  return config, folder, trained(config, folder)


@pytest.mark.parametrize("accumulate, differ", [(1, True), (2, False)])
def test_half_the_devices_have_to_draw_twice(
  on_eight, tmp_path, caplog, accumulate, differ
):
  config, folder, expected = on_eight
  config = config.replace({"accumulate": accumulate})
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  for step in (4, 6):
    shutil.rmtree(tmp_path / "checkpoints" / str(step))
  half = opening.open_encoder(config.clip, devices=jax.devices()[:4])
  run = setup.prepare(config, RunFolder(tmp_path), encoder=half)
  with caplog.at_level("INFO", "pomp_jax"):
    done = loop.train(run)
  found = np.asarray(done.state.params["context"])
  assert ("DRAWS DIFFER" in caplog.text) == differ
  assert np.allclose(found, expected, rtol=0, atol=1e-6) != differ
  if differ:
    assert (
      "4 groups of a batch" in caplog.text
      and "config.accumulate=2 keeps them" in caplog.text
    )
