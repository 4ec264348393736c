"""Images decoded and augmented a second by one core, beside torchvision's own transforms."""

import io

import numpy as np
from PIL import Image


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
