"""Features of regions, on one device or several, against torch: cut out, resized, encoded."""

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.encoder import Encoder
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.rooms.regions.crops import CropSettings
from pomp_jax.rooms.regions.features import RegionEncoder
from pomp_jax.rooms.regions.opened import open_region_encoder
from tests.support.checks import assert_close
from tests.support.clips import pooled
from tests.support.small_run import settings

pytestmark = pytest.mark.mesh

SIZES = ((40, 50), (33, 64), (70, 20), (40, 50))
BOXES = (
  [[3, 4, 30, 30], [0, 0, 50, 40], [49, 39, 50, 40]],
  [],
  [[2, 3, 20, 70], [5, 5, 9, 9]],
  [[10, 10, 11, 40]],
)
FILL = (120.0, 110.0, 100.0)


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def masks():
  rng = np.random.default_rng(1)
  return [rng.random((len(b), *s)) < 0.8 for b, s in zip(BOXES, SIZES, strict=True)]


def _boxes():
  return [np.array(boxes, np.float32).reshape(-1, 4) for boxes in BOXES]


def _expected(clip_and_torch, images, masks=None, boxes_of_images=BOXES, fill=FILL):
  clip, model = clip_and_torch
  mean, std = (torch.tensor(values)[:, None, None] for values in (clip.mean, clip.std))
  results = []
  for number, (image, boxes) in enumerate(zip(images, boxes_of_images, strict=True)):
    rows = [np.zeros((0, clip.config.projection_dim))]
    for region, (x0, y0, x1, y1) in enumerate(boxes):
      pixels = image.astype(np.float32)
      if masks is not None:
        pixels = np.where(masks[number][region][..., None], pixels, np.float32(fill))
      cut = torch.as_tensor(pixels[y0:y1, x0:x1]).permute(2, 0, 1)[None]
      resized = functional.interpolate(cut, size=(32, 32), mode="bicubic")
      with torch.no_grad():
        features = pooled(model.get_image_features((resized / 255 - mean) / std))
      rows.append(functional.normalize(features).numpy())
    results.append(np.concatenate(rows))
  return results


@pytest.mark.parametrize("n_devices, chunk, n_images", [(8, 64, 16), (1, 2, 16), (2, 4, 1)])
def test_features_equal_torchs(clip_and_torch, images, masks, n_devices, chunk, n_images):
  mesh = make_mesh(1, jax.devices()[:n_devices])
  regions = RegionEncoder(
    Encoder(clip_and_torch[0], mesh=mesh),
    CropSettings(32, FILL),
    chunk=chunk,
    n_images=n_images,
    bucket=32,
  )
  for given in (None, masks):
    found = regions.features(images, _boxes(), given)
    for one, expected in zip(found, _expected(clip_and_torch, images, given), strict=True):
      np.testing.assert_allclose(one, expected, rtol=0, atol=1e-5)


def test_regions_without_pixels_have_rows_of_zeros(clip_and_torch, images, masks):
  regions = RegionEncoder(Encoder(clip_and_torch[0]), CropSettings(32, FILL))
  boxes, empty = _boxes(), [mask.copy() for mask in masks]
  boxes[0][1] = [60, 0, 70, 10]
  empty[0][2] = False
  found = regions.features(images, boxes, empty)
  np.testing.assert_array_equal(found[0].any(axis=1), [True, False, False])
  assert_close(found[0][0], _expected(clip_and_torch, images, masks)[0][0])


def test_a_masked_crop_is_expanded_as_its_field_says(clip_and_torch, images, masks):
  """Twice the box of 10 x 41 about (15, 30.5), cut at the image; CLIP's mean outside the mask."""
  clip, _ = clip_and_torch
  regions = open_region_encoder(settings(**{"regions.expand": 2.0}).regions, Encoder(clip))
  found = regions.features(images[2:3], [np.array([[10, 10, 20, 51]], np.float32)], [masks[2][:1]])
  fill = 255 * np.array(clip.mean)
  expected = _expected(clip_and_torch, images[2:3], masks[2:3], [[[5, 0, 20, 70]]], fill)
  np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
