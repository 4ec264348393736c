"""Other sizes of images, as detectron2 computes them.

Shapes: H, W the sides of an image in pixels.
"""

from jaxtyping import UInt8
import numpy as np
from PIL import Image

# Longest side of a resized image, as a multiple of the shorter side that is asked for. ZSSeg's
# INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST are 640 and 2,560 for COCO-Stuff, 512 and 2,048 elsewhere.
_MOST = 4


def resized_sides(height: int, width: int, size: int, multiple: int = 1) -> tuple[int, int]:
  """Height and width of an image whose shorter side becomes `size`, as in detectron2; 0: as it is.

  An image whose longer side would then exceed 4 times `size` becomes smaller. The new sides are
  multiples of `multiple`.
  """
  scale = size / min(height, width) if size else 1.0
  if size and scale * max(height, width) > _MOST * size:
    scale = _MOST * size / max(height, width)
  rows, columns = (max(1, int(scale * side / multiple + 0.5)) for side in (height, width))
  return multiple * rows, multiple * columns


def resized_image(
  image_HxWx3: UInt8[np.ndarray, "H W 3"], size: int, multiple: int = 1
) -> UInt8[np.ndarray, "_ _ 3"]:
  """The image with the sides of `resized_sides`, bilinear with antialiasing, as in detectron2."""
  height, width = resized_sides(*image_HxWx3.shape[:2], size, multiple)
  if (height, width) == image_HxWx3.shape[:2]:
    return image_HxWx3
  return np.asarray(Image.fromarray(image_HxWx3).resize((width, height), Image.Resampling.BILINEAR))
