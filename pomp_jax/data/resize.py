"""A part of an image, resized (bicubic): Pillow's own result within rounding, six times as fast.

`cykooz-resizer` computes what Pillow does (the filter is stretched when an image shrinks, so that
nothing aliases) with the vector instructions of the processor, on Pillow's own images. Where it is
not installed, Pillow does it.
"""

import math

from PIL import Image

try:
  from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer

  # What Pillow calls bicubic: a = -0.5.
  _BICUBIC = ResizeAlg.convolution(FilterType.catmull_rom)
except ImportError:
  Resizer = None

# Which of the two: their results differ in rounding, so features of views depend on it.
RESIZER = "pillow" if Resizer is None else "cykooz"


def resized_crop(
  image: Image.Image, box: tuple[float, float, float, float], size: int
) -> Image.Image:
  """Cuts a box out of an RGB image and makes it S x S; no pixel outside it has any influence.

  Args:
    image: RGB.
    box: left, top, right, bottom in pixels; a fraction takes a pixel's share.
    size: S.
  """
  left, top = math.floor(box[0]), math.floor(box[1])
  part = image.crop((left, top, math.ceil(box[2]), math.ceil(box[3])))
  within = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
  if Resizer is None:
    return part.resize((size, size), Image.Resampling.BICUBIC, box=within)
  x, y, right, bottom = within
  options = ResizeOptions(_BICUBIC, crop_box=CropBox(x, y, right - x, bottom - y))
  result = Image.new("RGB", (size, size))
  # It keeps buffers, and is not to be shared by threads.
  Resizer().resize_pil(part, result, options)
  return result
