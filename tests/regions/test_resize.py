"""Sizes of images against detectron2's rule and PIL."""

import numpy as np
from PIL import Image
import pytest

from pomp_jax.regions.resize import resized_image, resized_sides

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
  ("sides", "size", "expected"),
  [
    ((480, 640), 640, (640, 853)),
    ((427, 640), 640, (640, 959)),
    ((640, 428), 640, (957, 640)),
    ((500, 334), 512, (766, 512)),
    ((100, 640), 640, (400, 2560)),  # 4,096 would be too long
    ((2048, 300), 512, (2048, 300)),
    ((48, 31), 0, (48, 31)),
  ],
)
def test_sides_are_detectron2s(sides, size, expected):
  """Shorter side of `size`, longer one of 4 times that at most, halves rounded upwards."""
  assert resized_sides(*sides, size) == expected


def test_sides_are_multiples():
  assert resized_sides(30, 64, 0, 4) == (32, 64)
  assert resized_sides(40, 56, 64, 4) == (64, 88)
  assert resized_sides(1, 9, 0, 4) == (4, 8)


def test_an_image_is_pils():
  image = RNG.integers(0, 256, (30, 41, 3), np.uint8)
  for size, sides in ((60, (82, 60)), (20, (27, 20))):
    expected = np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized_image(image, size), expected)
  assert resized_image(image, 0) is image
