"""Image source `synthetic`: JPEGs of realistic size that show nothing, for dry runs
and tests."""

import functools
import io

import numpy as np
from PIL import Image

from pomp_jax.config.fields import Data
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.source import StoredImages

_HEIGHT, _WIDTH = 375, 500  # pixels, a common size in ImageNet
_N_DIFFERENT = 16
_TEST_IMAGES_PER_CLASS = 5


def splits(data: Data) -> tuple[str, ...]:
  """All three splits."""
  return ("train", "validation", "test")


def open_split(data: Data, split: str) -> StoredImages:
  """Opens a split: `data.images_per_class` images of each class of `data.names` in
  train."""
  count = data.images_per_class if split == "train" else _TEST_IMAGES_PER_CLASS
  names = load_class_list(data.names).names
  labels = np.repeat(np.arange(len(names)), count)
  return StoredImages(
    names, labels, [f"synthetic/{row}" for row in range(len(labels))], _Jpegs()
  )


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
  """RGB noise with structure at every scale, as in photographs.

  Smooth noise of every octave, 0.7 times as strong at each finer one: a JPEG of 500 x
  375 pixels and quality 90 has 48 kB.
  """
  rng = np.random.default_rng(seed)
  total_HxWx3 = np.zeros((height, width, 3), np.float32)
  longer = max(height, width)
  cells, strength = 4, 1.0
  while cells < longer:
    shape = (height * cells // longer + 1, width * cells // longer + 1)
    for channel in range(3):
      noise = Image.fromarray(rng.normal(size=shape).astype(np.float32))
      noise = noise.resize((width, height), Image.Resampling.BICUBIC)
      total_HxWx3[..., channel] += strength * np.asarray(noise)
    cells, strength = 2 * cells, strength * 0.7
  low, high = np.percentile(total_HxWx3, (0.5, 99.5))
  levels = np.clip((total_HxWx3 - low) / (high - low), 0, 1) * 255
  return Image.fromarray(levels.astype(np.uint8))


def encode(image: Image.Image, form: str = "JPEG", **options) -> bytes:
  """Encodes an image file; a JPEG has quality 90 by default."""
  file = io.BytesIO()
  image.save(file, form, **({"quality": 90} if form == "JPEG" else {}) | options)
  return file.getvalue()
