"""Boxes: of masks, their overlap, and the selection of detections by non-maximum suppression.

Boxes are x0, y0, x1, y1 in pixels; the ends are exclusive.
Shapes: R regions of an image, C classes, D detections.
"""

from collections.abc import Iterable
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np


class Detections(NamedTuple):
  """Regions of the detections of an image with class and score, the highest score first."""

  regions: Int[np.ndarray, " D"]
  classes: Int[np.ndarray, " D"]
  scores: Float[np.ndarray, " D"]


def boxes_of_masks(masks: Iterable[Bool[np.ndarray, "H W"]]) -> Float[np.ndarray, "R 4"]:
  """The tight box of each of R masks; zeros for an empty one."""
  boxes = []
  for mask_HxW in masks:
    rows, columns = (np.flatnonzero(mask_HxW.any(axis=axis)) for axis in (1, 0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if rows.size else [0] * 4
    boxes.append(box)
  return np.array(boxes, np.float32).reshape(-1, 4)


def iou(
  boxes_Rx4: Float[np.ndarray, "R 4"], others_Dx4: Float[np.ndarray, "D 4"]
) -> Float[np.ndarray, "R D"]:
  """Intersection over union of every two boxes; 0 for two without area."""
  low = np.maximum(boxes_Rx4[:, None, :2], others_Dx4[:, :2])
  high = np.minimum(boxes_Rx4[:, None, 2:], others_Dx4[:, 2:])
  intersection_RxD = np.maximum(high - low, 0).prod(axis=-1)
  areas_R, areas_D = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes_Rx4, others_Dx4))
  union_RxD = areas_R[:, None] + areas_D - intersection_RxD
  return intersection_RxD / np.where(union_RxD > 0, union_RxD, 1)


def select_detections(
  boxes_Rx4: Float[np.ndarray, "R 4"],
  scores_RxC: Float[np.ndarray, "R C"],
  *,
  min_score: float = 0.02,
  max_iou: float = 0.5,
  top: int = 300,
) -> Detections:
  """Selects an image's detections, `top` at most; the defaults are Detic's on LVIS.

  For each class greedy non-maximum suppression: from the highest score above `min_score` down, a
  region is dropped that overlaps a kept one by a larger IoU than `max_iou`. A region may be
  detected as several classes.
  """
  overlap_RxR = iou(boxes_Rx4, boxes_Rx4) > max_iou
  kept_RxC = np.zeros(scores_RxC.shape, bool)
  left_CxR = np.where(scores_RxC > min_score, scores_RxC, -np.inf).T
  classes = np.arange(len(left_CxR))
  while left_CxR.size:
    # The best region left of every class.
    best = left_CxR.argmax(axis=1)
    found = np.isfinite(left_CxR[np.arange(len(best)), best])
    best, classes, left_CxR = best[found], classes[found], left_CxR[found]
    kept_RxC[best, classes] = True
    left_CxR[overlap_RxR[best]] = -np.inf
    left_CxR[np.arange(len(best)), best] = -np.inf  # a box without area overlaps nothing
  regions, classes = np.nonzero(kept_RxC)
  order = np.argsort(-scores_RxC[kept_RxC], kind="stable")[:top]
  return Detections(regions[order], classes[order], scores_RxC[kept_RxC][order])
