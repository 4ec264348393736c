"""Masks of regions at other sizes, one at a time, and as COCO's run lengths.

A hundred masks of a large picture would be gigabytes.
Shapes: R regions of an image, H, W its sides in pixels, h, w sides of a mask's grid.
"""

from collections.abc import Iterator
import math
from typing import Any

from faster_coco_eval.core import mask as mask_api
from jaxtyping import Bool, Num
import numpy as np
from PIL import Image

# What stands for probability 1 in masks of each type. In 16 bits small masks, too, decide the class
# of a pixel that has no others.
ONE = {np.bool_: 1, np.uint8: 255, np.float16: 2**15}


def hard_masks(
  masks: Num[np.ndarray, "R h w"] | Bool[np.ndarray, "R h w"],
  height: int,
  width: int,
  threshold: float,
) -> Iterator[Bool[np.ndarray, "H W"]]:
  """Yields each mask at another size: torch's bilinear `interpolate` without antialiasing.

  Args:
    masks: soft or hard masks.
    height: new height, pixels.
    width: new width.
    threshold: probability above which a pixel is inside.
  """
  same = masks.shape[1:] == (height, width)
  threshold *= ONE[masks.dtype.type]
  for mask in masks:
    if not same:
      yield _bilinear(mask, height, width) > threshold
    elif masks.dtype == np.uint8:
      yield mask > math.floor(threshold)  # compared as integers
    else:
      yield mask > threshold


def run_lengths_of(mask_HxW: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
  """A mask as in COCO's results: {"size": [H,W], "counts": ".."}."""
  rle = mask_api.encode(np.asfortranarray(mask_HxW, np.uint8))
  return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def _bilinear(mask_hxw: np.ndarray, height: int, width: int) -> np.ndarray:
  rows, columns = mask_hxw.shape
  # Four neighbours of each pixel's centre. PIL's `resize` would average when it reduces.
  step = (columns / width, 0.0, 0.0, 0.0, rows / height, 0.0)
  image = Image.fromarray(mask_hxw.astype(np.float32))
  return np.asarray(
    image.transform((width, height), Image.Transform.AFFINE, step, Image.Resampling.BILINEAR)
  )
