"""Tip-Adapter in its job: whose features the keys are, and what Tip-Adapter-F is trained on."""

import dataclasses

import numpy as np
from PIL import Image
import pytest

from pomp_jax import inputs
from pomp_jax.baselines import tip_adapter
from pomp_jax.config import ConfigError, validate
from pomp_jax.data.loader import CorruptDataError
from pomp_jax.data.source import Files, StoredImages
from pomp_jax.data.synthetic import encode, natural_image
from pomp_jax.data.views import draw_view, make_view
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.inference.evaluate import split_features
from pomp_jax.train import methods
from pomp_jax.train.batches import view_features
from tests.support.small_run import small_config


def config_of(**changes):
  """Six classes, two images of each; three views make a key, two epochs are trained."""
  small = {
    "method": "tip_adapter_f",
    "data.n_classes": 6,
    "data.augment": "crop_flip",
    "data.crop_area": 0.3,
    "data.augment_seed": 4,
    "eval.images": 12,
    "tip.views": 3,
    "tip.epochs": 2,
    "tip.alpha_steps": 2,
    "tip.beta_steps": 2,
  }
  return small_config(**small | changes)


@pytest.fixture(scope="module")
def encoder():
  return inputs.open_encoder(config_of())


def learned(config, encoder, folder, monkeypatch):
  """Keys of the training-free adapter, and the features and labels that tuning was given."""
  given = {}

  def tune(adapter, epochs, labels, **settings):
    given.update(epochs=list(epochs), labels=labels, settings=settings)
    return adapter

  monkeypatch.setattr(tip_adapter, "tune", tune)
  return methods.fit(config, encoder, RunFolder(folder)).classifier, given


def raw_features(encoder, source, epoch):
  """Each image's view of an epoch, drawn and made one by one."""
  views = []
  for index, pixels in enumerate(source.images(np.arange(len(source)))):
    settings = {"augment": "crop_flip", "seed": 4, "view": 0, "crop_area": 0.3}
    view = draw_view(40, 40, index=index, epoch=epoch, **settings)
    views.append(np.asarray(make_view(Image.fromarray(pixels), view, 40)))
  return encoder.image_features(np.stack(views), unit=False)


def unit_rows(rows):
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_keys_are_means_over_views_and_training_sees_fresh_ones(encoder, tmp_path, monkeypatch):
  config = config_of()
  adapter, given = learned(config, encoder, tmp_path, monkeypatch)
  source = inputs.open_training_source(config.data, 40)
  epochs = [raw_features(encoder, source, epoch) for epoch in range(5)]
  np.testing.assert_allclose(adapter.keys, unit_rows(sum(epochs[:3]) / 3), atol=2e-5)
  np.testing.assert_array_equal(adapter.labels, source.labels)
  assert len(given["epochs"]) == given["settings"]["n_epochs"] == 2
  for found, expected in zip(given["epochs"], epochs[3:], strict=True):
    np.testing.assert_allclose(found, unit_rows(expected), atol=2e-5)
    # Neither the keys nor each other.
    assert np.abs(found - adapter.keys).max() > 0.01
  assert np.abs(given["epochs"][0] - given["epochs"][1]).max() > 0.01
  np.testing.assert_array_equal(given["labels"], source.labels)


def test_without_augmentation_the_images_are_as_in_the_test(encoder, tmp_path, monkeypatch):
  config = config_of(**{"data.augment": "none"})
  adapter, given = learned(config, encoder, tmp_path, monkeypatch)
  split = split_features(encoder, inputs.open_training_source(config.data, 40))
  np.testing.assert_allclose(adapter.keys, split.features, atol=2e-5)
  for found in given["epochs"]:
    np.testing.assert_allclose(found, split.features, atol=2e-5)


def test_several_views_of_an_image_are_several_rows(encoder, tmp_path, monkeypatch):
  config = config_of(**{"data.views": 2})
  adapter, given = learned(config, encoder, tmp_path, monkeypatch)
  assert [len(found) for found in given["epochs"]] == [24, 24] and len(adapter.keys) == 12
  np.testing.assert_array_equal(given["labels"], np.repeat(adapter.labels, 2))


def test_images_that_cannot_be_read_have_no_key(encoder, tmp_path):
  for i in range(5):
    (tmp_path / f"{i}.jpg").write_bytes(encode(natural_image(i, 50, 60)) if i != 3 else b"no")
  keys = [f"{i}.jpg" for i in range(5)]
  source = StoredImages("ab", np.array([0, 1, 0, 1, 0]), keys, Files(tmp_path), image_size=40)
  data = config_of(**{"data.max_corrupt": 0.2}).data
  for epoch in view_features(data, source, encoder, 2):
    assert epoch.readable.tolist() == [True, True, True, False, True]
    assert np.isfinite(epoch.features).all() and epoch.features.shape[:2] == (5, 1)
  data = dataclasses.replace(data, max_corrupt=0.0)
  with pytest.raises(CorruptDataError, match=r"1 of 5 images can't be read, 0 are .*3\.jpg"):
    next(view_features(data, source, encoder, 2))


def test_settings_are_those_of_the_data_set_unless_given(caplog):
  """The published ones themselves are held in tests/config."""
  caplog.set_level("INFO")
  coop = {"data.source": "coop", "data.dataset": "eurosat"}
  found = tip_adapter.tip_settings(config_of(**coop | {"tip.epochs": 0}))
  assert found == (2.0, 10.0, 12.0, 100, "hand_written")
  found = tip_adapter.tip_settings(config_of(**coop | {"tip.alpha": 9.0, "tip.beta_max": 3.0}))
  assert found == (9.0, 10.0, 3.0, 2, "hand_written") and not caplog.text
  assert tip_adapter.tip_settings(config_of())[:3] == (1.17, 3.0, 7.0)
  assert "no published settings" in caplog.text


@pytest.mark.parametrize("method", ["zero_shot", "linear_probe"])
def test_methods_on_images_as_they_are_take_no_augmentation(method):
  with pytest.raises(ConfigError, match=r"config\.data\.augment: got 'crop_flip', expected 'none'"):
    validate(config_of(method=method))


def test_all_stored_images_are_evaluated_where_the_number_is_0(tmp_path):
  (tmp_path / "names.txt").write_text("a\nb\nc\n")
  stored = {"data.source": "synthetic", "data.names": str(tmp_path / "names.txt")}
  config = config_of(**stored, **{"eval.images": 0, "data.n_classes": 0})
  validate(config)
  whole = inputs.open_source(config.data, "test")
  assert len(inputs.open_source(config.data, "test", n_images=0)) == len(whole) > 3
  assert len(inputs.open_source(config.data, "test", n_images=3)) == 3


@pytest.mark.parametrize(
  "dry,expected", [(False, "1 or more where"), (True, "in a dry run the number of test images")]
)
def test_a_number_of_images_is_needed_elsewhere(dry, expected):
  with pytest.raises(ConfigError, match=rf"config\.eval\.images: got 0, expected {expected}"):
    validate(config_of(**{"eval.images": 0, "method": "pomp", "dry_run": dry}))
