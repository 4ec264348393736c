"""The renderer: repeatable image by image, and each attribute visible."""

import numpy as np
import pytest

from pomp_jax.world import IMAGE_SIZE, names, render


def _scene(n, style, seed=0):
  base = names.class_attributes("base")
  attributes = base[np.random.RandomState(seed).randint(len(base), size=n)]
  return render.image_keys(seed, 99, np.arange(n)), attributes, np.full(n, style)


def test_an_image_does_not_depend_on_its_batch():
  keys, attributes, styles = _scene(300, 0)
  styles = np.arange(300) % len(render.STYLES)
  whole = render.render(keys, attributes, styles)
  assert whole.shape == (300, IMAGE_SIZE, IMAGE_SIZE, 3) and whole.dtype == np.uint8
  picked = np.array([299, 3, 40, 131, 5, 6, 11])
  part = render.render(keys[picked], attributes[picked], styles[picked])
  np.testing.assert_array_equal(whole[picked], part)


def test_images_differ_between_keys_seeds_and_streams():
  keys = np.concatenate(
    [render.image_keys(seed, stream, np.arange(100)) for seed in range(3) for stream in range(3)]
  )
  assert len(np.unique(keys)) == 900
  _, attributes, styles = _scene(1, 0)
  images = render.render(keys[:9], np.repeat(attributes, 9, 0), np.repeat(styles, 9))
  assert len({image.tobytes() for image in images}) == 9


@pytest.mark.parametrize("attribute", range(4), ids=names.ATTRIBUTES)
def test_each_value_of_each_attribute_looks_different(attribute):
  words = names.WORDS[attribute]
  # A plate of the same key: alike in all but the one attribute.
  attributes = np.tile(np.array([[0, 2, 4, 8]], np.int32), (len(words), 1))
  attributes[:, attribute] = np.arange(len(words))
  keys = np.repeat(render.image_keys(0, 0, np.array([7])), len(words))
  images = render.render(keys, attributes, np.full(len(words), 1))
  flat = images.reshape(len(words), -1).astype(np.float32)
  distance = np.abs(flat[:, None] - flat[None]).mean(-1) + 255 * np.eye(len(words))
  assert distance.min() > 1.5


@pytest.mark.parametrize("shape", range(17), ids=names.SHAPES)
def test_distances_are_those_to_the_outline(shape):
  """Between neighbours a distance changes by a step at most, and the gradient is that long."""
  field = render.atlas()[shape]
  step = 2 * render._ATLAS_REACH / len(field)
  for axis in (0, 1):
    assert np.abs(np.diff(field, axis=axis)).max() < 1.01 * step
  assert field[64, 20:108].min() < -0.1 and field[[0, -1]].min() > 0
  assert np.median(np.hypot(*np.gradient(field))) == pytest.approx(step, rel=0.02)
