"""Runs on meshes: what other numbers of devices change, and which are refused."""

import logging
import shutil

import jax
import numpy as np
import pytest

from pomp_jax.config import ConfigError
from pomp_jax.evaluate import inputs
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.train import loop, pretrain, setup
from tests.support.small_run import small_config, trained

pytestmark = pytest.mark.mesh


@pytest.fixture(scope="module")
def on_eight(one_layer, tmp_path_factory):
  """The folder of a training on eight devices, and its context."""
  folder = tmp_path_factory.mktemp("eight")
  return folder, trained(_config(one_layer), folder)


def _config(one_layer, **changes):
  return small_config(steps=6, **{"clip.model": one_layer, "checkpoint.every": 2} | changes)


@pytest.mark.parametrize("accumulate, differ", [(1, True), (2, False)])
def test_half_the_devices_draw_otherwise_unless_each_draws_twice(
  on_eight, one_layer, tmp_path, caplog, accumulate, differ
):
  """Eight devices, then four; what then differs is said."""
  folder, expected = on_eight
  config = _config(one_layer, accumulate=accumulate)
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  for step in (4, 6):
    shutil.rmtree(tmp_path / "checkpoints" / str(step))
  half = inputs.open_encoder(config, make_mesh(devices=jax.devices()[:4]))
  job = setup.prepare(config, RunFolder(tmp_path), encoder=half)
  with caplog.at_level("INFO"):
    logging.getLogger("pomp_jax").propagate = True
    done = loop.train(job)
  found = np.asarray(done.state.params["context"])
  assert ("DRAWS DIFFER" in caplog.text) == differ
  assert np.allclose(found, expected, rtol=0, atol=1e-6) != differ
  if differ:
    assert "4 groups of a batch" in caplog.text and "config.accumulate=2 keeps them" in caplog.text


def test_devices_that_do_not_divide_the_batch_are_refused(tmp_path):
  message = (
    r"config\.batch_size: got 16, expected a multiple of 24 \(data axis 8 x accumulate 3\), or"
  )
  with pytest.raises(ConfigError, match=message):
    pretrain.check(small_config(accumulate=3), str(tmp_path))
