"""Accuracy and calibration of a classifier.

Shapes: B images, N classes, C classes that have images, E embedding, S confidence bins.
"""

from collections.abc import Sequence
from typing import Any, overload

import jax
from jaxtyping import Bool, Float, Int
import numpy as np
import scipy.special

from pomp_jax.errors import RunError

# Confidence bins, as in Guo et al. (2017).
N_BINS = 15
# Two-sided 95% quantile of the standard normal distribution.
_QUANTILE = float(scipy.special.ndtri(0.975))

# Keys: "images", their number; "top1", "top5" and so on, fractions; "macro_top1"; and
# "top1_interval", both ends of the 95% interval.
Accuracy = dict[str, Any]


class EvaluationError(RunError, RuntimeError):
  """A failed evaluation; the message is one line."""


def check_finite(features_nxE: Float[np.ndarray, "n E"], items: str) -> None:
  """Raises EvaluationError if rows have values that are not finite; `items` is the word
  for rows in the message."""
  broken = int(np.sum(~np.isfinite(features_nxE).all(axis=-1)))
  if broken:
    raise EvaluationError(
      f"{broken} of {len(features_nxE)} {items} have features that are not finite: the CLIP's"
      " weights or the prompt are broken, or too large for config.clip.dtype"
    )


@overload
def ranks(
  scores_BxN: Float[np.ndarray, "B N"], labels_B: Int[np.ndarray, " B"]
) -> Int[np.ndarray, " B"]: ...


@overload
def ranks(
  scores_BxN: Float[jax.Array, "B N"], labels_B: Int[jax.Array, " B"]
) -> Int[jax.Array, " B"]: ...


def ranks(
  scores_BxN: Float[np.ndarray, "B N"] | Float[jax.Array, "B N"],
  labels_B: Int[np.ndarray, " B"] | Int[jax.Array, " B"],
) -> Int[np.ndarray, " B"] | Int[jax.Array, " B"]:
  """Counts the other classes that score at least as high as the right one; rank 0 is
  right.

  Ties count against the right class. A row with a score that is not finite gets rank N:
  comparisons with NaN are false, so that the row would otherwise count as right.
  """
  xp = scores_BxN.__array_namespace__()
  true_Bx1 = xp.take_along_axis(scores_BxN, labels_B[:, None], axis=1)
  # Subtract 1: the right class scores as high as itself.
  rank_B = xp.sum(scores_BxN >= true_Bx1, axis=1) - 1
  is_finite_B = xp.all(xp.isfinite(scores_BxN), axis=1)
  return xp.where(is_finite_B, rank_B, scores_BxN.shape[1])


def accuracy_of_ranks(
  rank_B: Int[np.ndarray, " B"],
  n_classes: int,
  ks: Sequence[int] = (1, 5),
  labels_B: Int[np.ndarray, " B"] | None = None,
) -> Accuracy:
  """Computes accuracies from the ranks of the images' own classes; see `ranks`.

  Args:
    rank_B: rank of each image's own class, 0 for the most similar one.
    n_classes: number of classes N.
    ks: the k of each top-k accuracy.
    labels_B: class of each image, for `macro_top1`; None leaves it out.

  Returns:
    `images`: number of images.
    `top1`, `top5` and so on, for each k: share of images whose class is among the k
      most similar classes.
    `top1_interval`, if k = 1 is asked for: see `wilson_interval`.
    `macro_top1`, with `labels_B`: mean of the top-1 accuracies of the classes that have
      images.
    All but `images` are within [0, 1].
  """
  n_images = len(rank_B)
  accuracy: Accuracy = {"images": n_images}
  if labels_B is not None:
    is_right_B = rank_B == 0
    accuracy["macro_top1"] = float(class_weights(labels_B) @ is_right_B)
  for k in ks:
    # Limit k to N: rank N means that scores are not finite, and never counts as right.
    top_k = float(np.mean(rank_B < min(k, n_classes)))
    accuracy[f"top{k}"] = top_k
    if k == 1:
      accuracy["top1_interval"] = wilson_interval(top_k, n_images)
  return accuracy


def wilson_interval(share: float, n: int) -> list[float]:
  """Computes Wilson's score interval (1927) of a share, at 95%.

  With z the normal quantile, the centre is (p + z^2/2n) / (1 + z^2/n) and the half
  width sqrt(z^2/n (p (1-p) + z^2/4n)) / (1 + z^2/n).

  The interval covers only the choice of the images. The job `repeat` measures the
  spread over training seeds.

  Args:
    share: p, within [0, 1].
    n: independent trials in which the share was counted, 1 or more.

  Returns:
    Lower and upper end, within [0, 1]. The ends differ even at a share of 0 or 1.
  """
  z2_over_n = _QUANTILE**2 / n
  centre = (share + z2_over_n / 2) / (1 + z2_over_n)
  variance = z2_over_n * (share * (1 - share) + z2_over_n / 4)
  half_width = np.sqrt(variance) / (1 + z2_over_n)
  # Rounding must not put the share, which may be 0 or 1, outside of its interval.
  low = min(centre - half_width, share)
  high = max(centre + half_width, share)
  return [float(max(low, 0.0)), float(min(high, 1.0))]


def paired_difference(gained: int, lost: int, n: int) -> dict[str, Any]:
  """Compares the accuracies of two classifiers on the same images.

  Only images that exactly one of the classifiers has right enter the difference.

  Args:
    gained: number of images that the first classifier alone has right.
    lost: number of images that the second alone has right.
    n: number of all images.

  Returns:
    `top1`: accuracy of the first classifier minus that of the second.
    `interval`: both ends of the 95% interval of Agresti & Min (2005): Wald's interval
      after half an image is added to each of the four cells, right or wrong under the
      first and the second classifier.
    `p_value`: p-value of McNemar's exact test, two-sided.
    `gained` and `lost`: the arguments.
  """
  # If the classifiers are equally good, each image that only one has right is the
  # first's with probability 1/2.
  fewer = min(gained, lost)
  one_sided = scipy.special.bdtr(fewer, gained + lost, 0.5)
  return {
    "top1": (gained - lost) / n,
    "interval": _paired_interval(gained, lost, n),
    # Twice the tail exceeds 1 if `gained` equals `lost`.
    "p_value": float(min(2 * one_sided, 1.0)),
    "gained": gained,
    "lost": lost,
  }


def _paired_interval(
  gained: int | float, lost: int | float, n: int | float
) -> list[float]:
  """Agresti and Min's 95% interval of (gained - lost) / n; see `paired_difference`."""
  total = n + 2
  gained_share = (gained + 0.5) / total
  lost_share = (lost + 0.5) / total
  centre = gained_share - lost_share
  reach = _QUANTILE * np.sqrt((gained_share + lost_share - centre**2) / total)
  return [float(max(centre - reach, -1.0)), float(min(centre + reach, 1.0))]


def class_weights(labels_B: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
  """Weight of each image in a mean over classes; the weights add up to 1.

  An image weighs 1 / (C * number of images in its class).
  """
  _, class_B, images_C = np.unique(labels_B, return_inverse=True, return_counts=True)
  return 1 / (len(images_C) * images_C[class_B])


def paired_difference_over_classes(
  first_B: Bool[np.ndarray, " B"],
  second_B: Bool[np.ndarray, " B"],
  labels_B: Int[np.ndarray, " B"],
) -> dict[str, Any]:
  """Compares two classifiers on the same images by the mean accuracy of the classes.

  The interval is that of `paired_difference` with weighted counts. Image i counts its
  weight w_i (`class_weights`) times the effective number of images, 1 / sum w_i^2
  (Kish, 1965). If all classes have the same number of images, the result is the
  interval over the images.

  Args:
    first_B: whether the first classifier is right about each image.
    second_B: whether the second classifier is right about each image.
    labels_B: class of each image.

  Returns:
    `macro_top1`: mean accuracy of the first classifier minus that of the second.
    `interval`: both ends of the 95% interval of `macro_top1`.
    `gained` and `lost`: numbers of images that only the first, or only the second, has
      right.
  """
  weight_B = class_weights(labels_B)
  n_effective = 1 / np.sum(weight_B**2)
  is_gained_B = first_B & ~second_B
  is_lost_B = second_B & ~first_B
  gained_share = float(weight_B @ is_gained_B)
  lost_share = float(weight_B @ is_lost_B)
  interval = _paired_interval(
    gained_share * n_effective, lost_share * n_effective, n_effective
  )
  return {
    "macro_top1": gained_share - lost_share,
    "interval": interval,
    "gained": int(is_gained_B.sum()),
    "lost": int(is_lost_B.sum()),
  }


class Reliability:
  """Accuracy beside confidence in N_BINS bins of equal width, added batch by batch.

  The expected calibration error is sum_s n_s / n |accuracy_s - confidence_s|, with n_s
  of the n images in bin s (Guo et al., "On Calibration of Modern Neural Networks",
  2017).
  """

  def __init__(self) -> None:
    self._images_S = np.zeros(N_BINS, np.int64)
    self._right_S = np.zeros(N_BINS, np.int64)
    self._confidence_S = np.zeros(N_BINS)

  def add(
    self, confidence_B: Float[np.ndarray, " B"], right_B: Bool[np.ndarray, " B"]
  ) -> None:
    """Counts the answers to B images.

    Args:
      confidence_B: probability of each answer, 0 to 1.
      right_B: whether each answer is right.
    """
    bin_B = confidence_bins(confidence_B)
    self._images_S += np.bincount(bin_B, minlength=N_BINS)
    self._right_S += np.bincount(bin_B[right_B], minlength=N_BINS)
    self._confidence_S += np.bincount(bin_B, confidence_B.astype(np.float64), N_BINS)

  def figures(self) -> dict[str, Any]:
    """Returns the calibration error, the mean confidence and the bins."""
    n_images = self._images_S.sum()
    gaps_S = np.abs(self._right_S - self._confidence_S)
    # Divide an empty bin by 1, so that its accuracy and confidence are 0.
    divisor_S = np.maximum(self._images_S, 1)
    return {
      "ece": float(gaps_S.sum() / n_images),
      "mean_confidence": float(self._confidence_S.sum() / n_images),
      "reliability": {
        "images": self._images_S.tolist(),
        "accuracy": (self._right_S / divisor_S).tolist(),
        "confidence": (self._confidence_S / divisor_S).tolist(),
      },
    }


class Tally:
  """Counts of a classifier's answers over a data set, added batch by batch.

  `more` is a counter of other figures of the same answers, or None. A counter has
  `add(labels_B, answers_B, right_B)` and `figures()`, as those of `hooks.TREE_ERRORS`.
  """

  def __init__(self, n_classes: int, more: Any = None):
    self._images_N = np.zeros(n_classes, np.int64)
    self._top1_N = np.zeros(n_classes, np.int64)
    self._top5 = 0
    self._reliability = Reliability()
    self._wrong: list[np.ndarray] = []  # class * N + answer of each error
    # images that only this classifier, and that only the reference, has right
    self._pairs: tuple[int, int] | None = None
    self._more = more

  def add(
    self,
    labels_B: Int[np.ndarray, " B"],
    rank_B: Int[np.ndarray, " B"],
    answer_B: Int[np.ndarray, " B"],
    confidence_B: Float[np.ndarray, " B"],
    reference_B: Bool[np.ndarray, " B"] | None = None,
  ) -> None:
    """Counts the answers to B images.

    Args:
      labels_B: class of each image.
      rank_B: rank of each image's class, see `ranks`.
      answer_B: the right class if its rank is 0, else the most similar other class.
      confidence_B: probability of the most similar class, 0 to 1.
      reference_B: whether the reference, another classifier, has each image right, for
        the difference of the two classifiers; None for no comparison.

    Raises:
      EvaluationError: a confidence that is not finite.
    """
    broken = int(np.sum(~np.isfinite(confidence_B)))
    if broken:
      raise EvaluationError(
        f"{broken} of {len(labels_B)} images have similarities that are not finite"
      )
    n_classes = len(self._images_N)
    right_B = rank_B == 0
    wrong_B = rank_B != 0
    self._images_N += np.bincount(labels_B, minlength=n_classes)
    self._top1_N += np.bincount(labels_B[right_B], minlength=n_classes)
    self._top5 += int(np.sum(rank_B < min(5, n_classes)))
    error_classes = labels_B[wrong_B].astype(np.int64)
    self._wrong.append(error_classes * n_classes + answer_B[wrong_B])
    if reference_B is not None:
      gained, lost = self._pairs or (0, 0)
      gained += int(np.sum(right_B & ~reference_B))
      lost += int(np.sum(wrong_B & reference_B))
      self._pairs = (gained, lost)
    self._reliability.add(confidence_B, right_B)
    if self._more is not None:
      self._more.add(labels_B, answer_B, right_B)

  def figures(self) -> dict[str, Any]:
    """Returns all figures as JSON values; shares are fractions of 1.

    `macro_top1` is the mean accuracy of the classes that have images. `Reliability`
    defines `ece`, the mean confidence and the reliability diagram.
    """
    n_images = int(self._images_N.sum())
    has_images_N = self._images_N > 0
    n_right = self._top1_N.sum()
    accuracy_of_classes = self._top1_N[has_images_N] / self._images_N[has_images_N]
    figures = {
      "images": n_images,
      "classes": len(has_images_N),
      "classes_with_images": int(has_images_N.sum()),
      "top1": float(n_right / n_images),
      "top1_interval": wilson_interval(n_right / n_images, n_images),
      "top5": self._top5 / n_images,
      "macro_top1": float(np.mean(accuracy_of_classes)),
      **self._reliability.figures(),
    }
    if self._pairs is not None:
      gained, lost = self._pairs
      figures["difference"] = paired_difference(gained, lost, n_images)
    if self._more is not None:
      figures |= self._more.figures()
    return figures

  def by_class(self, most: int = 2500) -> dict[str, Any]:
    """Returns images and accuracy of each class, and the `most` most frequent errors.

    An error is [class, answer, number of images]. The accuracy of a class without
    images is NaN.
    """
    images_N = self._images_N
    accuracy_N = self._top1_N / np.maximum(images_N, 1)
    top1_N = np.where(images_N > 0, accuracy_N, np.nan)
    pairs, counts = np.unique(np.concatenate(self._wrong), return_counts=True)
    most_frequent = np.argsort(-counts, kind="stable")[:most]
    classes, answers = np.divmod(pairs[most_frequent], len(images_N))
    confusions = np.stack([classes, answers, counts[most_frequent]], axis=1)
    return {
      "per_class": {"images": images_N, "top1": top1_N},
      "confusions": confusions.tolist(),
    }


def confidence_bins(confidence_B: Float[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
  """Bin of each confidence; bin s is (s / S, (s + 1) / S], and bin 0 also holds 0."""
  return np.digitize(
    confidence_B.astype(np.float64), np.arange(1, N_BINS) / N_BINS, right=True
  )
