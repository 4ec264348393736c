"""Resizes masks of regions, and images; boxes and COCO's run lengths of masks.

A hundred masks of a large picture would take gigabytes, so functions yield or take
masks one at a time. Shapes: R regions of an image, H, W its sides in pixels, h, w sides
of a mask's grid.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from faster_coco_eval.core import mask as mask_api
from jaxtyping import Bool, Float, Num, UInt8
import numpy as np
from PIL import Image

# Value of probability 1 in masks of each type. Network masks have sixteen bits, so that
# a faint mask still wins a pixel that no other mask covers.
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
  """Yields each mask resized to H x W, as bool.

  The interpolation is torch's bilinear `interpolate` without antialiasing.

  Args:
    masks: soft masks (see `ONE`) or hard masks.
    height: new height in pixels, H.
    width: new width in pixels, W.
    threshold: probability above which a pixel is inside.
  """
  rows, columns = masks.shape[1:]
  limit = threshold * ONE[masks.dtype.type]
  # Interpolate between the four neighbours of a pixel's centre, by an affine transform.
  # PIL's `resize` would average over more pixels when it reduces an image.
  transform = (columns / width, 0.0, 0.0, 0.0, rows / height, 0.0)
  for mask in masks:
    if (rows, columns) == (height, width):
      yield mask > limit
      continue
    soft = Image.fromarray(mask.astype(np.float32))
    soft = soft.transform(
      (width, height), Image.Transform.AFFINE, transform, Image.Resampling.BILINEAR
    )
    yield np.asarray(soft) > limit


def boxes_of_masks(
  masks: Iterable[Bool[np.ndarray, "H W"]],
) -> Float[np.ndarray, "R 4"]:
  """Tight box x0, y0, x1, y1 of each mask, ends exclusive; zeros for an empty mask."""
  boxes = []
  for mask_HxW in masks:
    rows = np.flatnonzero(mask_HxW.any(axis=1))
    columns = np.flatnonzero(mask_HxW.any(axis=0))
    if rows.size:
      boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    else:
      boxes.append([0, 0, 0, 0])
  return np.array(boxes, np.float32).reshape(-1, 4)


def run_lengths_of(mask_HxW: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
  """Encodes a mask as COCO's results do: {"size": [H,W], "counts": ".."}."""
  rle = mask_api.encode(np.asfortranarray(mask_HxW, np.uint8))
  return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def resized_sides(
  height: int, width: int, size: int, multiple: int = 1
) -> tuple[int, int]:
  """Height and width of an image whose shorter side becomes `size`, as in detectron2.

  If the longer side would exceed 4 * `size`, it becomes 4 * `size`, and the shorter
  side is smaller than `size`.

  Args:
    height: height of the image in pixels.
    width: width of the image in pixels.
    size: new shorter side; 0 for the image as it is.
    multiple: both new sides are multiples of this number.
  """
  shorter, longer = sorted((height, width))
  scale = 1.0
  if size:
    scale = min(size / shorter, _MOST * size / longer)
  n_rows = max(1, int(scale * height / multiple + 0.5))
  n_columns = max(1, int(scale * width / multiple + 0.5))
  return multiple * n_rows, multiple * n_columns


def resized_image(
  image_HxWx3: UInt8[np.ndarray, "H W 3"], size: int, multiple: int = 1
) -> UInt8[np.ndarray, "_ _ 3"]:
  """Resizes an image to `resized_sides` as detectron2 does.

  The samples are bilinear, with antialiasing.

  Args:
    image_HxWx3: image.
    size: new shorter side; 0 for the image as it is.
    multiple: both new sides are multiples of this number.

  Returns:
    The resized image, or the same array if its sides do not change.
  """
  old_height, old_width, _ = image_HxWx3.shape
  height, width = resized_sides(old_height, old_width, size, multiple)
  if (height, width) == (old_height, old_width):
    return image_HxWx3
  image = Image.fromarray(image_HxWx3)
  resized = image.resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(resized)
