"""Masks of regions at other sizes, one at a time, and as COCO's run lengths.

A hundred masks of a large picture would be gigabytes.
Shapes: R regions of an image, H, W its sides in pixels, h, w sides of a mask's grid.
"""

from collections.abc import Iterator
import math
from typing import Any

from faster_coco_eval.core import mask as mask_api
from jaxtyping import Bool, UInt8
import numpy as np
from PIL import Image


def hard_masks(
  masks: UInt8[np.ndarray, "R h w"] | Bool[np.ndarray, "R h w"],
  height: int,
  width: int,
  threshold: float,
) -> Iterator[Bool[np.ndarray, "H W"]]:
  """Yields each mask at another size: torch's bilinear `interpolate` without antialiasing.

  Args:
    masks: 255 times the probability of each cell; or hard masks.
    height: new height, pixels.
    width: new width.
    threshold: probability above which a pixel is inside.
  """
  same = masks.shape[1:] == (height, width)
  highest = 1 if masks.dtype == bool else 255
  for mask in masks:
    if not same:
      yield _bilinear(mask, height, width) > highest * threshold
    elif masks.dtype == bool:
      yield mask
    else:
      yield mask > math.floor(highest * threshold)  # compared as integers


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
