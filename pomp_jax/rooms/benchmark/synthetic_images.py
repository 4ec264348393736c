"""Image source `synthetic`: noise as JPEGs of realistic size, for dry runs, tests."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from pomp_jax.config.fields import Data
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.source import StoredImages

# A common size of ImageNet's images, in pixels.
_HEIGHT = 375
_WIDTH = 500
# Draw only a few pictures and repeat them: drawing takes longer than reading a file.
_N_DIFFERENT = 16
_TEST_IMAGES_PER_CLASS = 5


def splits(data: Data) -> tuple[str, ...]:
  """Returns all three splits."""
  return ("train", "validation", "test")


def open_split(data: Data, split: str) -> StoredImages:
  """Opens a split with images of the classes of `data.names`.

  The training split has `data.images_per_class` images of each class, and the other
  splits have five.
  """
  n_per_class = _TEST_IMAGES_PER_CLASS
  if split == "train":
    n_per_class = data.images_per_class
  names = load_class_list(data.names).names
  labels = np.repeat(np.arange(len(names)), n_per_class)
  keys = [f"synthetic/{row}" for row in range(len(labels))]
  return StoredImages(names, labels, keys, _Jpegs())


class _Jpegs:
  """Storage that repeats a few pictures."""

  def read(self, row: int, key: str) -> bytes:
    return _jpeg(row % _N_DIFFERENT)

  def where(self, row: int, key: str) -> str:
    return key


@functools.cache
def _jpeg(seed: int) -> bytes:
  return encode(natural_image(seed, _HEIGHT, _WIDTH))


def natural_image(seed: int, height: int, width: int) -> Image.Image:
  """Draws RGB noise with structure at every scale, as photographs have.

  The image is a sum of smooth noise of every octave. Each octave is 0.7 times as strong
  as the next coarser octave, so that a JPEG of 500 x 375 pixels and quality 90 has 48
  kB.

  Args:
    seed: random seed of the noise.
    height: height in pixels.
    width: width in pixels.
  """
  rng = np.random.default_rng(seed)
  total_HxWx3 = np.zeros((height, width, 3), np.float32)
  longer = max(height, width)
  n_cells = 4  # cells of the current octave along the longer side
  strength = 1.0
  while n_cells < longer:
    rows = height * n_cells // longer + 1
    columns = width * n_cells // longer + 1
    for channel in range(3):
      noise = rng.normal(size=(rows, columns)).astype(np.float32)
      smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
      total_HxWx3[..., channel] += strength * np.asarray(smooth)
    n_cells *= 2
    strength *= 0.7
  low, high = np.percentile(total_HxWx3, (0.5, 99.5))
  levels = np.clip((total_HxWx3 - low) / (high - low), 0, 1) * 255
  return Image.fromarray(levels.astype(np.uint8))


def encode(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
  """Encodes an image file; a JPEG has quality 90 by default."""
  if form == "JPEG":
    options.setdefault("quality", 90)
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()
