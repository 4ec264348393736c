"""Features of training images, computed once: training from them is training from
the images."""

import itertools
import shutil

import numpy as np
import pytest

from pomp_jax.config import ConfigError, validate
from pomp_jax.data.skipped_images import CorruptDataError
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.files import features as store
from pomp_jax.files.features import Features, FeatureStoreError
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import batches, pretrain, setup, training
from pomp_jax.train.fill_features import fill_features
from tests.support.checks import spy
from tests.support.data_files import NAMES
from tests.support.small_run import run_job, small_config, training_features

N_IMAGES = 4 * len(NAMES)
PLAIN = {"data.augment": "none", "data.views": 1, "data.view_epochs": 0}
STORED = {"data.features": "stored"}


@pytest.fixture(scope="module")
def config_of(cut_pictures, one_layer):
  """A function: changes -> config of 24 steps of 8 views: 4 epochs of two different
  views each."""

  def config(**changes):
    data = {
      "data.source": "folder",
      "data.root": str(cut_pictures),
      "data.n_classes": 0,
    }
    data |= {"data.augment": "recipe", "data.views": 2, "data.view_epochs": 2}
    settings = {"clip.model": one_layer, "k": 4, "batch_size": 8, "steps": 24}
    settings |= {"data.max_corrupt": 0.05, "checkpoint.every": 8}
    return small_config(**data | settings | changes)

  return config


@pytest.fixture(scope="module")
def shown():
  """Numbers of training images that the image tower gets, a call each."""
  calls, compute = [], Encoder.image_features

  def counted(self, images, *, unit=True):
    # Images of an evaluation have unit features.
    if not unit:
      calls.append(len(images))
    return compute(self, images, unit=unit)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Encoder, "image_features", counted)
    yield calls


@pytest.fixture(scope="module")
def runs(config_of, shown, tmp_path_factory):
  """Folder, images a call before the steps, and the steps' image tower, by
  `data.features`."""
  found = {}
  for features in ("online", "stored"):
    folder = tmp_path_factory.mktemp(features)
    shown.clear()
    with pytest.MonkeyPatch.context() as patch:
      seen = spy(patch, [(training, "make_train_step")])
      results = run_job(config_of(**{"data.features": features}), folder)
    assert results["unreadable_images"] == 1
    found[features] = (
      RunFolder(folder),
      list(shown),
      seen["make_train_step.parts"].learner.image_tower,
    )
  return found


def test_training_from_features_is_training_from_the_images(runs):
  folder, calls, tower = runs["stored"]
  stored = training_features(folder.features, (N_IMAGES, 4))
  assert np.isnan(stored[10]).all() and not np.isnan(np.delete(stored, 10, 0)).any()
  # Every version is another view.
  assert len(np.unique(stored.reshape(4 * N_IMAGES, -1), axis=0)) >= 4 * (N_IMAGES - 1)
  # Each view once; no step has a tower of its own.
  assert sum(calls) == 4 * N_IMAGES and tower is None
  online, calls, tower = runs["online"]
  assert not calls and tower is not None
  found, expected = (
    load_prompt(folder.prompt).context,
    load_prompt(online.prompt).context,
  )
  np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
  assert np.abs(found).max() > 1e-2
  found, expected = (one.scalars()["loss"][1] for one in (folder, online))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_restart_computes_what_is_missing(
  runs, config_of, shown, tmp_path, monkeypatch
):
  monkeypatch.setattr(store, "_BLOCK", 5)
  config = config_of(**STORED)
  shown.clear()
  write, send = Features.write, batches.on_devices

  def interrupted(self, block, features):
    if block == 2 and features.shape[1] > 1:
      raise KeyboardInterrupt
    write(self, block, features)

  monkeypatch.setattr(Features, "write", interrupted)
  with pytest.raises(KeyboardInterrupt):
    run_job(config, tmp_path)
  # Two views of five images, in two epochs, of each of three blocks.
  assert shown == 6 * [10]
  monkeypatch.setattr(Features, "write", write)
  # After the checkpoint of step 8.
  monkeypatch.setattr(
    batches, "on_devices", lambda *given: itertools.islice(send(*given), 11)
  )
  with pytest.raises(StopIteration):
    run_job(config, tmp_path)
  # The block whose file was not written, and the two after it.
  assert shown[6:] == [10, 10, 10, 10, 8, 8]
  monkeypatch.setattr(batches, "on_devices", send)
  [damaged] = (tmp_path / "features" / "training").glob("*/c.1.0.0")
  damaged.write_bytes(damaged.read_bytes()[:-1])
  # Noticed when the block is read: the next start computes it again.
  with pytest.raises(
    FeatureStoreError, match=r"c\.1\.0\.0.*; a restart computes again"
  ):
    run_job(config, tmp_path)
  run_job(config, tmp_path)
  assert shown[12:] == [10, 10]
  found, expected = (
    load_prompt(tmp_path / "prompt.npz"),
    load_prompt(runs["stored"][0].prompt),
  )
  np.testing.assert_allclose(found.context, expected.context, rtol=0, atol=1e-6)


def test_runs_share_what_they_have_in_common(runs, config_of, shown, tmp_path):
  """Views, types and images that differ have features of their own in the same
  folder."""
  folder = shutil.copytree(runs["stored"][0].features, tmp_path / "features")
  for changes, n_images in (
    ({"seed": 3}, 0),
    ({"data.augment": "crop_flip"}, 4 * N_IMAGES),
    ({"data.view_epochs": 3}, 6 * N_IMAGES),
    ({"clip.dtype": "bfloat16"}, 4 * N_IMAGES),
    ({"data.shots": 2}, 4 * 2 * len(NAMES)),
    # Another draw of as many shots: the same number of images, and the same labels.
    ({"data.shots": 2, "data.shots_seed": 4}, 4 * 2 * len(NAMES)),
  ):
    shown.clear()
    config = config_of(**STORED | {"data.feature_store": str(folder)} | changes)
    run = setup.prepare(config, RunFolder(tmp_path / "run"))
    fill_features(run.data, run.clip, run.folder, run.source, run.encoder)
    assert sum(shown) == n_images, changes


def test_each_field_of_the_augmentation_has_its_own_features(config_of, tmp_path):
  """Alone; without augmentation there is no draw that its seed and its crops could
  change."""
  config = config_of(**STORED)
  encoder = opening.open_encoder(config.clip)
  source = encoder.sized(opening.open_source(config.data, "train"))

  def place_of(**changes):
    data = config_of(**STORED | changes).data
    return batches.open_features(data, source, encoder, RunFolder(tmp_path)).folder

  own = [{"data.augment": "crop_flip"}, {"data.views": 4}, {"data.view_epochs": 3}]
  own += [
    {"data.augment_seed": 1},
    {"data.crop_area": 0.5},
    {"data.views": 1},
    PLAIN,
    {},
  ]
  places = [place_of(**changes) for changes in own]
  assert len({*places}) == len(own)
  drawn = PLAIN | {"data.augment_seed": 1, "data.crop_area": 0.5}
  assert place_of(**drawn) == place_of(**PLAIN)


def test_cells_of_an_ablation_share_them(config_of, shown, tmp_path):
  shown.clear()
  config = config_of(
    job="ablate", **PLAIN | STORED | {"steps": 2, "ablate.grid": "k=3|4;seed=0|1"}
  )
  cells = run_job(config, tmp_path)["cells"]
  assert [cell["error"] for cell in cells] == 4 * [None] and sum(shown) == N_IMAGES


def test_too_many_damaged_images_stop_a_run(runs, config_of, tmp_path):
  few = STORED | {"data.max_corrupt": 0.0}
  # Those that an earlier start met count as well.
  shutil.copytree(runs["stored"][0].features, tmp_path / "features")
  for changes in ({}, {"data.feature_store": str(tmp_path / "features")}):
    with pytest.raises(
      CorruptDataError, match=r"1 of 24 images can't be read, 0 .*daisy/2.jpg"
    ):
      pretrain.run(config_of(**few | changes), str(tmp_path / "run"))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"data.view_epochs": 0},
      "data.features: got 'stored', expected 'online' where data.augment=",
    ),
    (
      {"data.augment": "none"},
      "data.views: got 2, expected 1 where data.augment='none'",
    ),
    ({"data.views": 3}, "batch_size: got 8, expected a multiple of data.views = 3"),
    (
      {"method": "vpt_shallow"},
      "data.features: got 'stored', expected 'online' where method=",
    ),
    (
      PLAIN | {"job": "train_masks"},
      "data.features: got 'stored', expected 'online' where job=",
    ),
  ],
)
def test_settings_that_cannot_be(config_of, changes, message):
  with pytest.raises(ConfigError, match=message):
    validate(config_of(**STORED | changes))
