"""Accuracy and calibration of a classifier.

Shapes: B images, N classes, E embedding, S confidence bins.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Float, Int
import numpy as np
import scipy.special

from pomp_jax.errors import RunError
from pomp_jax.files.terminal import steps_of
from pomp_jax.inference.hierarchy import Hierarchy, TreeTally

# Confidence bins, as in Guo et al. (2017).
N_BINS = 15
# Scores that `topk_accuracy` computes at a time: 4 MB.
_CHUNK_SCORES = 2**20
# Two-sided 95% quantile of the standard normal distribution.
_QUANTILE = float(scipy.special.ndtri(0.975))

# Figures as JSON values: "images", their number, "top1", "top5", .. as fractions, and
# "top1_interval", the ends of the 95% interval.
Accuracy = dict[str, int | float | list[float]]


class EvaluationError(RunError, RuntimeError):
  """A failed evaluation; the message is one line."""


def check_finite(features_nxE: Float[np.ndarray, "n E"], items: str) -> None:
  """Checks that features are finite.

  Args:
    features_nxE: one row an item.
    items: plural name of the items, for the message.

  Raises:
    EvaluationError: some rows are not finite.
  """
  broken = int(np.sum(~np.isfinite(features_nxE).all(axis=-1)))
  if broken:
    raise EvaluationError(
      f"{broken} of {len(features_nxE)} {items} have features that are not finite: the CLIP's"
      " weights or the prompt are broken, or too large for config.clip.dtype"
    )


def ranks(
  scores_BxN: Float[np.ndarray, "B N"] | Float[jax.Array, "B N"],
  labels_B: Int[np.ndarray, " B"] | Int[jax.Array, " B"],
) -> Int[np.ndarray, " B"] | Int[jax.Array, " B"]:
  """Counts the other classes that score at least as high as the right one; rank 0 is right.

  Ties count against the right class. A row with a score that is not finite has rank N: comparisons
  with NaN are false, and a broken classifier would count as right.

  Args:
    scores_BxN: scores of NumPy or JAX; higher is likelier.
    labels_B: right classes.
  """
  xp = scores_BxN.__array_namespace__()
  true_Bx1 = xp.take_along_axis(scores_BxN, labels_B[:, None], axis=1)
  rank_B = xp.sum(scores_BxN >= true_Bx1, axis=1) - 1
  return xp.where(xp.all(xp.isfinite(scores_BxN), axis=1), rank_B, scores_BxN.shape[1])


def topk_accuracy(
  image_features_BxE: Float[np.ndarray, "B E"],
  class_features_NxE: Float[np.ndarray, "N E"],
  labels_B: Int[np.ndarray, " B"],
  ks: Sequence[int] = (1, 5),
  chunk: int = 0,
) -> Accuracy:
  """Computes the share of images whose class is among the k most similar.

  Ties count as wrong: a constant classifier scores 0.

  Args:
    image_features_BxE: unit rows.
    class_features_NxE: unit rows.
    labels_B: right classes.
    ks: values of k.
    chunk: images scored at a time; 0: as many as keep their scores in a processor's cache.

  Returns:
    {"images": n, "top1": .., "top1_interval": [low, high], "top5": ..}; the interval is
    `wilson_interval`'s.
  """
  return accuracy_of_scores(
    lambda part: image_features_BxE[part] @ class_features_NxE.T,
    labels_B,
    ks,
    chunk or max(_CHUNK_SCORES // len(class_features_NxE), 16),
  )


def accuracy_of_scores(
  scores: Callable[[slice], Float[np.ndarray, "b N"]],
  labels_B: Int[np.ndarray, " B"],
  ks: Sequence[int] = (1, 5),
  chunk: int = 512,
) -> Accuracy:
  """Computes `topk_accuracy` of any classifier.

  An image with a score that is not finite counts as wrong for every k.

  Args:
    scores: function that returns the scores of a slice of the images over all classes.
    labels_B: right classes.
    ks: values of k.
    chunk: images scored at a time.
  """
  rank_B = np.empty(len(labels_B), np.int64)
  n_classes = 0
  for start in steps_of(range(0, len(labels_B), chunk), "scoring", "parts"):
    part = slice(start, start + chunk)
    scores_BxN = scores(part)
    n_classes = scores_BxN.shape[1]
    rank_B[part] = ranks(scores_BxN, labels_B[part])
  figures: Accuracy = {"images": len(labels_B)}
  for k in ks:
    # Rank N (not finite) is wrong even where k > N.
    figures[f"top{k}"] = float(np.mean(rank_B < min(k, n_classes)))
    if k == 1:
      figures["top1_interval"] = wilson_interval(figures["top1"], len(labels_B))
  return figures


def wilson_interval(share: float, n: int) -> list[float]:
  """Returns the ends of the 95% interval of a share counted in n independent trials.

  Wilson's score interval (1927): within [0, 1], and not empty at 0 and 1. It covers the choice of
  the images only; for the spread over training seeds see the `repeat` job.

  Args:
    share: fraction between 0 and 1.
    n: number of trials.

  Raises:
    ValueError: n is below 1.
  """
  if n < 1:
    raise ValueError(f"an interval needs at least 1 trial, got {n}")
  z2_over_n = _QUANTILE**2 / n
  centre = (share + z2_over_n / 2) / (1 + z2_over_n)
  reach = np.sqrt(z2_over_n * (share * (1 - share) + z2_over_n / 4)) / (1 + z2_over_n)
  # At 0 and 1 an end equals the share up to rounding.
  return [float(max(min(centre - reach, share), 0.0)), float(min(max(centre + reach, share), 1.0))]


class Answers(NamedTuple):
  """Answers of a classifier to B images.

  Attributes:
    rank: rank of the right class (see `ranks`).
    answer: answered class: the right one at rank 0, else the most similar other class.
    confidence: probability of the most similar class.
  """

  rank: Int[np.ndarray, " B"]
  answer: Int[np.ndarray, " B"]
  confidence: Float[np.ndarray, " B"]


class Tally:
  """Counts over a data set, batch by batch, and the figures computed from them."""

  def __init__(self, n_classes: int, hierarchy: Hierarchy | None = None):
    """Starts with zero images.

    Args:
      n_classes: N.
      hierarchy: relations of the N classes, for figures on the tree.

    Raises:
      ValueError: the hierarchy has another number of classes.
    """
    if hierarchy is not None and len(hierarchy) != n_classes:
      raise ValueError(f"{n_classes} classes, but a hierarchy of {len(hierarchy)}")
    self._images_N = np.zeros(n_classes, np.int64)
    self._top1_N = np.zeros(n_classes, np.int64)
    self._top5 = 0
    self._bins = np.zeros((3, N_BINS))  # images, right answers, sum of the confidence
    self._tree = None if hierarchy is None else TreeTally(hierarchy)

  def add(self, labels_B: Int[np.ndarray, " B"], answers: Answers) -> None:
    """Counts the answers to some images.

    Args:
      labels_B: right classes.
      answers: answers to the same images.

    Raises:
      EvaluationError: a confidence is not finite, as are the features behind it.
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
    """Returns all figures as JSON values; shares are fractions of 1.

    `macro_top1` is the mean accuracy of the classes that have images. `ece` is the expected
    calibration error, sum_s n_s / n |accuracy_s - confidence_s| over N_BINS bins of equal width
    (Guo et al., "On Calibration of Modern Neural Networks", 2017). For "errors" and "hierarchy" see
    `TreeTally`.

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
    """Returns images and accuracy of each class; NaN for a class without images."""
    images_N = self._images_N
    top1_N = np.where(images_N > 0, self._top1_N / np.maximum(images_N, 1), np.nan)
    return images_N, top1_N


def confidence_bins(confidence_B: Float[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
  """Returns the bin s of each confidence, (s / S, (s + 1) / S]; 0 is in the first bin."""
  return np.digitize(confidence_B.astype(np.float64), np.arange(1, N_BINS) / N_BINS, right=True)
