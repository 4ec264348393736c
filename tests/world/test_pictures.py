"""The world: its class list, the renderer, the labelled sources and the folders of
pictures."""

import hashlib

import numpy as np
import pytest

from docs.generators import captions
from pomp_jax import world
from pomp_jax.world import IMAGE_SIZE, class_names, names, render


def test_sizes_and_names_and_that_the_split_is_fixed():
  base, novel, every = (class_names(group) for group in ("base", "novel", "all"))
  assert (len(base), len(novel)) == (21_841, 5_087)
  assert every == base + novel
  assert len(set(every)) == len(every)
  assert all(name == name.lower().strip() for name in every)
  digest = hashlib.sha256("\n".join(novel).encode()).hexdigest()
  assert digest == "cba411d141aeff8c77f1a4d54ce481640e7efcb1b1548f7668e472b7ecc71e78"


def test_table_and_attributes_agree_with_the_names():
  table = captions.base_table()
  assert table.sum() == len(class_names("base"))
  base, novel = (names.class_attributes(group) for group in ("base", "novel"))
  assert not table[tuple(novel.T)].any()
  assert all(set(novel[:, a]) <= set(base[:, a]) for a in range(4))
  for values, name in zip(novel[::500], class_names("novel")[::500], strict=True):
    colour, texture, shape, ground = (
      names.WORDS[a][value] for a, value in enumerate(values)
    )
    assert name == f"{colour} {texture} {shape} on {ground}"


def test_an_image_does_not_depend_on_its_batch():
  keys = render.image_keys(0, 99, np.arange(300))
  attributes = names.class_attributes("base")[::72][:300]
  picked = np.array([299, 3, 40, 131, 5, 6, 11])
  for look in (render.PHOTO, render.SHIFTED):
    whole = render.render(keys, attributes, look)
    assert whole.shape == (300, IMAGE_SIZE, IMAGE_SIZE, 3) and whole.dtype == np.uint8
    part = render.render(keys[picked], attributes[picked], look)
    np.testing.assert_array_equal(whole[picked], part)


@pytest.mark.parametrize(
  "attribute", range(4), ids=["colour", "texture", "shape", "ground"]
)
def test_each_value_of_each_attribute_looks_different(attribute):
  words = names.WORDS[attribute]
  # A photo of the same key: equal in all attributes but one.
  attributes = np.tile(np.array([[0, 2, 4, 8]], np.int32), (len(words), 1))
  attributes[:, attribute] = np.arange(len(words))
  keys = np.repeat(render.image_keys(0, 0, np.array([7])), len(words))
  images = render.render(keys, attributes, render.PHOTO)
  flat = images.reshape(len(words), -1).astype(np.float32)
  distance = np.abs(flat[:, None] - flat[None]).mean(-1) + 255 * np.eye(len(words))
  assert distance.min() > 1.5


def test_images_are_spread_over_the_classes():
  source = world.source("novel", n_images=5_087 + 100)
  counts = np.bincount(source.labels, minlength=5_087)
  assert counts.min() == 1 and counts.max() == 2
  labels = world.source("novel", n_images=200).labels
  assert len(set(labels.tolist())) == 200
  np.testing.assert_array_equal(labels, source.labels[:200])
  two = world.source("novel", images_per_class=2)
  assert np.bincount(two.labels).tolist() == [2] * 5_087


def test_images_are_of_one_split_and_seed():
  seen = set()
  groups = {"train": "base", "validation": "base", "base": "base", "shifted": "all"}
  for split, group in groups.items():
    for seed in (0, 1):
      source = world.source(split, n_images=50, seed=seed)
      assert source.names == world.class_names(group)
      assert len(source) == 50 and source.labels.max() < len(source.names)
      images = source.images(np.arange(50))
      seen |= {image.tobytes() for image in images}
  assert len(seen) == 4 * 2 * 50
