"""Detections of an image: their selection by non-maximum suppression, and COCO's rows
of them.

Boxes are x0, y0, x1, y1 in pixels; the ends are exclusive.
Shapes: R regions of an image, C classes, D detections.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float, Float32, Int
import numpy as np

from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.masks import hard_masks, run_lengths_of
from pomp_jax.rooms.regions.region_folder import Regions

# Detections of an image that count: of each class for COCO, of all classes together for
# LVIS.
MAX_DETECTIONS = {"coco": 100, "lvis": 300}


class Detections(NamedTuple):
  """Boxes of one image with a score and a class each."""

  boxes: Float32[np.ndarray, "D 4"]
  scores: Float32[np.ndarray, " D"]
  classes: Int[np.ndarray, " D"]
  # COCO's run lengths; None: boxes alone
  masks: Sequence[Mapping[str, Any]] | None = None


def iou(
  boxes_Rx4: Float[np.ndarray, "R 4"], others_Dx4: Float[np.ndarray, "D 4"]
) -> Float[np.ndarray, "R D"]:
  """Intersection over union of every two boxes; 0 for two without area."""
  low = np.maximum(boxes_Rx4[:, None, :2], others_Dx4[:, :2])
  high = np.minimum(boxes_Rx4[:, None, 2:], others_Dx4[:, 2:])
  intersection_RxD = np.maximum(high - low, 0).prod(axis=-1)
  areas_R, areas_D = (
    (b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes_Rx4, others_Dx4)
  )
  union_RxD = areas_R[:, None] + areas_D - intersection_RxD
  return intersection_RxD / np.where(union_RxD > 0, union_RxD, 1)


def select_detections(
  boxes_Rx4: Float[np.ndarray, "R 4"],
  scores_RxC: Float[np.ndarray, "R C"],
  *,
  min_score: float = 0.02,
  max_iou: float = 0.5,
  top: int = 300,
) -> tuple[Int[np.ndarray, " D"], Int[np.ndarray, " D"], Float[np.ndarray, " D"]]:
  """Regions, classes and scores of an image's detections, the `top` highest scores in
  their order.

  For each class greedy non-maximum suppression: from the highest score above
  `min_score` down, a region is dropped that overlaps a kept one by a larger IoU than
  `max_iou`. A region may be detected as several classes. The defaults are Detic's on
  LVIS.
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
    # a box without area overlaps nothing
    left_CxR[np.arange(len(best)), best] = -np.inf
  regions, classes = np.nonzero(kept_RxC)
  order = np.argsort(-scores_RxC[kept_RxC], kind="stable")[:top]
  return regions[order], classes[order], scores_RxC[kept_RxC][order]


def detections_of(
  found: Regions,
  scores_RxC: Float[np.ndarray, "R C"],
  sides: Sequence[int],
  detect: fields.Detect,
  mask_threshold: float,
  most: int,
) -> Detections:
  """Selects the detections of an image, with their masks of these sides if the regions
  have some.

  `most` counts where `detect.top` is 0.
  """
  rows, classes, scores = select_detections(
    found.boxes,
    scores_RxC,
    min_score=detect.min_score,
    max_iou=detect.nms,
    top=detect.top or most,
  )
  masks = None
  if found.masks is not None:
    # Each region once, though it may be detected as several classes.
    used, number_D = np.unique(rows, return_inverse=True)
    height, width = sides
    hard = hard_masks(found.masks[used], height, width, mask_threshold)
    encoded = [run_lengths_of(mask_HxW) for mask_HxW in hard]
    masks = [encoded[number] for number in number_D]
  return Detections(
    found.boxes[rows], scores.astype(np.float32), classes.astype(np.int32), masks
  )


def result_rows(
  image_id: int, category_ids: Int[np.ndarray, " C"], detections: Detections
) -> list[dict[str, Any]]:
  """Detections of an image as rows of a COCO results file.

  `category_ids` has the id of each class's category; detections of a class with -1 are
  dropped.
  """
  rows = []
  for d, box in enumerate(detections.boxes.astype(float)):
    category = int(category_ids[detections.classes[d]])
    if category < 0:
      continue
    corner, size = box[:2], box[2:] - box[:2]
    row: dict[str, Any] = {"image_id": image_id, "category_id": category}
    row |= {
      "bbox": [*corner.tolist(), *size.tolist()],
      "score": float(detections.scores[d]),
    }
    if detections.masks is not None:
      row["segmentation"] = detections.masks[d]
    rows.append(row)
  return rows
