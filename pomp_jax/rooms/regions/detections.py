"""Detections of an image: non-maximum suppression, and COCO's rows of what it keeps.

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

# Most detections of an image that count: of each class for COCO, of all classes
# together for LVIS.
MAX_DETECTIONS = {"coco": 100, "lvis": 300}


class Detections(NamedTuple):
  """Boxes of one image, each with a score and a class."""

  boxes: Float32[np.ndarray, "D 4"]
  scores: Float32[np.ndarray, " D"]
  classes: Int[np.ndarray, " D"]
  # COCO's run lengths; None for boxes alone.
  masks: Sequence[Mapping[str, Any]] | None = None


class Selected(NamedTuple):
  """Detections of an image that non-maximum suppression keeps, by falling score."""

  regions: Int[np.ndarray, " D"]  # number of each detection's region
  classes: Int[np.ndarray, " D"]
  scores: Float[np.ndarray, " D"]


def iou(
  boxes_Rx4: Float[np.ndarray, "R 4"], others_Dx4: Float[np.ndarray, "D 4"]
) -> Float[np.ndarray, "R D"]:
  """Computes the intersection over union of each two boxes; 0 if neither has area."""
  low = np.maximum(boxes_Rx4[:, None, :2], others_Dx4[:, :2])
  high = np.minimum(boxes_Rx4[:, None, 2:], others_Dx4[:, 2:])
  intersection_RxD = np.maximum(high - low, 0).prod(axis=-1)
  union_RxD = _areas(boxes_Rx4)[:, None] + _areas(others_Dx4) - intersection_RxD
  return intersection_RxD / np.where(union_RxD > 0, union_RxD, 1)


def _areas(boxes_Rx4: np.ndarray) -> np.ndarray:
  return (boxes_Rx4[:, 2:] - boxes_Rx4[:, :2]).prod(axis=1)


def select_detections(
  boxes_Rx4: Float[np.ndarray, "R 4"],
  scores_RxC: Float[np.ndarray, "R C"],
  *,
  min_score: float = 0.02,
  max_iou: float = 0.5,
  top: int = 300,
) -> Selected:
  """Selects an image's detections by greedy non-maximum suppression of each class.

  Regions are kept from the highest score down, unless they overlap a region that is
  kept already. A region may be detected as several classes. The defaults are Detic's on
  LVIS.

  Args:
    boxes_Rx4: boxes of the regions.
    scores_RxC: scores of the regions under each class.
    min_score: score that a detection must exceed.
    max_iou: largest IoU of two detections of a class.
    top: largest number of detections; those of the highest scores are kept.
  """
  overlap_RxR = iou(boxes_Rx4, boxes_Rx4) > max_iou
  kept_RxC = np.zeros(scores_RxC.shape, bool)
  # Scores of the regions that are left in each class; -inf for a region that is kept,
  # dropped or below the smallest score. Each turn keeps one region of every class.
  left_CxR = np.where(scores_RxC > min_score, scores_RxC, -np.inf).T
  classes = np.arange(len(left_CxR))
  while left_CxR.size:
    best = left_CxR.argmax(axis=1)
    has_any = np.isfinite(left_CxR[np.arange(len(best)), best])
    best = best[has_any]
    classes = classes[has_any]
    left_CxR = left_CxR[has_any]
    kept_RxC[best, classes] = True
    left_CxR[overlap_RxR[best]] = -np.inf
    # Mark the kept regions too: a box without area does not overlap itself.
    left_CxR[np.arange(len(best)), best] = -np.inf
  regions, classes = np.nonzero(kept_RxC)
  scores = scores_RxC[regions, classes]
  order = np.argsort(-scores, kind="stable")[:top]
  return Selected(regions[order], classes[order], scores[order])


def detections_of(
  regions: Regions,
  scores_RxC: Float[np.ndarray, "R C"],
  sides: Sequence[int],
  detect: fields.Detect,
  mask_threshold: float,
  most: int,
) -> Detections:
  """Selects the detections of an image, with masks if the regions have some.

  Args:
    regions: regions of the image.
    scores_RxC: scores of the regions under each class.
    sides: height and width of the masks in pixels.
    detect: settings of the selection.
    mask_threshold: probability above which a pixel is inside a mask.
    most: largest number of detections if `detect.top` is 0.
  """
  selected = select_detections(
    regions.boxes,
    scores_RxC,
    min_score=detect.min_score,
    max_iou=detect.nms,
    top=detect.top or most,
  )
  masks_D = None
  if regions.masks is not None:
    # Encode each region once, though it may be detected as several classes.
    distinct, index_in_distinct_D = np.unique(selected.regions, return_inverse=True)
    height, width = sides
    masks = hard_masks(regions.masks[distinct], height, width, mask_threshold)
    rles = [run_lengths_of(mask_HxW) for mask_HxW in masks]
    masks_D = [rles[index] for index in index_in_distinct_D]
  return Detections(
    boxes=regions.boxes[selected.regions],
    scores=selected.scores.astype(np.float32),
    classes=selected.classes.astype(np.int32),
    masks=masks_D,
  )


def result_rows(
  image_id: int, category_ids: Int[np.ndarray, " C"], detections: Detections
) -> list[dict[str, Any]]:
  """Converts the detections of an image to rows of a COCO results file.

  Args:
    image_id: id of the image.
    category_ids: id of each class's category, or -1 for a class that is no category,
      whose detections are dropped.
    detections: detections of the image.

  Returns:
    A dict for each detection, ready for JSON. Boxes are x, y, width, height in pixels.
  """
  rows = []
  for number, box in enumerate(detections.boxes.tolist()):
    label = detections.classes[number]
    category_id = int(category_ids[label])
    if category_id < 0:
      continue
    x0, y0, x1, y1 = box
    row: dict[str, Any] = {
      "image_id": image_id,
      "category_id": category_id,
      "bbox": [x0, y0, x1 - x0, y1 - y0],
      "score": float(detections.scores[number]),
    }
    if detections.masks is not None:
      row["segmentation"] = detections.masks[number]
    rows.append(row)
  return rows
