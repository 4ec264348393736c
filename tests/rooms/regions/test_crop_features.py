"""Crops against torch's resize of the cut-out pixels; their features on one device
or several."""

import math

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.encoder import Encoder
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.rooms.regions import crop_features
from pomp_jax.rooms.regions.crop_features import (
  Cropping,
  RegionEncoder,
  crop_region,
  pixel_ranges,
)
from pomp_jax.rooms.regions.fields import Regions
from tests.support.checks import assert_close
from tests.support.clips import pooled

pytestmark = pytest.mark.mesh

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


def _torch(pixels, size=SIZE):
  """Torch's resize of [h,w,3] to a square."""
  channels = torch.as_tensor(np.asarray(pixels, np.float32)).permute(2, 0, 1)[None]
  resized = functional.interpolate(channels, size=(size, size), mode="bicubic")
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


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("expand", [1.0, 1.4])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_crops_equal_torchs_resize(image, box, expand, masked):
  """Of a box stretched to a square; pixels outside a mask are filled first, as in
  ZSSeg."""
  x0, y0, x1, y1 = box
  wider, higher = ((expand - 1) / 2 * side for side in (x1 - x0, y1 - y0))
  rows = slice(max(math.floor(y0 - higher), 0), math.ceil(y1 + higher))
  columns = slice(max(math.floor(x0 - wider), 0), math.ceil(x1 + wider))
  mask, seen = None, image
  if masked:
    mask = np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.6
    seen = np.where(mask[..., None], image, np.float32(FILL))
  found = _crop(image, box, Cropping(SIZE, FILL, expand), mask)
  np.testing.assert_allclose(found, _torch(seen[rows, columns]), rtol=0, atol=0.02)


@pytest.mark.parametrize(
  "box",
  [
    (10, 20, 50, 46),
    (0, 0, 8, 30),
    (70, 49, 90, 61),
    (11, 20, 50, 46),
    (10, 21, 49, 60),
  ],
)
def test_a_square_with_context_is_cut_at_the_border(image, box):
  x0, y0, x1, y1 = box
  side = round(1.4 * max(x1 - x0, y1 - y0))
  left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
  rows, columns = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
  settings = Cropping(SIZE, FILL, expand=1.4, square=True)
  found, expected = _crop(image, box, settings), _torch(image[rows, columns])
  np.testing.assert_allclose(found, expected, rtol=0, atol=0.02)


def test_ranges_hold_whole_pixels_inside_the_image():
  boxes = np.array(
    [[3.2, 4.9, 10.1, 11], [-5, -5, 200, 200], [20, 20, 20, 20], [95, 70, 99, 80]],
    np.float32,
  )
  found = pixel_ranges(boxes, HEIGHT, WIDTH, Cropping(SIZE))
  expected = [[3, 4, 11, 11], [0, 0, 90, 61], [20, 20, 21, 21], [89, 60, 90, 61]]
  np.testing.assert_array_equal(found, expected)


SIZES = ((40, 50), (33, 64), (70, 20), (40, 50))
REGIONS = (
  [[3, 4, 30, 30], [0, 0, 50, 40], [49, 39, 50, 40]],
  [],
  [[2, 3, 20, 70], [5, 5, 9, 9]],
  [[10, 10, 11, 40]],
)
FLOAT_BOXES = [np.array(boxes, np.float32).reshape(-1, 4) for boxes in REGIONS]


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def masks():
  rng = np.random.default_rng(1)
  return [rng.random((len(b), *s)) < 0.8 for b, s in zip(REGIONS, SIZES, strict=True)]


def _expected(clip_and_torch, images, masks=None):
  clip, model = clip_and_torch
  mean, std = (torch.tensor(values)[:, None, None] for values in (clip.mean, clip.std))
  results = []
  for number, (image, boxes) in enumerate(zip(images, REGIONS, strict=True)):
    rows = [np.zeros((0, clip.config.projection_dim))]
    for region, (x0, y0, x1, y1) in enumerate(boxes):
      pixels = image.astype(np.float32)
      if masks is not None:
        pixels = np.where(
          masks[number][region][..., None], pixels, 255 * np.float32(clip.mean)
        )
      resized = torch.as_tensor(_torch(pixels[y0:y1, x0:x1], 32)).permute(2, 0, 1)
      with torch.no_grad():
        features = pooled(
          model.get_image_features(((resized / 255 - mean) / std)[None])
        )
      rows.append(functional.normalize(features).numpy())
    results.append(np.concatenate(rows))
  return results


@pytest.mark.parametrize(
  "n_devices, chunk, n_images", [(8, 64, 16), (1, 2, 16), (2, 4, 1)]
)
def test_features_equal_torchs(
  clip_and_torch, images, masks, n_devices, chunk, n_images, monkeypatch
):
  for name, value in (("_CHUNK", chunk), ("_IMAGES", n_images), ("_BUCKET", 32)):
    monkeypatch.setattr(crop_features, name, value)
  mesh = make_mesh(1, jax.devices()[:n_devices])
  regions = RegionEncoder(Encoder(clip_and_torch[0], mesh=mesh), Regions())
  for given in (None, masks):
    found = regions.features(images, FLOAT_BOXES, given)
    for one, expected in zip(
      found, _expected(clip_and_torch, images, given), strict=True
    ):
      np.testing.assert_allclose(one, expected, rtol=0, atol=1e-5)


def test_regions_without_pixels_have_rows_of_zeros(clip_and_torch, images, masks):
  regions = RegionEncoder(Encoder(clip_and_torch[0]), Regions())
  boxes, empty = [*FLOAT_BOXES], [mask.copy() for mask in masks]
  boxes[0] = boxes[0].copy()
  boxes[0][1] = [60, 0, 70, 10]
  empty[0][2] = False
  found = regions.features(images, boxes, empty)
  np.testing.assert_array_equal(found[0].any(axis=1), [True, False, False])
  assert_close(found[0][0], _expected(clip_and_torch, images, masks)[0][0])
