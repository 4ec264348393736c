"""Masks of regions and images at other sizes; boxes and COCO's run lengths of masks.

A hundred masks of a large picture would be gigabytes, so they are yielded one at a
time. Shapes: R regions of an image, H, W its sides in pixels, h, w sides of a mask's
grid.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from faster_coco_eval.core import mask as mask_api
from jaxtyping import Bool, Float, Num, UInt8
import numpy as np
from PIL import Image

# Probability 1 in masks of each type. In 16 bits small masks, too, decide a pixel
# without others.
ONE = {np.bool_: 1, np.uint8: 255, np.float16: 2**15}
# Longest side of a resized image, as a multiple of the shorter side that is asked for.
# ZSSeg's INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST are 640 and 2,560 for COCO-Stuff, 512
# and 2,048 elsewhere.
_MOST = 4


def hard_masks(
  masks: Num[np.ndarray, "R h w"] | Bool[np.ndarray, "R h w"],
  height: int,
  width: int,
  threshold: float,
) -> Iterator[Bool[np.ndarray, "H W"]]:
  """Yields each soft or hard mask at H x W: torch's bilinear `interpolate` without
  antialiasing.

  `threshold` is the probability above which a pixel is inside.
  """
  rows, columns = masks.shape[1:]
  # Four neighbours of each pixel's centre. PIL's `resize` would average when it
  # reduces.
  step = (columns / width, 0.0, 0.0, 0.0, rows / height, 0.0)
  threshold *= ONE[masks.dtype.type]
  for mask in masks:
    if (rows, columns) != (height, width):
      soft = Image.fromarray(mask.astype(np.float32))
      how = Image.Transform.AFFINE, step, Image.Resampling.BILINEAR
      yield np.asarray(soft.transform((width, height), *how)) > threshold
    else:
      yield mask > threshold


def boxes_of_masks(
  masks: Iterable[Bool[np.ndarray, "H W"]],
) -> Float[np.ndarray, "R 4"]:
  """The tight box x0, y0, x1, y1 of each of R masks, ends exclusive; zeros for an
  empty one."""
  boxes = []
  for mask_HxW in masks:
    rows, columns = (np.flatnonzero(mask_HxW.any(axis=axis)) for axis in (1, 0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if rows.size else [0] * 4
    boxes.append(box)
  return np.array(boxes, np.float32).reshape(-1, 4)


def run_lengths_of(mask_HxW: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
  """A mask as in COCO's results: {"size": [H,W], "counts": ".."}."""
  rle = mask_api.encode(np.asfortranarray(mask_HxW, np.uint8))
  return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def resized_sides(
  height: int, width: int, size: int, multiple: int = 1
) -> tuple[int, int]:
  """Height and width of an image whose shorter side becomes `size`, as in detectron2;
  0: as it is.

  If the longer side would exceed 4 times `size`, both are smaller; they divide by
  `multiple`.
  """
  sides = sorted((height, width))
  scale = min(size / sides[0], _MOST * size / sides[1]) if size else 1.0
  rows, columns = (
    max(1, int(scale * side / multiple + 0.5)) for side in (height, width)
  )
  return multiple * rows, multiple * columns


def resized_image(
  image_HxWx3: UInt8[np.ndarray, "H W 3"], size: int, multiple: int = 1
) -> UInt8[np.ndarray, "_ _ 3"]:
  """The image with the sides of `resized_sides`, bilinear with antialiasing, as in
  detectron2."""
  old_height, old_width, _ = image_HxWx3.shape
  height, width = resized_sides(old_height, old_width, size, multiple)
  if (height, width) == (old_height, old_width):
    return image_HxWx3
  return np.asarray(
    Image.fromarray(image_HxWx3).resize((width, height), Image.Resampling.BILINEAR)
  )
