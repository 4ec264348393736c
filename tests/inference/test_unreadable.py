"""What an evaluation makes of images that can't be read: the figures of all the others."""

import logging

import numpy as np
from PIL import Image
import pytest

from pomp_jax.data.loader import CorruptDataError
from pomp_jax.data.source import Files, StoredImages
from pomp_jax.inference.accuracy import split_features
from pomp_jax.inference.scoring import tally

IMAGES, CLASSES = 21, 4
BAD = [0, 7, 20]  # the last one fills up the last batch
GOOD = np.setdiff1d(np.arange(IMAGES), BAD)


@pytest.fixture
def source(tmp_path):
  """Random pictures, three of which are no images."""
  rng = np.random.default_rng(0)
  for index in range(IMAGES):
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"{index}.png")
  for index in BAD:
    (tmp_path / f"{index}.png").write_bytes(b"no image")
  keys = [f"{index}.png" for index in range(IMAGES)]
  labels = rng.integers(0, CLASSES, IMAGES)
  names = [f"class {c}" for c in range(CLASSES)]
  return StoredImages(names, labels, keys, Files(tmp_path), image_size=32)


@pytest.fixture
def classes(encoder):
  rows = np.random.default_rng(1).normal(size=(CLASSES, encoder.clip.config.projection_dim))
  return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def test_a_split_is_the_images_that_can_be_read(encoder, source, caplog):
  caplog.set_level(logging.WARNING)
  found = split_features(encoder, source, max_corrupt=0.2)
  expected = split_features(encoder, source.subset(GOOD))
  np.testing.assert_array_equal(found.indices, GOOD)
  np.testing.assert_array_equal(found.labels, expected.labels)
  np.testing.assert_allclose(found.features, expected.features, atol=1e-6)
  (record,) = caplog.records
  assert "3 of 21 images can't be read" in record.getMessage()
  assert "/0.png: not a readable image" in record.getMessage()


@pytest.mark.parametrize("batch_size", [8, 512])
def test_counts_are_those_of_the_images_that_can_be_read(
  encoder, source, classes, batch_size, caplog
):
  caplog.set_level(logging.WARNING)
  found = tally(encoder, source, {"a": classes}, batch_size=batch_size, max_corrupt=0.2)["a"]
  expected = tally(encoder, source.subset(GOOD), {"a": classes})["a"]
  assert found.figures()["images"] == len(GOOD)
  assert found.figures()["top1"] == expected.figures()["top1"]
  assert found.figures()["mean_confidence"] == pytest.approx(expected.figures()["mean_confidence"])
  np.testing.assert_array_equal(found.per_class()[0], np.bincount(source.labels[GOOD], minlength=4))
  assert len(caplog.records) == 1


def test_max_corrupt_bounds_an_evaluation(encoder, source, classes):
  def read(source, share):
    split_features(encoder, source, max_corrupt=share)
    tally(encoder, source, {"a": classes}, max_corrupt=share)

  # Three of 21 are more than a tenth; of few images one is allowed all the same.
  with pytest.raises(CorruptDataError, match=r"of 21 images .*, 2 are allowed by data.max_corrupt"):
    split_features(encoder, source, max_corrupt=0.1)
  with pytest.raises(CorruptDataError, match=r"of 21 images .*, 2 are allowed by data.max_corrupt"):
    tally(encoder, source, {"a": classes}, max_corrupt=0.1)
  one_bad = source.subset(np.array([7, 8, 9]))
  read(one_bad, 0.001)
  with pytest.raises(CorruptDataError, match=r"1 of 3 .* 0 are allowed .*7\.png"):
    read(one_bad, 0.0)
  with pytest.raises(CorruptDataError, match="1 of 1 images"):
    read(source.subset(np.array([7])), 1.0)
