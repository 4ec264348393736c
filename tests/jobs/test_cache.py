"""Features of the training images, computed once: training from them is training from the images.

`data.features="cached"` reads what the job `cache` made, "once" what the run itself computes before
its first step.
"""

import functools
import itertools
import pathlib
import shutil
import tracemalloc
import types

import jax
import numpy as np
import pytest

from pomp_jax import inputs
from pomp_jax.ablation.grid import make_cells
from pomp_jax.config import ConfigError, validate
from pomp_jax.data.loader import CorruptDataError
from pomp_jax.data.views import Augmentation, CachedViews
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import FeatureBlocks, FeatureCacheError
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.jobs import baselines, cache, pretrain
from pomp_jax.train import batches, feature_cache, methods, setup
from tests.support.damage import NAMES, write_damaged_folder
from tests.support.small_run import small_config

N_IMAGES = 4 * len(NAMES)
PLAIN = {"data.augment": "none", "data.views": 1, "data.view_epochs": 0}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """A folder a class, four JPEGs each; one of them is cut off."""
  root = tmp_path_factory.mktemp("images")
  write_damaged_folder(root, {"train": 4, "val": 1, "test": 1})
  return root


@pytest.fixture(scope="module")
def config_of(images, one_layer):
  """A function: folder of the cache, changes -> config of 12 steps of 8 views.

  They are 4 epochs, of which two and two show the same views.
  """

  def config(folder=None, **changes):
    data = {"data.source": "folder", "data.root": str(images), "data.n_classes": 0}
    data |= {"data.augment": "recipe", "data.views": 2, "data.view_epochs": 2}
    data |= {"data.max_corrupt": 0.05, "data.feature_cache": str(folder or "")}
    settings = {"clip.model": one_layer, "k": 4, "batch_size": 8, "steps": 24}
    return small_config(**data | settings | {"checkpoint.every": 8} | changes)

  return config


def run(config, workdir):
  validate(config)
  pretrain.check(config, str(workdir))
  return pretrain.run(config, str(workdir))


@pytest.fixture(scope="module")
def filled(config_of):
  """A function that runs the job on a folder."""

  def fill(folder, **changes):
    config = config_of(folder, job="cache", **changes)
    validate(config)
    cache.check(config, str(folder / "run"))
    return cache.run(config, str(folder.parent / "run"))

  return fill


def features_in(folder):
  return np.concatenate([np.load(path) for path in sorted(folder.glob("block-*.npy"))])


@pytest.fixture(scope="module")
def complete(filled, tmp_path_factory):
  """A complete cache, and what the job said of it."""
  folder = tmp_path_factory.mktemp("cache") / "features"
  return folder, filled(folder)


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


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of five images."""
  monkeypatch.setattr(batches, "FeatureBlocks", functools.partial(FeatureBlocks, block_size=5))


@pytest.fixture(scope="module")
def runs(complete, config_of, shown, tmp_path_factory):
  """Folder, images a call before the steps, and the steps' image towers, by `data.features`."""
  found, make_train_step = {}, setup.make_train_step
  for features in ("online", "cached", "once"):
    folder, towers = tmp_path_factory.mktemp(features), []

    def noted(towers=towers, **settings):
      towers.append(settings["image_tower"])
      return make_train_step(**settings)

    shown.clear()
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(setup, "make_train_step", noted)
      cached = complete[0] if features == "cached" else None
      results = run(config_of(cached, **{"data.features": features}), folder)
    assert results["unreadable_images"] == 1
    found[features] = RunFolder(folder), list(shown), towers
  return found


def test_the_job_says_what_it_made(complete):
  folder, results = complete
  stored = features_in(folder)
  assert results["n_images"] == N_IMAGES and results["n_versions"] == 4
  assert results["computed_features"] == 4 * N_IMAGES
  assert results["bytes"] == stored.nbytes
  assert [pathlib.Path(name).parts[-2:] for name in results["unreadable"]] == [("daisy", "2.jpg")]
  assert np.isnan(stored[10]).all() and not np.isnan(np.delete(stored, 10, 0)).any()
  # Every version is another view.
  rows = stored[~np.isnan(stored).any(-1)]
  assert len({row.tobytes() for row in rows}) == len(rows)


def test_features_are_those_of_the_images_themselves(complete, config_of):
  """Against the image tower on views that are made one by one."""
  folder, _ = complete
  config = config_of()
  encoder = inputs.open_encoder(config)
  source = inputs.open_training_source(config.data, encoder.clip.image_size)
  fetch = batches.open_fetch(config.data, source, encoder)
  stored = features_in(folder)
  for index, epoch in ((0, 0), (7, 1), (23, 3)):
    pixels, _ = fetch(np.array([index]), np.array([epoch]))
    expected = np.asarray(encoder.image_tower(encoder.vision_params, jax.numpy.asarray(pixels[0])))
    found = stored[index, 2 * (epoch % 2) : 2 * (epoch % 2) + 2]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", ["cached", "once"])
def test_training_from_features_is_training_from_the_images(runs, features):
  folder, calls, towers = runs[features]
  # Each view once, or not at all; no step has a tower of its own.
  assert sum(calls) == (4 * N_IMAGES if features == "once" else 0) and towers == [None]
  online, calls, towers = runs["online"]
  assert not calls and towers[0] is not None
  found, expected = load_prompt(folder.prompt).context, load_prompt(online.prompt).context
  np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
  assert np.abs(found).max() > 1e-2
  found, expected = (one.scalars()["loss"][1] for one in (folder, online))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_interrupted_cache_goes_on_with_the_missing_blocks(
  complete, config_of, filled, small_blocks, tmp_path, monkeypatch
):
  monkeypatch.setattr(batches, "VIEWS", 6)
  folder = tmp_path / "features"
  filled(folder)
  for block in (2, 3, 4):
    (folder / f"block-{block:05}.npy").unlink()
  with pytest.raises(FeatureCacheError, match=r"3 of 5 blocks are missing; .*config.job='cache'"):
    pretrain.run(config_of(folder, **{"data.features": "cached"}), str(tmp_path / "early"))
  assert not (tmp_path / "early").exists()
  assert filled(folder)["computed_features"] == 4 * 14
  np.testing.assert_allclose(features_in(folder), features_in(complete[0]), rtol=1e-5, atol=1e-5)
  assert filled(folder)["computed_features"] == 0


def test_a_restart_computes_what_is_missing(
  runs, config_of, small_blocks, shown, tmp_path, monkeypatch
):
  config = config_of(**{"data.features": "once"})
  shown.clear()
  write, send = FeatureBlocks.write, batches.on_devices

  def interrupted(self, block, features):
    if block == 2:
      raise KeyboardInterrupt
    write(self, block, features)

  monkeypatch.setattr(FeatureBlocks, "write", interrupted)
  with pytest.raises(KeyboardInterrupt):
    run(config, tmp_path)
  # Two views of five images, in two epochs, of each of three blocks.
  assert shown == 6 * [10]
  monkeypatch.setattr(FeatureBlocks, "write", write)
  # After the checkpoint of step 8.
  monkeypatch.setattr(batches, "on_devices", lambda *given: itertools.islice(send(*given), 11))
  with pytest.raises(StopIteration):
    run(config, tmp_path)
  # The block whose file was not written, and the two after it.
  assert shown[6:] == [10, 10, 10, 10, 8, 8]
  monkeypatch.setattr(batches, "on_devices", send)
  damaged = RunFolder(tmp_path).training_features / "block-00001.npy"
  content = damaged.read_bytes()
  damaged.unlink()  # threads of the stopped run may still read the mapped file
  damaged.write_bytes(content[:-1])
  run(config, tmp_path)
  assert shown[12:] == [10, 10]
  found, expected = load_prompt(tmp_path / "prompt.npz"), load_prompt(runs["once"][0].prompt)
  np.testing.assert_allclose(found.context, expected.context, rtol=0, atol=1e-6)


def test_a_classifier_on_features_holds_them(config_of, shown, tmp_path):
  keys = {}
  encoder = inputs.open_encoder(config_of())
  for features in ("once", "online"):
    shown.clear()
    config = config_of(method="tip_adapter", **PLAIN | {"data.features": features})
    validate(config)
    keys[features] = methods.fit(config, encoder, RunFolder(tmp_path)).classifier.keys
    assert sum(shown) == N_IMAGES
  np.testing.assert_array_equal(keys["once"], keys["online"])
  assert not RunFolder(tmp_path).training_features.exists()


def test_memory_holds_a_block_of_the_features(config_of, tmp_path, monkeypatch):
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
    filled = feature_cache.fill(config_of(**PLAIN).data, blocks, Images(), encoder)
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
    ({}, "made_from.resizer is"),
    ({"data.augment": "crop_flip"}, "made_from.augment is 'recipe', this run needs 'crop_flip'"),
    ({"data.view_epochs": 3}, "n_versions is 4, this run needs 6"),
    ({"clip.dtype": "bfloat16"}, "made_from.image_tower is '[0-9a-f]+', this run needs"),
  ],
)
def test_a_cache_of_something_else_is_refused_by_field(
  complete, config_of, tmp_path, monkeypatch, changes, message
):
  if not changes:
    # As one from before the resizer was part of the key, where it reads as None.
    monkeypatch.setattr(batches, "RESIZER", "another")
  config = config_of(complete[0], **{"data.features": "cached"} | changes)
  with pytest.raises(FeatureCacheError, match=f"cache.json: {message}"):
    pretrain.run(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_a_cache_of_other_images_of_the_same_classes_is_refused(filled, config_of, tmp_path):
  """Another draw of as many shots: the same number of images, and the same labels."""
  filled(tmp_path / "features", **{"data.shots": 2})
  drawn = {"data.shots": 2, "data.shots_seed": 4}
  for features in ("cached", "once"):
    config = config_of(tmp_path / "features", **drawn | {"data.features": features})
    with pytest.raises(FeatureCacheError, match=r"cache.json: made_from.images is .* --workdir"):
      pretrain.run(config, str(tmp_path / features))


def test_too_many_damaged_images_stop_a_job(complete, filled, config_of, tmp_path):
  message = r"1 of 24 images can't be read, 0 are .*daisy/2.jpg"
  few = {"data.max_corrupt": 0.0}
  with pytest.raises(CorruptDataError, match=message):
    filled(tmp_path / "features", **few)
  with pytest.raises(CorruptDataError, match=message):
    pretrain.run(config_of(**few), str(tmp_path / "training"))
  # Those that an earlier start met count as well.
  shutil.copytree(complete[0], tmp_path / "complete")
  with pytest.raises(CorruptDataError, match=message):
    filled(tmp_path / "complete", **few)


CACHED = {"data.features": "cached"}
ONCE = PLAIN | {"data.features": "once"}
FLIPPED = {"data.augment": "crop_flip", "data.view_epochs": 2}
ONLINE_WHERE = "data.features: got 'once', expected 'online' where"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (CACHED | {"data.view_epochs": 0}, "data.view_epochs: got 0, expected the number of epochs"),
    (CACHED | {"data.feature_cache": "nowhere"}, "data.feature_cache: got 'nowhere', expected a"),
    (CACHED | {"data.augment": "none"}, "data.views: got 2, expected 1 where data.augment='none'"),
    (CACHED | {"data.views": 3}, "batch_size: got 8, expected a multiple of data.views = 3"),
    ({"job": "cache", "data.feature_cache": ""}, "data.feature_cache: got '', expected a folder$"),
    (ONCE | {"data.augment": "crop_flip"}, f"{ONLINE_WHERE} data.augment='crop_flip'"),
    (ONCE | {"method": "vpt_shallow"}, f"{ONLINE_WHERE} method='vpt_shallow'"),
    (ONCE | FLIPPED | {"method": "tip_adapter"}, f"{ONLINE_WHERE} data.augment='crop_flip'$"),
    (ONCE | {"job": "train_masks"}, f"{ONLINE_WHERE} job='train_m"),
  ],
)
def test_settings_that_cannot_be(config_of, tmp_path, changes, message):
  with pytest.raises(ConfigError, match=message):
    validate(config_of(tmp_path, **changes))
  validate(config_of(**ONCE | FLIPPED))


def test_jobs_of_several_trainings_set_it_for_each(config_of):
  """Cells share a stream of features; a method that trains on pixels has no other choice."""
  cells = make_cells(config_of(job="ablate", **ONCE | {"ablate.grid": "k=3|4"}))
  assert [cell.config.data.features for cell in cells] == ["online", "online"]
  both = {"baselines.methods": "prompt: k=3; visual: method=vpt_shallow"}
  found = baselines.method_configs(config_of(job="baselines", **ONCE | both))
  assert [one.data.features for one in found.values()] == ["once", "online"]
