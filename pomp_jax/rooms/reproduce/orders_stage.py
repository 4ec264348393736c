"""Stage 4 of the ablations: which of two trainings is better, and how surely.

Machine and seeds move the figures of an ablation by as much as some of its differences.
Therefore only the order that the paper prints is tested, by Welch's one-sided test over
seeds. A difference whose sign the seeds do not decide is UNDECIDED.

Shapes: n images.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np
import scipy.special

from pomp_jax.rooms.reproduce.findings import Finding, finding
from pomp_jax.rooms.reproduce.measure import Measured
from pomp_jax.rooms.reproduce.rows import FAIL, RETRAINED, Row, compared, not_run
from pomp_jax.rooms.reproduce.targets import tables
from pomp_jax.rooms.reproduce.tolerances import seeds_of

# A row's quantity is DIFFERENCE, the better arm, OVER, and the worse arm.
DIFFERENCE = "difference of top-1, "
OVER = " over "
_LEVEL = 0.95  # level of the one-sided interval on either side


@dataclasses.dataclass(frozen=True)
class Order:
  """A training that the paper finds better than another."""

  table: str
  better: str  # name of the better arm
  worse: str  # name of the worse arm
  # set or mean of sets -> figures of the better and of the worse arm
  printed: Mapping[str, tuple[float, float]]

  @property
  def quantity(self) -> str:
    """Quantity of the rows that test this order."""
    return f"{DIFFERENCE}{self.better}{OVER}{self.worse}"

  @property
  def source(self) -> str:
    """Where the figures are printed."""
    return f"table {self.table}, {self.better}{OVER}{self.worse}"


def order(
  table: str,
  better: str,
  worse: str,
  subjects: Mapping[str, str],
  rows: tuple[str, str] | None = None,
) -> Order:
  """Makes the order of two rows of a table, with the printed figures.

  Args:
    table: number of the table.
    better: name of the better arm.
    worse: name of the worse arm.
    subjects: set or mean of sets -> column.
    rows: names of the two rows, if they differ from the names of the arms.
  """
  content = tables()[table]
  names = rows or (better, worse)
  printed = {}
  for subject, column in subjects.items():
    place = content["columns"].index(column)
    figure, other = (content["rows"][name][place] for name in names)
    printed[subject] = (figure, other)
  return Order(table, better, worse, printed)


class Welch(NamedTuple):
  """Welch's test of two means."""

  difference: float  # better mean minus worse mean
  reach: float  # distance from the difference to its one-sided 95% bounds
  p: float  # probability of a difference this large if the better arm is not better


def welch(better: Sequence[float], worse: Sequence[float], more: float = 0.0) -> Welch:
  """Tests whether a mean over seeds is larger than another.

  Args:
    better: figures that should be larger, one per seed, two or more.
    worse: figures that should be smaller, one per seed, two or more.
    more: variance of the difference that is not among seeds, such as the variance by
      a sample of the images.
  """
  first = seeds_of(better)
  second = seeds_of(worse)
  parts = (first.std**2 / first.n, second.std**2 / second.n)
  difference = first.mean - second.mean
  variance = sum(parts) + more
  terms = parts[0] ** 2 / (first.n - 1) + parts[1] ** 2 / (second.n - 1)
  # Welch's degrees of freedom divide by `terms`, which is 0 if all seeds are equal.
  degrees = float(first.n + second.n - 2)
  if terms:
    degrees = sum(parts) ** 2 / terms
  error = math.sqrt(variance)
  if not error:  # only the sign decides
    return Welch(difference, 0.0, 0.5 * (1 - float(np.sign(difference))))
  reach = float(scipy.special.stdtrit(degrees, _LEVEL)) * error
  p = float(scipy.special.stdtr(degrees, -difference / error))
  return Welch(difference, reach, p)


# set -> answers of each seed of an arm
Answers = Mapping[str, Sequence[Measured]]


def figures_of(answers: Answers, sets: Sequence[str]) -> list[float]:
  """The mean over sets of each seed's accuracy."""
  by_set = [[one.top1 for one in answers[name]] for name in sets]
  return [float(value) for value in np.mean(by_set, axis=0)]


def _variance_of_samples(better: Answers, worse: Answers, sets: Sequence[str]) -> float:
  """Variance of the difference by the choice of images.

  Both arms answer the same images, so the variance is of differences per image.
  """
  total = 0.0
  for name in sets:
    shares = []
    for arm in (better, worse):
      right = [one.labels == one.answers for one in arm[name]]
      shares.append(np.mean(right, axis=0))
    difference_n = shares[0] - shares[1]
    total += float(np.var(difference_n)) / len(difference_n)
  return total / len(sets) ** 2


def order_row(
  one: Order,
  subject: str,
  sets: Sequence[str],
  better: Answers,
  worse: Answers,
  quick: bool,
) -> Row:
  """Tests an order on a set or a mean of sets.

  Args:
    one: the order.
    subject: set or mean of sets.
    sets: the sets of the mean, or only the set.
    better: answers of the arm that the paper finds better.
    worse: answers of the other arm.
    quick: whether the images are samples.
  """
  first = figures_of(better, sets)
  second = figures_of(worse, sets)
  figure, other = one.printed[subject]
  expected = (figure - other) / 100
  if min(len(first), len(second)) < 2:
    why = "one seed has no interval; train two or more of each"
    return not_run(
      RETRAINED, subject, one.quantity, why, expected=expected, source=one.source
    )
  more = _variance_of_samples(better, worse, sets) if quick else 0.0
  test = welch(first, second, more)
  why = (
    f"one-sided Welch test: p = {test.p:.2g};"
    f" {one.better}: {_mean(first)}, {one.worse}: {_mean(second)}"
  )
  if quick:
    why += "; with the variance of the samples (quick)"
  return compared(
    RETRAINED,
    subject,
    one.quantity,
    expected,
    test.difference,
    rule="order",
    tolerance=test.reach,
    why=why,
    n=len(first) + len(second),
    source=one.source,
  )


def _mean(values: Sequence[float]) -> str:
  seeds = seeds_of(values)
  return f"{100 * seeds.mean:.2f} ± {100 * seeds.std:.2f} of {seeds.n} seeds"


def order_findings(rows: Sequence[Row]) -> list[Finding]:
  """A finding for each order that is reversed."""
  found = []
  for row in rows:
    if row.rule == "order" and row.status == FAIL:
      names = row.quantity.removeprefix(DIFFERENCE).replace(OVER, " is worse than ")
      text = f"{names}, by more than the interval of the seeds: {row.why}"
      found.append(finding(RETRAINED, "training", row.subject, text))
  return found
