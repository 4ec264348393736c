"""`data.features="once"`: the tower sees each training image once, and the training is the same."""

import functools
import itertools
import tracemalloc
import types

import jax
import numpy as np
import pytest

from pomp_jax import inputs
from pomp_jax.ablation.grid import make_cells
from pomp_jax.config import ConfigError, validate
from pomp_jax.data.views import Augmentation, CachedViews
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import FeatureBlocks
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.jobs import baselines, pretrain
from pomp_jax.train import batches, feature_cache, methods, setup
from tests.support.damaged_folder import NAMES, write_damaged_folder
from tests.support.small_run import small_config

N_IMAGES = 4 * len(NAMES)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """A folder a class, four JPEGs each; one of them is cut off."""
  root = tmp_path_factory.mktemp("images")
  write_damaged_folder(root, {"train": 4, "val": 1, "test": 1})
  return root


def config_of(images, features="once", **changes):
  """12 steps of 8 images: four epochs."""
  settings = {
    "data.source": "folder",
    "data.root": str(images),
    "data.n_classes": 0,
    "data.max_corrupt": 0.05,
    "data.features": features,
    "k": 4,
    "batch_size": 8,
  }
  return small_config(**settings | changes)


def run(config, workdir):
  """The job, with the checks before it."""
  validate(config)
  pretrain.check(config, str(workdir))
  return pretrain.run(config, str(workdir))


@pytest.fixture(scope="module", autouse=True)
def quick_programs():
  """Programs run for twelve steps here, so that compiling well costs more than it saves."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def shown():
  """Numbers of training images that the image tower gets, a call each; blocks of five images."""
  calls, compute = [], Encoder.image_features

  def counted(self, images, *, unit=True):
    # Images of an evaluation have unit features.
    if not unit:
      calls.append(len(images))
    return compute(self, images, unit=unit)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Encoder, "image_features", counted)
    patch.setattr(batches, "FeatureBlocks", functools.partial(FeatureBlocks, block_size=5))
    yield calls


@pytest.fixture(scope="module")
def runs(images, shown, tmp_path_factory):
  """Folder, images a call before the steps, and the steps' image tower, by `data.features`."""
  found, make_train_step = {}, setup.make_train_step
  for features in ("once", "online"):
    folder, towers = tmp_path_factory.mktemp(features), []

    def noted(towers=towers, **settings):
      towers.append(settings["image_tower"])
      return make_train_step(**settings)

    shown.clear()
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(setup, "make_train_step", noted)
      assert run(config_of(images, features), folder)["unreadable_images"] == 1
    found[features] = RunFolder(folder), list(shown), towers
  return found


def test_each_image_passes_the_tower_once_and_the_prompt_is_the_same(runs):
  once, calls, towers = runs["once"]
  # Once, and never more than a block; no step has a tower of its own.
  assert calls == [5, 5, 5, 5, 4] and towers == [None]
  online, calls, towers = runs["online"]
  assert not calls and towers[0] is not None
  found, expected = load_prompt(once.prompt).context, load_prompt(online.prompt).context
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
  assert np.abs(found).max() > 1e-2
  found, expected = (folder.scalars()["loss"][1] for folder in (once, online))
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_restart_computes_what_is_missing(images, runs, shown, tmp_path, monkeypatch):
  shown.clear()
  write, send = FeatureBlocks.write, batches.on_devices

  def interrupted(self, block, features):
    if block == 2:
      raise KeyboardInterrupt
    write(self, block, features)

  monkeypatch.setattr(FeatureBlocks, "write", interrupted)
  with pytest.raises(KeyboardInterrupt):
    run(config_of(images), tmp_path)
  assert shown == [5, 5, 5]
  monkeypatch.setattr(FeatureBlocks, "write", write)
  # After the checkpoint of step 4.
  monkeypatch.setattr(batches, "on_devices", lambda *given: itertools.islice(send(*given), 7))
  with pytest.raises(StopIteration):
    run(config_of(images), tmp_path)
  # The block whose file was not written, and the two after it.
  assert shown[3:] == [5, 5, 4]
  monkeypatch.setattr(batches, "on_devices", send)
  damaged = RunFolder(tmp_path).training_features / "block-00001.npy"
  damaged.write_bytes(damaged.read_bytes()[:-1])
  run(config_of(images), tmp_path)
  assert shown[6:] == [5]
  found, expected = load_prompt(tmp_path / "prompt.npz"), load_prompt(runs["once"][0].prompt)
  np.testing.assert_array_equal(found.context, expected.context)


def test_a_classifier_on_features_holds_them(images, shown, tmp_path):
  keys = {}
  encoder = inputs.open_encoder(config_of(images))
  for features in ("once", "online"):
    shown.clear()
    config = config_of(images, features, method="tip_adapter")
    validate(config)
    keys[features] = methods.fit(config, encoder, RunFolder(tmp_path)).classifier.keys
    assert sum(shown) == N_IMAGES
  np.testing.assert_array_equal(keys["once"], keys["online"])
  assert not RunFolder(tmp_path).training_features.exists()


def test_memory_holds_a_block_of_the_features(tmp_path, monkeypatch):
  """Of 41 MB of features; read as a training does."""
  n_images, width, size = 20_000, 512, 4

  class Images:
    names, labels = ("a", "b"), np.zeros(n_images, np.int32)

    def __len__(self):
      return n_images

    def images(self, indices):
      return np.zeros((len(indices), size, size, 3), np.uint8)

  def image_features(self, pixels, *, unit):
    return np.full((len(pixels), width), 0.5, np.float32)

  monkeypatch.setattr(Encoder, "image_features", image_features)
  encoder = object.__new__(Encoder)
  encoder.clip = types.SimpleNamespace(image_size=size)
  blocks = FeatureBlocks(
    tmp_path / "features", n_images=n_images, n_versions=1, width=width, made_from={}
  )
  rng = np.random.default_rng(0)
  tracemalloc.start()
  try:
    filled = feature_cache.fill(config_of(tmp_path).data, blocks, Images(), encoder)
    fetch = CachedViews(blocks, Augmentation())
    for _ in range(50):
      found, _ = fetch(rng.integers(0, n_images, 32), np.zeros(32, int))
      assert (found == 0.5).all()
    _, most = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert filled.n_computed == n_images
  # A block takes 2 MB, and its file is put together in memory.
  assert most < 4 * n_images * width / 3


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"data.augment": "crop_flip"},
      "data.features: got 'once', expected 'online' where data.augment='crop_flip'",
    ),
    (
      {"method": "vpt_shallow"},
      "data.features: got 'once', expected 'online' where method='vpt_shallow'",
    ),
    (
      {"data.augment": "crop_flip", "data.view_epochs": 2, "method": "tip_adapter"},
      "data.features: got 'once', expected 'online' where data.augment='crop_flip'$",
    ),
    ({"job": "train_masks"}, "data.features: got 'once', expected 'online' where job='train_m"),
  ],
)
def test_settings_that_do_not_fit_together(images, changes, message):
  with pytest.raises(ConfigError, match=message):
    validate(config_of(images, **changes))
  validate(config_of(images, **{"data.augment": "crop_flip", "data.view_epochs": 2}))


def test_jobs_of_several_trainings_set_it_for_each(images):
  """Cells share a stream of features; a method that trains on pixels has no other choice."""
  cells = make_cells(config_of(images, job="ablate", **{"ablate.grid": "k=3|4"}))
  assert [cell.config.data.features for cell in cells] == ["online", "online"]
  both = {"baselines.methods": "prompt: k=3; visual: method=vpt_shallow"}
  found = baselines.method_configs(config_of(images, job="baselines", **both))
  assert [one.data.features for one in found.values()] == ["once", "online"]
