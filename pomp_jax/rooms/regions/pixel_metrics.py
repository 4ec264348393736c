"""Figures of semantic segmentation, counted image by image.

Shapes: H, W sides of an image in pixels, C classes.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
import numpy as np

from pomp_jax.report.harmonic_mean import harmonic_mean


class PixelTally:
  """Pixel counts of each class over a data set.

  `counts` [3,C] has the pixels of each class in the truth, in the prediction, and in
  both. The counts of parts of a data set can be added.
  """

  def __init__(self, n_classes: int, counts: Int[np.ndarray, "3 C"] | None = None):
    """Starts with given counts, or with zeros for `n_classes` classes."""
    self.counts = np.zeros((3, n_classes), np.int64) if counts is None else counts

  def add(
    self, labels_HxW: Int[np.ndarray, "H W"], predicted_HxW: Int[np.ndarray, "H W"]
  ) -> None:
    """Counts one image.

    Pixels with a negative label are ignored. A negative prediction is wrong.
    """
    valid = labels_HxW >= 0
    labels = labels_HxW[valid]
    predicted = predicted_HxW[valid]
    right = labels[labels == predicted]
    predicted = predicted[predicted >= 0]
    n_classes = self.counts.shape[1]
    for row, classes in enumerate((labels, predicted, right)):
      self.counts[row] += np.bincount(classes, minlength=n_classes)

  def per_class(self) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Returns IoU and accuracy of each class, NaN for a class that the truth lacks.

    IoU = both / (truth + prediction - both), accuracy = both / truth.
    """
    truth_C, predicted_C, both_C = self.counts.astype(float)
    truth_C[truth_C == 0] = np.nan
    iou_C = both_C / (truth_C + predicted_C - both_C)
    accuracy_C = both_C / truth_C
    return iou_C, accuracy_C

  def figures(
    self, groups: Mapping[str, Int[np.ndarray, " n"]] | None = None
  ) -> dict[str, Any]:
    """Returns all figures as JSON values, fractions of 1; None if there is nothing to
    measure.

    - mIoU: sum of the IoU over classes in the truth / number of classes in the truth or
      the prediction, as detectron2 and ZSSeg report it. A class that is only predicted
      counts as 0.
    - mIoU_plain: mean of the IoU over classes in the truth.
    - mACC: mean of the accuracy over classes in the truth.
    - fwIoU: IoU weighted by the pixels of the truth; pACC: share of right pixels.
    - With the groups `base` and `novel`: hIoU = 2 b n / (b + n), where b and n are
      their mIoU, and hIoU_plain of their mIoU_plain.

    Each group has the same figures under its name. A pixel of a class outside the group
    counts, as a false positive, only if a class of the group is predicted there.
    """
    figures = self._figures(np.arange(self.counts.shape[1]))
    groups = groups or {}
    for name, classes in groups.items():
      figures[name] = self._figures(classes)
    if {"base", "novel"} <= set(groups):
      for kind in ("", "_plain"):
        base = figures["base"][f"mIoU{kind}"]
        novel = figures["novel"][f"mIoU{kind}"]
        figures[f"hIoU{kind}"] = _harmonic_mean(base, novel)
    return figures

  def _figures(self, classes: np.ndarray) -> dict[str, Any]:
    truth_C, predicted_C, both_C = self.counts[:, classes]
    iou_C, accuracy_C = self.per_class()
    iou_C = iou_C[classes]
    accuracy_C = accuracy_C[classes]
    n_truth = np.sum(truth_C > 0)
    n_either = np.sum(truth_C + predicted_C > 0)
    return {
      "classes": len(classes),
      "classes_in_truth": int(n_truth),
      "mIoU": _share(np.nansum(iou_C), n_either),
      "mIoU_plain": _share(np.nansum(iou_C), n_truth),
      "fwIoU": _share(np.nansum(iou_C * truth_C), truth_C.sum()),
      "mACC": _share(np.nansum(accuracy_C), n_truth),
      "pACC": _share(both_C.sum(), truth_C.sum()),
    }


def _share(part: np.number, whole: np.number) -> float | None:
  """part / whole; None if `whole` is 0, so that there is nothing to measure."""
  return float(part / whole) if whole else None


def _harmonic_mean(base: float | None, novel: float | None) -> float | None:
  """Harmonic mean; None if `base` or `novel` is None, 0 if one of them is 0."""
  if base is None or novel is None:
    return None
  return float(harmonic_mean(np.array([base, novel])))
