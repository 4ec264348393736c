"""Figures of a classifier, from counts that grow image by image: nothing of an image is kept.

Shapes: B images of a batch, N classes, S bins.
"""

from typing import Any, NamedTuple

from jaxtyping import Float, Int
import numpy as np
import scipy.special

from pomp_jax.errors import RunError
from pomp_jax.inference.hierarchy import Hierarchy

# Bins of the confidence, as Guo et al. (2017) and those after them have it.
N_BINS = 15


# Figures of a classifier on some images, as JSON holds them: "top1", "top5", .. as fractions,
# "images", how many they are, and "top1_interval", the ends of its 95% interval.
Accuracy = dict[str, int | float | list[float]]

# Of the standard normal distribution, two-sided: 95%.
_QUANTILE = float(scipy.special.ndtri(0.975))


class EvaluationError(RunError, RuntimeError):
  """An evaluation that failed; the message is one line."""


class Answers(NamedTuple):
  """What a classifier says about some images.

  Attributes:
    rank: of the right class, `classification.ranks`.
    answer: the class that is answered: the right one at rank 0, else the most similar of the rest.
    confidence: probability of the most similar class.
  """

  rank: Int[np.ndarray, " B"]
  answer: Int[np.ndarray, " B"]
  confidence: Float[np.ndarray, " B"]


class Tally:
  """Counts over a data set, and the figures that follow from them."""

  def __init__(self, n_classes: int, hierarchy: Hierarchy | None = None):
    """Nothing is counted yet.

    Args:
      n_classes: N.
      hierarchy: of the N classes; without it there are no figures on the tree.

    Raises:
      ValueError: the hierarchy has another number of classes.
    """
    if hierarchy is not None and len(hierarchy) != n_classes:
      raise ValueError(f"{n_classes} classes, but a hierarchy of {len(hierarchy)}")
    self._images_N = np.zeros(n_classes, np.int64)
    self._top1_N = np.zeros(n_classes, np.int64)
    self._top5 = 0
    self._bins = np.zeros((3, N_BINS))  # images, right ones, sum of the confidence
    self._tree = None if hierarchy is None else _TreeTally(hierarchy)

  def add(self, labels_B: Int[np.ndarray, " B"], answers: Answers) -> None:
    """Counts some images.

    Args:
      labels_B: the right classes.
      answers: on the same images.

    Raises:
      EvaluationError: a confidence is not finite: so are the features that it comes from.
    """
    if not np.isfinite(answers.confidence).all():
      raise EvaluationError(
        f"{int(np.sum(~np.isfinite(answers.confidence)))} of {len(labels_B)} images have"
        " similarities that are not finite"
      )
    n_classes = len(self._images_N)
    right_B = answers.rank == 0
    self._images_N += np.bincount(labels_B, minlength=n_classes)
    self._top1_N += np.bincount(labels_B[right_B], minlength=n_classes)
    self._top5 += int(np.sum(answers.rank < min(5, n_classes)))
    bin_B = confidence_bins(answers.confidence)
    for row, weight_B in enumerate((None, right_B, answers.confidence.astype(np.float64))):
      self._bins[row] += np.bincount(bin_B, weight_B, N_BINS)
    if self._tree is not None:
      self._tree.add(labels_B, answers.answer, right_B)

  def figures(self) -> dict[str, Any]:
    """Everything that follows, as JSON holds it; shares are fractions of 1.

    `top1_interval` is `wilson_interval`'s. `macro_top1` is the mean of the accuracies of the
    classes that have images. `ece` is the expected calibration error, sum_s n_s / n |accuracy_s -
    confidence_s| over N_BINS bins of equal width (Guo et al., "On Calibration of Modern Neural
    Networks", 2017). The rest: `_TreeTally`.

    Raises:
      ValueError: no image was counted.
    """
    n = int(self._images_N.sum())
    if not n:
      raise ValueError("no image was counted")
    seen = self._images_N > 0
    images_S, right_S, confidence_S = self._bins
    figures = {
      "images": n,
      "classes": len(seen),
      "classes_with_images": int(seen.sum()),
      "top1": float(self._top1_N.sum() / n),
      "top1_interval": wilson_interval(self._top1_N.sum() / n, n),
      "top5": self._top5 / n,
      "macro_top1": float(np.mean(self._top1_N[seen] / self._images_N[seen])),
      "ece": float(np.abs(right_S - confidence_S).sum() / n),
      "mean_confidence": float(confidence_S.sum() / n),
      "reliability": {
        "images": images_S.astype(np.int64).tolist(),
        "accuracy": (right_S / np.maximum(images_S, 1)).tolist(),
        "confidence": (confidence_S / np.maximum(images_S, 1)).tolist(),
      },
    }
    return figures if self._tree is None else figures | self._tree.figures()

  def per_class(self) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Images of each class, and the share of them that is right: NaN for a class without any."""
    images_N = self._images_N
    top1_N = np.where(images_N > 0, self._top1_N / np.maximum(images_N, 1), np.nan)
    return images_N, top1_N


class _TreeTally:
  """Counts of how near the wrong answers are.

  errors
    `sibling` share of the errors that fall on a class with a parent in common, `sibling_chance`
              the share if an error fell on any other class alike, `distance` share of the errors
              by edges between the right class and the answer, `mean_distance` their mean
  hierarchy
    `top1`            right, or one of class and answer is a kind of the other
    `ancestor_height` mean height of the lowest common ancestor, 0 where the answer is right; over
                      the errors alone `ancestor_height_of_errors`
    `at_depth`        of the images whose class is at least so deep, the share whose answer is of
                      the same kind at that depth; the flat top-1 is the limit at the class itself
  """

  def __init__(self, hierarchy: Hierarchy):
    self._hierarchy = hierarchy
    n_depths = int(hierarchy.depth.max()) + 1
    # The way from one node to another goes through the root at most.
    self._distance = np.zeros(2 * n_depths, np.int64)
    self._depth_images = np.zeros(n_depths, np.int64)
    self._depth_right = np.zeros(n_depths, np.int64)
    self._images = self._errors = self._siblings = self._kin = self._height = 0
    self._sibling_chance = 0.0

  def add(self, labels_B: np.ndarray, answers_B: np.ndarray, right_B: np.ndarray) -> None:
    found = self._hierarchy.relations(labels_B, answers_B)
    wrong_B = ~right_B
    self._images += len(labels_B)
    self._errors += int(wrong_B.sum())
    self._siblings += int(found.sibling[wrong_B].sum())
    n_others = max(len(self._hierarchy) - 1, 1)
    self._sibling_chance += self._hierarchy.n_siblings[labels_B[wrong_B]].sum() / n_others
    self._kin += int(found.kin.sum())
    self._height += int(found.ancestor_height.sum())
    self._distance += np.bincount(found.distance[wrong_B], minlength=len(self._distance))
    n_depths = len(self._depth_images)
    self._depth_images += _at_least(self._hierarchy.depth[labels_B], n_depths)
    self._depth_right += _at_least(found.ancestor_depth, n_depths)

  def figures(self) -> dict[str, Any]:
    n, errors = self._images, max(self._errors, 1)
    edges = np.arange(len(self._distance))
    shares = {str(d): self._distance[d] / errors for d in edges if self._distance[d]}
    return {
      "errors": {
        "images": self._errors,
        "sibling": self._siblings / errors,
        "sibling_chance": self._sibling_chance / errors,
        "mean_distance": float((edges * self._distance).sum() / errors),
        "distance": shares,
      },
      "hierarchy": {
        "top1": self._kin / n,
        "ancestor_height": self._height / n,
        "ancestor_height_of_errors": self._height / errors,
        "at_depth": {
          str(depth): right / images
          for depth, (right, images) in enumerate(
            zip(self._depth_right, self._depth_images, strict=True)
          )
          if depth and images
        },
      },
    }


def confidence_bins(confidence_B: Float[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
  """The bin (s / S, (s + 1) / S] of each confidence; 0 falls into the first."""
  bins_B = np.ceil(confidence_B.astype(np.float64) * N_BINS).astype(np.int64) - 1
  return np.clip(bins_B, 0, N_BINS - 1)


def wilson_interval(share: float, n: int) -> list[float]:
  """The ends of the 95% interval of a share that was counted in n independent trials.

  Of the images alone: what another draw of so many images from the same population may give. Luck
  in training is another matter, see the `repeat` job. Wilson's score interval (1927), which stays
  within [0, 1] and is not empty at 0 and 1.

  Args:
    share: between 0 and 1.
    n: trials.

  Raises:
    ValueError: no trial.
  """
  if n < 1:
    raise ValueError(f"an interval needs at least 1 trial, got {n}")
  z2_over_n = _QUANTILE**2 / n
  centre = (share + z2_over_n / 2) / (1 + z2_over_n)
  reach = np.sqrt(z2_over_n * (share * (1 - share) + z2_over_n / 4)) / (1 + z2_over_n)
  # At 0 and 1 an end is the share itself, but for rounding.
  return [float(max(min(centre - reach, share), 0.0)), float(min(max(centre + reach, share), 1.0))]


def harmonic_mean(base: float, new: float) -> float:
  """2 b n / (b + n); 0 if both are."""
  return 2 * base * new / (base + new) if base + new else 0.0


def _at_least(values_B: np.ndarray, n: int) -> np.ndarray:
  """How many values are at least 0, 1, .., n - 1."""
  return np.bincount(values_B, minlength=n)[::-1].cumsum()[::-1]
