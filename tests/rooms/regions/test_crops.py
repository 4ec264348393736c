"""Crops against torch's resize of the cut-out pixels."""

import math

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.rooms.regions.crops import CropSettings, crop_region, pixel_ranges

HEIGHT, WIDTH, SIZE = 61, 90, 24
_PROGRAM = jax.jit(crop_region, static_argnums=4)
FILL = (122.8, 116.7, 104.1)
BOXES = {
  "inner": (10, 20, 50, 47),
  "top left": (0, 0, 7, 30),
  "bottom right": (70, 50, 90, 61),
  "whole": (0, 0, 90, 61),
  "one pixel": (89, 60, 90, 61),
  "one row": (3, 8, 80, 9),
}


@pytest.fixture(scope="module")
def image():
  return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def _torch(pixels):
  """Torch's resize of [h,w,3] to a square."""
  channels = torch.as_tensor(np.asarray(pixels, np.float32)).permute(2, 0, 1)[None]
  resized = functional.interpolate(channels, size=(SIZE, SIZE), mode="bicubic")
  return resized[0].permute(1, 2, 0).numpy()


def _crop(image, box, settings, mask=None):
  """The image in a larger padded array."""
  padded = np.full((80, 96, 3), 255, np.uint8)
  padded[:HEIGHT, :WIDTH] = image
  if mask is not None:
    mask = np.pad(mask, ((0, 80 - HEIGHT), (0, 96 - WIDTH)), constant_values=True)
  (found,) = pixel_ranges(np.array([box], np.float32), HEIGHT, WIDTH, settings)
  shape = np.array([HEIGHT, WIDTH])
  return np.asarray(_PROGRAM(padded, shape, found, mask, settings))


def _assert_equal(found, expected):
  np.testing.assert_allclose(found, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("expand", [1.0, 1.4])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_crops_equal_torchs_resize(image, box, expand, masked):
  """Of a box stretched to a square; pixels outside a mask are filled first, as in ZSSeg."""
  x0, y0, x1, y1 = box
  wider, higher = ((expand - 1) / 2 * side for side in (x1 - x0, y1 - y0))
  rows = slice(max(math.floor(y0 - higher), 0), math.ceil(y1 + higher))
  columns = slice(max(math.floor(x0 - wider), 0), math.ceil(x1 + wider))
  mask, seen = None, image
  if masked:
    mask = np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.6
    seen = np.where(mask[..., None], image, np.float32(FILL))
  found = _crop(image, box, CropSettings(SIZE, FILL, expand), mask)
  _assert_equal(found, _torch(seen[rows, columns]))


def test_a_crop_of_an_empty_mask_is_the_fill(image):
  found = _crop(image, BOXES["inner"], CropSettings(SIZE, FILL), np.zeros((HEIGHT, WIDTH), bool))
  _assert_equal(found, np.broadcast_to(np.float32(FILL), found.shape))


@pytest.mark.parametrize(
  "box", [(10, 20, 50, 46), (0, 0, 8, 30), (70, 49, 90, 61), (11, 20, 50, 46), (10, 21, 49, 60)]
)
def test_a_square_with_context_is_cut_at_the_border(image, box):
  x0, y0, x1, y1 = box
  side = round(1.4 * max(x1 - x0, y1 - y0))
  left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
  rows, columns = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
  settings = CropSettings(SIZE, FILL, expand=1.4, square=True)
  _assert_equal(_crop(image, box, settings), _torch(image[rows, columns]))


def test_ranges_hold_whole_pixels_inside_the_image():
  boxes = np.array(
    [[3.2, 4.9, 10.1, 11], [-5, -5, 200, 200], [20, 20, 20, 20], [95, 70, 99, 80]], np.float32
  )
  found = pixel_ranges(boxes, HEIGHT, WIDTH, CropSettings(SIZE))
  expected = [[3, 4, 11, 11], [0, 0, 90, 61], [20, 20, 21, 21], [89, 60, 90, 61]]
  np.testing.assert_array_equal(found, expected)
