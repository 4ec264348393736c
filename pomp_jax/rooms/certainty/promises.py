"""A floor and sets of names with a promise: split conformal prediction.

The promise is a theorem for images that are exchangeable with the validation images:
drawn in the same way, and not looked at before. The promise holds on average over the
choice of the validation images. It says nothing of another rendering, camera or mix of
classes.

The floor is a lower quantile of the confidence of right answers. The sets are those of
Sadinle, Lei & Wasserman (2019), with one threshold for all classes or one per class, or
RAPS of Angelopoulos et al. (2021). RAPS is used without randomisation, and so covers at
least as much as with it.

Shapes: B images, N classes, S classes in a set.
"""

import math

from jaxtyping import Bool, Float, Int
import numpy as np

from pomp_jax.files.calibration import Sets

# RAPS's penalty for each rank after the free ranks.
PENALTY, FREE_RANKS = 0.01, 5


def floor_of(confidence_B: Float[np.ndarray, " B"], error: float) -> float | None:
  """The probability below which an answer is refused; None for too few right answers.

  A new right answer is below this floor with probability at most `error`.

  Args:
    confidence_B: probability of each right answer.
    error: share of right answers that may be refused, above 0 and below 1.
  """
  # 1e-9: a product that is a whole number may come out just below it.
  n_below = math.floor((len(confidence_B) + 1) * error + 1e-9)
  if n_below < 1:
    return None
  # The floor is the n-th smallest confidence, for n = n_below. A new right answer is
  # below it with probability at most n / (B + 1), which is at most `error`.
  return float(np.sort(confidence_B.astype(np.float64))[n_below - 1])


def least_right_answers(error: float) -> int:
  """Smallest number of right answers for which `floor_of` finds a floor."""
  return math.ceil(1 / error - 1 - 1e-9)


def threshold_of(scores_B: Float[np.ndarray, " B"], coverage: float) -> float | None:
  """The score that a new score does not exceed, with probability `coverage` or more.

  This is the ceil((B + 1) coverage)-th smallest score; None for too few scores.
  """
  n_within = math.ceil((len(scores_B) + 1) * coverage - 1e-9)
  if n_within > len(scores_B):
    return None
  return float(np.sort(scores_B.astype(np.float64))[n_within - 1])


def sets_of(
  kind: str,
  coverage: float,
  probability_B: Float[np.ndarray, " B"],
  mass_above_B: Float[np.ndarray, " B"],
  rank_B: Int[np.ndarray, " B"],
  labels_B: Int[np.ndarray, " B"],
) -> Sets | None:
  """Thresholds of sets with a stated coverage; None for too few images.

  With `classwise`, a class with enough images has its own threshold, and the other
  classes share one. The promise then holds for each class with its own threshold, and
  for the other classes together.

  Args:
    kind: one of `files.calibration.SETS`.
    coverage: share of images whose set is to hold the right class.
    probability_B: probability of the right class.
    mass_above_B: summed probability of the classes that are likelier.
    rank_B: number of classes that are likelier.
    labels_B: right classes.
  """
  if kind == "raps":
    scores_B = raps_scores(probability_B, mass_above_B, rank_B)
    threshold = threshold_of(scores_B, coverage)
    if threshold is None:
      return None
    return Sets(
      kind,
      coverage,
      threshold,
      penalty=PENALTY,
      free_ranks=FREE_RANKS,
    )
  scores_B = 1 - probability_B.astype(np.float64)
  of_class: dict[int, float] = {}
  rest_B = np.ones(len(labels_B), bool)
  if kind == "classwise":
    for label in np.unique(labels_B).tolist():
      of_label_B = labels_B == label
      own = threshold_of(scores_B[of_label_B], coverage)
      if own is not None:
        of_class[label] = own
        rest_B &= ~of_label_B
  threshold = threshold_of(scores_B[rest_B], coverage)
  if threshold is None and not of_class:
    return None
  # With too few images of the other classes, threshold 1 puts them into every set.
  shared = 1.0 if threshold is None else threshold
  return Sets(kind, coverage, shared, of_class)


def raps_scores(
  probability_B: Float[np.ndarray, " B"],
  mass_above_B: Float[np.ndarray, " B"],
  rank_B: Int[np.ndarray, " B"],
  penalty: float = PENALTY,
  free_ranks: int = FREE_RANKS,
) -> Float[np.ndarray, " B"]:
  """RAPS's scores of the right classes: summed probability plus the rank's penalty.

  The sum is over the right class and all classes that are likelier.

  Args:
    probability_B: probability of the right class.
    mass_above_B: summed probability of the classes that are likelier.
    rank_B: number of classes that are likelier.
    penalty: penalty for each rank after the free ranks.
    free_ranks: number of first ranks without a penalty.
  """
  mass_B = mass_above_B.astype(np.float64) + probability_B
  return mass_B + rank_penalties(rank_B, penalty, free_ranks)


def rank_penalties(
  rank_N: Int[np.ndarray, " N"], penalty: float, free_ranks: int
) -> Float[np.ndarray, " N"]:
  """Penalty that RAPS adds to the summed probability down to each rank.

  Args:
    rank_N: ranks, 0 for the likeliest class.
    penalty: penalty for each rank after the free ranks.
    free_ranks: number of first ranks without a penalty.
  """
  return penalty * np.maximum(rank_N + 1 - free_ranks, 0)


def least_probabilities(sets: Sets, n_classes: int) -> Float[np.ndarray, " N"]:
  """Least probability at which each class is in a set; not for the kind `raps`."""
  least_N = np.full(n_classes, 1 - sets.threshold)
  for label, threshold in sets.of_class.items():
    least_N[label] = 1 - threshold
  return least_N


def members(
  sets: Sets, probability_N: Float[np.ndarray, " N"]
) -> Int[np.ndarray, " S"]:
  """Labels of the classes in the set of one image, the likeliest first."""
  n_classes = len(probability_N)
  order_N = np.argsort(-probability_N, kind="stable")
  sorted_N = probability_N[order_N]
  if sets.kind != "raps":
    least_N = least_probabilities(sets, n_classes)
    return order_N[sorted_N >= least_N[order_N]]
  mass_N = np.cumsum(sorted_N, dtype=np.float64)
  penalties_N = rank_penalties(np.arange(n_classes), sets.penalty, sets.free_ranks)
  return order_N[mass_N + penalties_N <= sets.threshold]


def covered(
  sets: Sets,
  probability_B: Float[np.ndarray, " B"],
  mass_above_B: Float[np.ndarray, " B"],
  rank_B: Int[np.ndarray, " B"],
  labels_B: Int[np.ndarray, " B"],
) -> Bool[np.ndarray, " B"]:
  """Whether the set of each image holds its right class.

  Args:
    sets: kind and thresholds of the sets.
    probability_B: probability of the right class.
    mass_above_B: summed probability of the classes that are likelier.
    rank_B: number of classes that are likelier.
    labels_B: right classes.
  """
  if sets.kind == "raps":
    scores_B = raps_scores(
      probability_B,
      mass_above_B,
      rank_B,
      penalty=sets.penalty,
      free_ranks=sets.free_ranks,
    )
    return scores_B <= sets.threshold
  threshold_B = np.full(len(labels_B), sets.threshold)
  for label, threshold in sets.of_class.items():
    threshold_B[labels_B == label] = threshold
  return 1 - probability_B.astype(np.float64) <= threshold_B
