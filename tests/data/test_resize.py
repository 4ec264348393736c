"""Crops resized by vector instructions, against the definition in float64, and Pillow."""

import numpy as np
from PIL import Image
import pytest

from pomp_jax.data import images
from pomp_jax.data.images import resized_crop
from pomp_jax.data.synthetic import natural_image


def weights(start, end, length, size):
  """How much each of `length` pixels adds to each of `size`: Keys' cubic, stretched to shrink."""
  scale = (end - start) / size
  stretch = max(scale, 1)
  centres = start + (np.arange(size)[:, None] + 0.5) * scale
  x = np.abs(np.arange(length) + 0.5 - centres) / stretch
  near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  w = np.where(x < 1, near, np.where(x < 2, far, 0))
  return w / w.sum(1, keepdims=True)


def defined(image, box, size):
  """The box alone, resized in float64."""
  left, top = int(box[0]), int(box[1])
  right, bottom = -int(-box[2] // 1), -int(-box[3] // 1)
  pixels = np.asarray(image).astype(float)[top:bottom, left:right]
  across = weights(box[0] - left, box[2] - left, right - left, size)
  down = weights(box[1] - top, box[3] - top, bottom - top, size)
  return np.clip(np.einsum("yh,hwc,xw->yxc", down, pixels, across, optimize=True), 0, 255)


def boxes(width, height, count):
  rng = np.random.default_rng(0)
  for i in range(count):
    w, h = rng.integers(1, width), rng.integers(1, height)
    left, top = rng.integers(0, width - w), rng.integers(0, height - h)
    # Of a JPEG decoded at an eighth, a box may start and end anywhere.
    shift = rng.integers(0, 8, 2) / 8 if i % 2 else (0, 0)
    x, y = left + shift[0], top + shift[1]
    yield float(x), float(y), float(x + w), float(y + h)


@pytest.mark.parametrize("installed", [True, False])
def test_resizing_is_what_its_definition_says(installed, monkeypatch):
  assert images.RESIZER == "cykooz"
  if not installed:
    monkeypatch.setattr(images, "Resizer", None)
  image = natural_image(0, 150, 200)
  for box in boxes(200, 150, 40):
    found = np.asarray(resized_crop(image, box, 32))
    assert np.abs(found - defined(image, box, 32)).max() < 2, box


def test_where_overshoots_are_cut_it_errs_as_pillow_does(monkeypatch):
  noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
  image = Image.fromarray(noise)
  errors = {}
  for name in ("cykooz", "pillow"):
    if name == "pillow":
      monkeypatch.setattr(images, "Resizer", None)
    errors[name] = np.mean(
      [
        np.abs(np.asarray(resized_crop(image, box, 32)) - defined(image, box, 32)).mean()
        for box in boxes(200, 150, 40)
      ]
    )
  assert errors["cykooz"] < 1.1 * errors["pillow"] < 1
