"""The labelled sources that jobs read."""

import numpy as np
import pytest

from pomp_jax import world


def test_names_and_labels_belong_to_the_split():
  groups = {"train": "base", "validation": "base", "base": "base", "novel": "novel"}
  for split, group in (groups | {"shifted": "all"}).items():
    source = world.source(split, n_images=500)
    assert source.names == world.class_names(group)
    assert len(source) == 500 and source.labels.dtype == np.int32
    assert 0 <= source.labels.min() and source.labels.max() < len(source.names)


def test_images_are_spread_over_the_classes():
  source = world.source("novel", n_images=5_087 + 100)
  counts = np.bincount(source.labels, minlength=5_087)
  assert counts.min() == 1 and counts.max() == 2
  labels = world.source("novel", n_images=200).labels
  assert len(set(labels.tolist())) == 200
  np.testing.assert_array_equal(labels, source.labels[:200])
  two = world.source("novel", images_per_class=2)
  assert np.bincount(two.labels).tolist() == [2] * 5_087


def test_images_are_the_same_in_any_batch_and_of_one_split_and_seed():
  seen = set()
  for split in ("train", "validation", "base", "shifted"):
    for seed in (0, 1):
      source = world.source(split, n_images=50, seed=seed)
      images = source.images(np.arange(50))
      np.testing.assert_array_equal(images[[7, 2]], source.images(np.array([7, 2])))
      seen |= {image.tobytes() for image in images}
  assert len(seen) == 4 * 2 * 50
  with pytest.raises(IndexError, match=r"\[0, 50\)"):
    source.images(np.array([50]))


@pytest.mark.parametrize(
  ("split", "sizes", "message"),
  [
    ("train", {}, "expected"),
    ("train", {"n_images": 3, "images_per_class": 1}, "expected"),
    ("train", {"n_images": 0}, "expected"),
    ("test", {"n_images": 3}, "'test'.*train, validation, base, novel, shifted"),
  ],
)
def test_splits_and_sizes_that_there_are_not(split, sizes, message):
  with pytest.raises(ValueError, match=message):
    world.source(split, **sizes)
