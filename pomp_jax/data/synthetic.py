"""Images and data sets that are made up: of true sizes and cost, with nothing on them.

To measure what a run will take before its data is there, and to test with.
"""

from collections.abc import Sequence
import functools
import io

import numpy as np
from PIL import Image

from pomp_jax.data.source import StoredImages

# Pixels, as many photographs of ImageNet have.
_HEIGHT, _WIDTH = 375, 500
_N_DIFFERENT = 16


def open_synthetic(
  names: Sequence[str], images_per_class: int, image_size: int = 224
) -> StoredImages:
  """So many JPEGs of each class, which show nothing of it.

  Args:
    names: the classes.
    images_per_class: how many of each.
    image_size: S, of what `images` gives, pixels.
  """
  labels = np.repeat(np.arange(len(names)), images_per_class)
  keys = np.char.add("made-up/", np.arange(len(labels)).astype(str))
  return StoredImages(names, labels, keys, _Jpegs(), image_size=image_size)


class _Jpegs:
  """A few pictures in turn, as a `Storage`."""

  def read(self, row: int, key: str) -> bytes:
    """One of them."""
    return _jpeg(row % _N_DIFFERENT)

  def where(self, row: int, key: str) -> str:
    """What to call it."""
    return key


@functools.cache
def _jpeg(seed: int) -> bytes:
  return encode(natural_image(seed, _HEIGHT, _WIDTH))


def natural_image(seed: int, height: int, width: int) -> Image.Image:
  """A picture with structure at every scale, as photographs have it: RGB.

  Smooth noise of every octave, 0.7 times as strong at each finer one: a JPEG of
  500 x 375 pixels and quality 90 has 48 kB.
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
  """The bytes of an image file; a JPEG has quality 90 if the options don't say another."""
  file = io.BytesIO()
  image.save(file, form, **({"quality": 90} if form == "JPEG" else {}) | options)
  return file.getvalue()
