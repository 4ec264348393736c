"""The renderer: repeatable image by image, with masks and boxes that tell the truth."""

import numpy as np
import pytest

from pomp_jax.world import IMAGE_SIZE, names, render


def _scene(n, style, seed=0):
  base = names.class_attributes("base")
  attributes = base[np.random.RandomState(seed).randint(len(base), size=n)]
  return render.image_keys(seed, 99, np.arange(n)), attributes, np.full(n, style)


@pytest.mark.parametrize("style", range(len(render.STYLES)), ids=render.STYLES)
def test_shapes_types_and_tight_boxes(style):
  images, masks, boxes = render.render(*_scene(32, style))
  assert images.shape == (32, IMAGE_SIZE, IMAGE_SIZE, 3) and images.dtype == np.uint8
  assert masks.shape == (32, IMAGE_SIZE, IMAGE_SIZE) and masks.dtype == bool
  assert boxes.shape == (32, 4) and boxes.dtype == np.float32
  for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (y0, y1, x0, x1)
    assert mask.sum() > 20


def test_an_image_does_not_depend_on_its_batch():
  keys, attributes, styles = _scene(300, 0)
  styles = np.arange(300) % len(render.STYLES)
  whole = render.render(keys, attributes, styles)
  picked = np.array([299, 3, 40, 131, 5])
  part = render.render(keys[picked], attributes[picked], styles[picked])
  for a, b in zip(whole, part, strict=True):
    np.testing.assert_array_equal(a[picked], b)


def test_images_differ_between_keys_seeds_and_streams():
  keys = np.concatenate(
    [render.image_keys(seed, stream, np.arange(100)) for seed in range(3) for stream in range(3)]
  )
  assert len(np.unique(keys)) == 900
  _, attributes, styles = _scene(1, 0)
  images, _, _ = render.render(keys[:9], np.repeat(attributes, 9, 0), np.repeat(styles, 9))
  assert len({image.tobytes() for image in images}) == 9


@pytest.mark.parametrize("attribute", range(4), ids=names.ATTRIBUTES)
def test_each_value_of_each_attribute_looks_different(attribute):
  words = names.WORDS[attribute]
  # A plate of the same key: alike in all but the one attribute.
  attributes = np.tile(np.array([[0, 2, 4, 8]], np.int32), (len(words), 1))
  attributes[:, attribute] = np.arange(len(words))
  keys = np.repeat(render.image_keys(0, 0, np.array([7])), len(words))
  images, _, _ = render.render(keys, attributes, np.full(len(words), 1))
  flat = images.reshape(len(words), -1).astype(np.float32)
  distance = np.abs(flat[:, None] - flat[None]).mean(-1) + 255 * np.eye(len(words))
  assert distance.min() > 1.5


def test_other_sizes():
  keys, attributes, styles = _scene(4, 0)
  images, masks, _ = render.render(keys, attributes, styles, size=96)
  assert images.shape == (4, 96, 96, 3)
  small = render.render(keys, attributes, styles)[1]
  np.testing.assert_allclose(masks.mean((1, 2)), small.mean((1, 2)), atol=0.03)
  with pytest.raises(ValueError, match="16 to 128"):
    render.render(keys, attributes, styles, size=8)


def test_an_empty_mask_has_an_empty_box():
  assert not render.boxes_of(np.zeros((1, 5, 5), bool)).any()
