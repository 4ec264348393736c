"""How far a figure may be from the paper's and still pass, and why.

Accuracies are fractions of 1.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np
import scipy.special

# Half of the last printed digit of a figure in percent with one decimal.
HALF_DIGIT = 0.0005
# Share of the answers that float16 moves in the published code. bfloat16, with 8 bits,
# moves 0.35% of the embedded world's answers (docs.studies.reproduce_world measures
# this share). float16 has 3 bits more, so take an eighth, rounded up.
MOVED_BY_FLOAT16 = 0.0005
LEAST_IMAGES = 3  # images of a set that may always have another answer
# Seeds of PromptSRC differ by 3.5 to 3.9 points on DTD and EuroSAT (CoOp's issue 45).
SPREAD_OF_A_SET = 0.039
_LEVEL = 0.99  # level of the one-sided t-interval


class Tolerance(NamedTuple):
  """Largest difference that passes, and its reason."""

  value: float
  why: str


def control_tolerance(
  n: int, exact: bool, n_all: int, expected: float, quick: bool
) -> Tolerance:
  """Tolerance of an accuracy that was measured on the images of the target.

  Args:
    n: images that were scored.
    exact: whether the target was counted by this code, and is not a printed figure.
    n_all: images of the target.
    expected: the target.
    quick: whether the images are a sample of the target's images.
  """
  least = LEAST_IMAGES / n
  if exact:
    value, why = least, f"{LEAST_IMAGES} of {n:,} images: other processors round"
  else:
    moved = 2 * math.sqrt(MOVED_BY_FLOAT16 * n) / n
    value = max(HALF_DIGIT + moved, least)
    why = (
      f"half a printed digit, and two standard deviations of the images that float16"
      f" moved in the published code ({100 * MOVED_BY_FLOAT16:g}% of the answers)"
    )
    if value == least:
      why = f"{LEAST_IMAGES} of {n:,} images"
  if quick and n < n_all:
    share = min(max(expected, 1 / n), 1 - 1 / n)
    spread = math.sqrt(share * (1 - share) / n * (1 - n / n_all))
    value += 3.5 * spread
    why += f"; 3.5 standard errors of a sample of {n:,} images (quick)"
  return Tolerance(value, why)


class Seeds(NamedTuple):
  """Figures of several trainings that differ in the seed."""

  mean: float
  std: float  # sample standard deviation; 0 for one seed
  n: int


def seeds_of(values: Sequence[float]) -> Seeds:
  """Mean and standard deviation of figures, one per seed."""
  std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
  return Seeds(float(np.mean(values)), std, len(values))


def t_reach(n: int, std: float, level: float = 0.975) -> float:
  """Half the width of Student's interval of a mean over n seeds."""
  return float(scipy.special.stdtrit(n - 1, level)) * std / math.sqrt(n)


def seeds_tolerance(ours: Seeds, theirs: Seeds | None, loose: bool) -> Tolerance | None:
  """How much lower our mean may be than the target; None if we have only one seed.

  The tolerance is a one-sided t-interval of our seeds, or Welch's t-interval of our
  seeds and the target's seeds if the latter are known.

  Args:
    ours: figures of our seeds.
    theirs: figures of the target's seeds; None if a table prints one number.
    loose: whether the figures are of a single set, which moves more than a mean.
  """
  if ours.n < 2:
    return None
  variance = ours.std**2 / ours.n
  degrees = float(ours.n - 1)
  why = f"one-sided 99% t-interval of {ours.n} seeds"
  if theirs is not None and theirs.n > 1:
    others = theirs.std**2 / theirs.n
    total = variance + others
    terms = variance**2 / (ours.n - 1) + others**2 / (theirs.n - 1)
    degrees = total**2 / terms if terms else float(ours.n + theirs.n - 2)
    variance = total
    why += f" and of the {theirs.n} of the target (Welch)"
  else:
    why += ", half a printed digit"
  value = float(scipy.special.stdtrit(degrees, _LEVEL)) * math.sqrt(variance)
  if theirs is None:
    value += HALF_DIGIT
  if loose and value < SPREAD_OF_A_SET:
    value = SPREAD_OF_A_SET
    why = "3.9 points: seeds of PromptSRC differ so on DTD and EuroSAT"
  return Tolerance(value, why)
