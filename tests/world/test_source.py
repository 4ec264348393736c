"""The labelled sources that jobs read."""

import numpy as np
import pytest

from pomp_jax import world


def test_names_and_labels_belong_to_the_split():
  for split, group in (("train", "base"), ("validation", "base"), ("base", "base"),
                       ("novel", "novel"), ("shifted", "all")):  # fmt: skip
    source = world.source(split, n_images=500)
    assert source.names == world.class_names(group)
    assert len(source) == 500 and source.labels.dtype == np.int32
    assert 0 <= source.labels.min() and source.labels.max() < len(source.names)


def test_n_images_spreads_evenly():
  source = world.source("novel", n_images=5_087 + 100)
  counts = np.bincount(source.labels, minlength=5_087)
  assert counts.min() == 1 and counts.max() == 2
  labels = world.source("novel", n_images=200).labels
  assert len(set(labels.tolist())) == 200
  np.testing.assert_array_equal(labels, source.labels[:200])


def test_images_per_class():
  source = world.source("novel", images_per_class=2)
  assert len(source) == 2 * 5_087
  assert (np.bincount(source.labels) == 2).all()


def test_images_are_the_same_in_any_batch():
  source = world.source("train", n_images=300, seed=3)
  images = source.images(np.arange(20))
  np.testing.assert_array_equal(images[[7, 2]], source.images(np.array([7, 2])))


def test_splits_and_seeds_are_disjoint():
  seen = set()
  for split in ("train", "validation", "base", "shifted"):
    for seed in (0, 1):
      images = world.source(split, n_images=50, seed=seed).images(np.arange(50))
      seen |= {image.tobytes() for image in images}
  assert len(seen) == 4 * 2 * 50


@pytest.mark.parametrize("sizes", [{}, {"n_images": 3, "images_per_class": 1}, {"n_images": 0}])
def test_bad_sizes_are_refused(sizes):
  with pytest.raises(ValueError, match="expected"):
    world.source("train", **sizes)


def test_an_unknown_split_is_refused():
  with pytest.raises(ValueError, match="'test'.*train, validation, base, novel, shifted"):
    world.source("test", n_images=3)


def test_an_index_out_of_range_is_refused():
  with pytest.raises(IndexError, match=r"\[0, 3\)"):
    world.source("train", n_images=3).images(np.array([3]))
