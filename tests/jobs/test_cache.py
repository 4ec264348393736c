"""Features of augmented views, computed once: training from them is training from the images."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from pomp_jax import inputs
from pomp_jax.config import ConfigError, validate
from pomp_jax.data.loader import CorruptDataError
from pomp_jax.files.array_cache import FeatureBlocks, FeatureCacheError
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.jobs import cache, pretrain
from pomp_jax.train import batches
from tests.support.damaged_folder import write_damaged_folder
from tests.support.processes import Processes
from tests.support.small_run import small_config


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """A folder a class, four JPEGs each; one of them is cut off."""
  root = tmp_path_factory.mktemp("images")
  write_damaged_folder(root, {"train": 4, "test": 1})
  return root


def config_of(images, folder=None, **changes):
  """12 steps of 8 views: 4 epochs, of which two and two are alike."""
  settings = {
    "data.source": "folder",
    "data.root": str(images),
    "data.n_classes": 0,
    "data.augment": "recipe",
    "data.views": 2,
    "data.view_epochs": 2,
    "data.max_corrupt": 0.05,
    "k": 4,
    "batch_size": 8,
    "steps": 24,
    "checkpoint.every": 8,
  }
  if folder is not None:
    settings["data.feature_cache"] = str(folder)
  return small_config(**settings | changes)


def filled(images, folder, **changes):
  """Runs the job on the folder."""
  config = config_of(images, folder, job="cache", **changes)
  validate(config)
  cache.check(config, str(folder / "run"))
  return cache.run(config, str(folder.parent / "run"))


def features_in(folder):
  return np.concatenate([np.load(path) for path in sorted(folder.glob("block-*.npy"))])


@pytest.fixture(scope="module")
def complete(images, tmp_path_factory):
  """A complete cache, and what the job said of it."""
  folder = tmp_path_factory.mktemp("cache") / "features"
  return folder, filled(images, folder)


def test_the_job_says_what_it_made(complete):
  folder, results = complete
  stored = features_in(folder)
  assert results["n_images"] == 24 and results["n_versions"] == 4
  assert results["computed_features"] == 96
  assert results["bytes"] == stored.nbytes
  assert [pathlib.Path(name).parts[-2:] for name in results["unreadable"]] == [("daisy", "2.jpg")]
  assert np.isnan(stored[10]).all() and not np.isnan(np.delete(stored, 10, 0)).any()
  # Every version is another view.
  rows = stored[~np.isnan(stored).any(-1)]
  assert len({row.tobytes() for row in rows}) == len(rows)


def test_features_are_those_of_the_images_themselves(complete, images):
  """Against the image tower on views that are made one by one."""
  folder, _ = complete
  config = config_of(images)
  encoder = inputs.open_encoder(config)
  source = inputs.open_training_source(config.data, encoder.clip.image_size)
  fetch = batches.open_fetch(config.data, source, encoder)
  stored = features_in(folder)
  for index, epoch in ((0, 0), (7, 1), (23, 3)):
    pixels, _ = fetch(np.array([index]), np.array([epoch]))
    expected = np.asarray(encoder.image_tower(encoder.vision_params, jax.numpy.asarray(pixels[0])))
    found = stored[index, 2 * (epoch % 2) : 2 * (epoch % 2) + 2]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_training_from_the_cache_is_training_from_the_images(complete, images, tmp_path):
  folder, _ = complete
  runs = {
    "online": config_of(images),
    "cached": config_of(images, folder, **{"data.features": "cached"}),
  }
  contexts, losses = {}, {}
  for name, config in runs.items():
    validate(config)
    pretrain.check(config, str(tmp_path / name))
    results = pretrain.run(config, str(tmp_path / name))
    assert results["unreadable_images"] == 1
    contexts[name] = load_prompt(tmp_path / name / "prompt.npz").context
    losses[name] = RunFolder(tmp_path / name).scalars()["loss"][1]
  np.testing.assert_allclose(contexts["cached"], contexts["online"], rtol=0, atol=5e-6)
  np.testing.assert_allclose(losses["cached"], losses["online"], rtol=1e-5)
  start = np.asarray(load_prompt(tmp_path / "online" / "prompt.npz").context)
  assert np.abs(start).max() > 1e-2


def test_an_interrupted_cache_goes_on_with_the_missing_blocks(
  complete, images, tmp_path, monkeypatch
):
  small = functools.partial(FeatureBlocks, block_size=5)
  monkeypatch.setattr(batches, "FeatureBlocks", small)
  monkeypatch.setattr(batches, "VIEWS", 6)
  folder = tmp_path / "features"
  write, written = FeatureBlocks.write, []

  def stopped(self, block, features):
    if len(written) == 2:
      raise KeyboardInterrupt
    written.append(block)
    write(self, block, features)

  monkeypatch.setattr(FeatureBlocks, "write", stopped)
  with pytest.raises(KeyboardInterrupt):
    filled(images, folder)
  with pytest.raises(FeatureCacheError, match=r"3 of 5 blocks are missing; .*config.job='cache'"):
    pretrain.run(config_of(images, folder, **{"data.features": "cached"}), str(tmp_path / "early"))
  assert not (tmp_path / "early").exists()
  monkeypatch.setattr(FeatureBlocks, "write", write)
  assert filled(images, folder)["computed_features"] == 4 * 14
  np.testing.assert_allclose(features_in(folder), features_in(complete[0]), rtol=1e-5, atol=1e-5)
  assert filled(images, folder)["computed_features"] == 0


def test_two_processes_fill_one_cache(complete, images, tmp_path):
  folder = tmp_path / "features"
  command = ["-m", "pomp_jax.main", "--config=configs/demo.py", f"--workdir={tmp_path / 'run'}"]
  fields = {
    "job": "cache",
    "data.source": "folder",
    "data.root": images,
    "data.n_classes": 0,
    "data.augment": "recipe",
    "data.views": 2,
    "data.view_epochs": 2,
    "data.max_corrupt": 0.05,
    "data.feature_cache": folder,
  }
  command += [f"--config.{field}={value}" for field, value in fields.items()]
  with Processes(2, command, devices=2) as processes:
    for status, output in processes.finish().values():
      assert status == 0, output[-2000:]
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert results["computed_features"] == 96
  np.testing.assert_allclose(features_in(folder), features_in(complete[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.augment": "crop_flip"}, "made_from.augment is 'recipe', this run needs 'crop_flip'"),
    ({"data.augment_seed": 4}, "made_from.augment_seed is 0, this run needs 4"),
    ({"data.crop_area": 0.5}, "made_from.crop_area is 0.08, this run needs 0.5"),
    ({"data.view_epochs": 3}, "n_versions is 4, this run needs 6"),
    ({"data.n_classes": 5}, "n_images is 24, this run needs 20"),
    ({"clip.dtype": "bfloat16"}, "made_from.image_tower is '[0-9a-f]+', this run needs"),
  ],
)
def test_a_cache_of_something_else_is_refused_by_field(
  complete, images, tmp_path, changes, message
):
  folder, _ = complete
  config = config_of(images, folder, **{"data.features": "cached"} | changes)
  with pytest.raises(FeatureCacheError, match=f"cache.json: {message}"):
    pretrain.run(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_a_cache_of_another_resizer_is_refused(complete, images, tmp_path, monkeypatch):
  """As one from before the resizer was part of the key, where it reads as None."""
  monkeypatch.setattr(batches, "RESIZER", "another")
  config = config_of(images, complete[0], **{"data.features": "cached"})
  with pytest.raises(FeatureCacheError, match="cache.json: made_from.resizer"):
    pretrain.run(config, str(tmp_path / "run"))


def test_damaged_images_of_an_earlier_start_count_as_well(complete, images):
  with pytest.raises(CorruptDataError, match=r"1 of 24 images can't be read, 0 are .*daisy/2.jpg"):
    filled(images, complete[0], **{"data.max_corrupt": 0.01})


def test_too_many_damaged_images_stop_the_job(images, tmp_path):
  with pytest.raises(CorruptDataError, match=r"1 of 24 images can't be read, 0 are .*daisy/2.jpg"):
    filled(images, tmp_path / "features", **{"data.max_corrupt": 0.01})
  with pytest.raises(CorruptDataError, match=r"1 of 24 images can't be read, 0 are .*daisy/2.jpg"):
    pretrain.run(config_of(images, **{"data.max_corrupt": 0.01}), str(tmp_path / "run"))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.view_epochs": 0}, "data.view_epochs: got 0, expected the number of epochs"),
    ({"data.feature_cache": ""}, "data.feature_cache: got '', expected a folder that config.job="),
    (
      {"data.feature_cache": "nowhere"},
      "data.feature_cache: got 'nowhere', expected a folder that",
    ),
    ({"data.crop_area": 0.0}, "data.crop_area: got 0.0, expected above 0"),
    ({"data.augment": "none"}, "data.views: got 2, expected 1 where data.augment='none'"),
    ({"data.views": 3}, "batch_size: got 8, expected a multiple of data.views = 3"),
    (
      {"data.features": "cache"},
      "data.features: got 'cache', expected one of .*did you mean 'cached'",
    ),
    (
      {"data.augment": "recip"},
      "data.augment: got 'recip', expected one of .*did you mean 'recipe'",
    ),
    ({"job": "cache", "data.feature_cache": ""}, "data.feature_cache: got '', expected a folder$"),
  ],
)
def test_settings_that_cannot_be(images, tmp_path, changes, message):
  config = config_of(images, tmp_path, **{"data.features": "cached"} | changes)
  with pytest.raises(ConfigError, match=message):
    validate(config)
