"""The job train_masks: restarts bit for bit, base classes only, what is left in the folder."""

import jax
import numpy as np
import pytest

from pomp_jax import inputs
from pomp_jax.errors import InputError
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.jobs import train_masks
from pomp_jax.masks.weights import read_mask_former
from pomp_jax.train import loop
from pomp_jax.train.watch import TrainingError
from tests.support.clips import write_random_clip
from tests.support.mask_sets import train_masks_config, write_objects
from tests.support.pixel_sets import write_pixel_set


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Folder of a random CLIP, images, labels, names and annotated objects."""
  root = tmp_path_factory.mktemp("train_masks")
  write_random_clip(root / "clip")
  write_pixel_set(root, str(root / "clip"))
  write_objects(root)
  return root


@pytest.fixture(scope="module", autouse=True)
def one_encoder_for_all():
  """CLIPs are opened and compiled once."""
  with pytest.MonkeyPatch.context() as patch:
    opened, encoders = inputs.open_encoder, {}

    def open_once(config):
      if config.clip not in encoders:
        encoders[config.clip] = opened(config)
      return encoders[config.clip]

    patch.setattr(inputs, "open_encoder", open_once)
    yield


def run(config, workdir):
  train_masks.check(config, str(workdir))
  return train_masks.run(config, str(workdir))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
  """A run that nothing stops: folder and results."""
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, run(train_masks_config(data), workdir)


def test_a_killed_run_resumes_bit_for_bit(data, whole, tmp_path, monkeypatch):
  """Killed in the third of four steps, after the checkpoint of the second."""
  real, taken = loop.Watch.step, []

  def step(watch, number, metrics):
    taken.append(number)
    if taken == [1, 2, 3]:
      raise KeyboardInterrupt
    real(watch, number, metrics)

  monkeypatch.setattr(loop.Watch, "step", step)
  with pytest.raises(KeyboardInterrupt):
    run(train_masks_config(data), tmp_path)
  assert not (tmp_path / "masks.pth").exists()
  results = run(train_masks_config(data), tmp_path)
  assert taken == [1, 2, 3, 3, 4]
  assert (tmp_path / "masks.pth").read_bytes() == (whole[0] / "masks.pth").read_bytes()
  assert results["last"] == whole[1]["last"]
  # A finished run is not trained again.
  assert run(train_masks_config(data), tmp_path) == results
  assert taken == [1, 2, 3, 3, 4]


def test_a_restart_with_other_classes_under_the_same_path_is_refused(data, whole, monkeypatch):
  config, opened = train_masks_config(data), train_masks.open_mask_set
  train_masks.check(config, str(whole[0]))

  def open_renamed(*given):
    source = opened(*given)
    source.names = source.names[::-1]
    return source

  monkeypatch.setattr(train_masks, "open_mask_set", open_renamed)
  with pytest.raises(InputError, match=r"train_masks\.prompt.* classes with which"):
    train_masks.check(config, str(whole[0]))


def test_a_stored_prompt_is_one_that_the_file_can_say():
  """A checkpoint of ZSSeg has one context, which stands before the names."""
  context = np.ones((2, 32), np.float32)
  assert train_masks._stored_context(Prompt(context, "clip", "end")) is context
  assert train_masks._stored_context(Prompt(context, "clip", "front")) is None
  assert train_masks._stored_context(Prompt(context[None], "clip", "end")) is None
  assert train_masks._stored_context("a photo of a {}.") is None


def test_what_a_run_leaves(whole):
  workdir, results = whole
  network = read_mask_former(workdir / "masks.pth")
  assert network.trained_classes == ("the cat", "sky")
  assert network.config.embedding == 24
  assert results["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(network.params))
  assert results["steps"] == 4 and results["images"] == 5 and results["classes"] == 2
  assert np.isfinite(list(results["last"].values())).all()
  assert (workdir / "plots" / "training.png").exists()


def test_a_network_to_start_from(data, whole, tmp_path):
  """With a rate of 0 it stays as it is."""
  start = str(whole[0] / "masks.pth")
  changes = {"train_masks.init": start, "train_masks.lr": 0.0, "steps": 1}
  run(train_masks_config(data, **changes), tmp_path)
  assert (tmp_path / "masks.pth").read_bytes() == (whole[0] / "masks.pth").read_bytes()


def test_a_bad_loss_ends_the_run(data, tmp_path):
  config = train_masks_config(data, **{"train_masks.lr": 1e30, "train_masks.clip_norm": 0.0})
  with pytest.raises(TrainingError, match="at step 2"):
    run(config, tmp_path)


@pytest.mark.parametrize(
  "changes,field",
  [
    ({"batch_size": 12}, "batch_size"),
    ({"train_masks.targets": 13}, "train_masks.targets"),
    ({"train_masks.prompt": "NOTHING"}, "train_masks.prompt"),
    ({"train_masks.names": ""}, "train_masks.names"),
  ],
)
def test_what_can_not_work_is_one_line_and_writes_nothing(data, tmp_path, changes, field):
  workdir = tmp_path / "run"
  with pytest.raises(InputError, match=field) as error:
    run(train_masks_config(data, **changes), workdir)
  assert "\n" not in str(error.value)
  assert not workdir.exists()
