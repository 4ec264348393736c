"""Pictures that show nothing but look like photographs to an encoder of files."""

import io

import numpy as np
from PIL import Image


def natural_image(seed: int, height: int, width: int) -> Image.Image:
  """Returns RGB noise of every octave, 0.7 times as strong at each finer one."""
  rng = np.random.default_rng(seed)
  total = np.zeros((height, width, 3), np.float32)
  longer = max(height, width)
  cells, strength = 4, 1.0
  while cells < longer:
    shape = (height * cells // longer + 1, width * cells // longer + 1)
    for channel in range(3):
      noise = Image.fromarray(rng.normal(size=shape).astype(np.float32))
      noise = noise.resize((width, height), Image.Resampling.BICUBIC)
      total[..., channel] += strength * np.asarray(noise)
    cells, strength = 2 * cells, strength * 0.7
  low, high = np.percentile(total, (0.5, 99.5))
  levels = np.clip((total - low) / (high - low), 0, 1) * 255
  return Image.fromarray(levels.astype(np.uint8))


def encode(image: Image.Image, form: str = "JPEG", **options) -> bytes:
  """Encodes an image file; a JPEG has quality 90 by default."""
  file = io.BytesIO()
  image.save(file, form, **({"quality": 90} if form == "JPEG" else {}) | options)
  return file.getvalue()
