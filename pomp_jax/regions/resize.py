"""Other sizes of images and of soft masks, as detectron2 and torch compute them.

Shapes: R regions of an image, H, W its sides in pixels, h, w sides of a mask's grid.
"""

from jaxtyping import Bool, Float32, UInt8
import numpy as np
from PIL import Image

# Longest side of a resized image, as a multiple of the shorter side that is asked for. ZSSeg's
# INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST are 640 and 2,560 for COCO-Stuff, 512 and 2,048 elsewhere.
_MOST = 4


def resized_sides(height: int, width: int, size: int, multiple: int = 1) -> tuple[int, int]:
  """Height and width of an image whose shorter side becomes `size`, as in detectron2.

  An image whose longer side would then exceed 4 times `size` becomes smaller.

  Args:
    height: its height, pixels.
    width: its width.
    size: shorter side afterwards; 0: the sides stay.
    multiple: number that the new sides are multiples of.
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


def resized_masks(
  masks: UInt8[np.ndarray, "R h w"] | Bool[np.ndarray, "R h w"], height: int, width: int
) -> Float32[np.ndarray, "R H W"]:
  """Soft masks 0..1 at another size: torch's bilinear `interpolate` without antialiasing.

  Args:
    masks: 255 times the probability of each cell; or hard masks.
    height: new height, pixels.
    width: new width.
  """
  resized = np.empty((len(masks), height, width), np.float32)
  scale = 1.0 if masks.dtype == bool else 255.0
  for own, mask in zip(resized, masks, strict=True):
    np.divide(_bilinear(mask, height, width), scale, out=own)
  return resized


def _bilinear(mask_hxw: np.ndarray, height: int, width: int) -> np.ndarray:
  rows, columns = mask_hxw.shape
  if (rows, columns) == (height, width):
    return mask_hxw.astype(np.float32)
  # Four neighbours of each pixel's centre. PIL's `resize` would average when it reduces.
  step = (columns / width, 0.0, 0.0, 0.0, rows / height, 0.0)
  image = Image.fromarray(mask_hxw.astype(np.float32))
  return np.asarray(
    image.transform((width, height), Image.Transform.AFFINE, step, Image.Resampling.BILINEAR)
  )
