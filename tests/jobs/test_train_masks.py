"""The job train_masks: restarts bit for bit, base classes only, what is left in the folder."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pomp_jax.errors import InputError
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.jobs import train_masks
from pomp_jax.masks.model import VARIANTS
from pomp_jax.masks.weights import read_mask_former
from pomp_jax.prompt.mesh import DATA
from pomp_jax.train import loop
from pomp_jax.train.watch import TrainingError
from tests.support.mask_params import TINY
from tests.support.mask_sets import train_masks_config
from tests.support.region_jobs import TRAINED, run_job


def train(config, workdir):
  """Runs with a tiny network for the small one."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(VARIANTS, "small", TINY)
    return run_job(config, workdir)


@pytest.fixture(scope="session")
def whole(region_set, shared):
  """The folder of a run that nothing has stopped."""
  return shared("train_masks", lambda folder: train(train_masks_config(region_set), folder))


def test_a_killed_run_resumes_bit_for_bit(region_set, whole, tmp_path, monkeypatch):
  """Killed in the third of four steps, after the checkpoint of the second."""
  real, taken = loop.Watch.step, []

  def step(watch, number, metrics):
    taken.append(number)
    if taken == [1, 2, 3]:
      raise KeyboardInterrupt
    real(watch, number, metrics)

  monkeypatch.setattr(loop.Watch, "step", step)
  with pytest.raises(KeyboardInterrupt):
    train(train_masks_config(region_set), tmp_path)
  assert not (tmp_path / "masks.pth").exists()
  results = train(train_masks_config(region_set), tmp_path)
  assert taken == [1, 2, 3, 3, 4]
  assert (tmp_path / "masks.pth").read_bytes() == (whole / "masks.pth").read_bytes()
  assert results["last"] == RunFolder(whole).read_results()["last"]
  # A finished run is not trained again.
  assert train(train_masks_config(region_set), tmp_path) == results
  assert taken == [1, 2, 3, 3, 4]


def test_a_restart_with_other_classes_under_the_same_path_is_refused(
  region_set, whole, monkeypatch
):
  config, opened = train_masks_config(region_set), train_masks.open_mask_set
  train_masks.check(config, str(whole))

  def open_renamed(*given):
    source = opened(*given)
    source.names = source.names[::-1]
    return source

  monkeypatch.setattr(train_masks, "open_mask_set", open_renamed)
  with pytest.raises(InputError, match=r"train_masks\.prompt.* classes with which"):
    train_masks.check(config, str(whole))


def test_a_stored_prompt_is_one_that_the_file_can_say():
  """A checkpoint of ZSSeg has one context, which stands before the names."""
  context = np.ones((2, 32), np.float32)
  assert train_masks._stored_context(Prompt(context, "clip", "end")) is context
  assert train_masks._stored_context(Prompt(context, "clip", "front")) is None
  assert train_masks._stored_context(Prompt(context[None], "clip", "end")) is None
  assert train_masks._stored_context("a photo of a {}.") is None


def test_what_a_run_leaves(whole):
  results, network = RunFolder(whole).read_results(), read_mask_former(whole / "masks.pth")
  assert network.trained_classes == TRAINED
  assert network.config.embedding == 24
  assert results["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(network.params))
  assert results["steps"] == 4 and results["images"] == 5 and results["classes"] == 2
  assert np.isfinite(list(results["last"].values())).all()
  assert (whole / "plots" / "training.png").exists()


def test_a_network_to_start_from(region_set, whole, tmp_path):
  """With a rate of 0 it stays as it is."""
  start = str(whole / "masks.pth")
  changes = {"train_masks.init": start, "train_masks.lr": 0.0, "steps": 1}
  train(train_masks_config(region_set, **changes), tmp_path)
  assert (tmp_path / "masks.pth").read_bytes() == (whole / "masks.pth").read_bytes()


def test_a_bad_loss_ends_the_run(region_set, tmp_path):
  changes = {"train_masks.lr": 1e30, "train_masks.clip_norm": 0.0}
  with pytest.raises(TrainingError, match="at step 2"):
    train(train_masks_config(region_set, **changes), tmp_path)


def test_devices_share_a_batch(region_set, tmp_path, monkeypatch):
  monkeypatch.setattr(train_masks, "make_mesh", lambda: SimpleNamespace(shape={DATA: 3}))
  with pytest.raises(InputError, match=r"batch_size: got 8, expected a multiple of the 3 devices"):
    train_masks.check(train_masks_config(region_set), str(tmp_path / "run"))


@pytest.mark.parametrize(
  "field,value",
  [
    ("train_masks.targets", TINY.n_queries + 1),
    ("train_masks.prompt", "NOTHING"),
    ("train_masks.names", ""),
  ],
)
def test_what_can_not_work_is_one_line_and_writes_nothing(region_set, tmp_path, field, value):
  workdir = tmp_path / "run"
  with pytest.raises(InputError, match=field) as error:
    train(train_masks_config(region_set, **{field: value}), workdir)
  assert "\n" not in str(error.value)
  assert not workdir.exists()
