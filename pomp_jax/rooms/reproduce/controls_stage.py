"""Stages 2 and 3: rows of prompts that are not trained here, by set and by mean."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pomp_jax.rooms.reproduce.measure import Measured, mean_of
from pomp_jax.rooms.reproduce.rows import Row, compared
from pomp_jax.rooms.reproduce.targets import TEST_IMAGES, Target
from pomp_jax.rooms.reproduce.tolerances import (
  HALF_DIGIT,
  MOVED_BY_FLOAT16,
  SPREAD_OF_A_SET,
  Tolerance,
  control_tolerance,
)

RECORD = "record"  # source of a figure


class Expected(NamedTuple):
  """The figure that an accuracy is compared with."""

  value: float  # fraction of 1
  source: str  # where the figure is printed, or RECORD
  n_images: int | None  # number of images behind the figure; None if not published
  exact: bool = False  # whether the figure was counted by this code
  loose: bool = False  # whether the figure is of other weights than are measured here
  beside: float | None = None  # another published figure


def quantity_of(label: str) -> str:
  """Quantity of a row that compares accuracies under a prompt."""
  return f"top-1, {label}"


def printed(
  target: Target, subject: str, beside: Target | None = None, loose: bool = False
) -> Expected:
  """Makes the expectation of a figure that a table prints.

  Args:
    target: the figure.
    subject: set or mean that the figure is of.
    beside: another published figure.
    loose: whether the figure is of other weights than are measured here.
  """
  return Expected(
    value=target.value / 100,
    source=f"{target.table}, {target.row}",
    n_images=TEST_IMAGES.get(subject),
    loose=loose,
    beside=beside.value / 100 if beside else None,
  )


def recorded(right: int, record: Mapping[str, Any]) -> Expected:
  """Makes the expectation of a number of right answers in the record.

  Args:
    right: number of right answers.
    record: part of the record on the set.
  """
  n_images = record["images"]
  return Expected(right / n_images, RECORD, n_images, exact=True)


def row_of_set(
  stage: str,
  subject: str,
  label: str,
  measured: Measured,
  expected: Expected,
  quick: bool,
) -> Row:
  """Compares a prompt's accuracy on a set with its target.

  Args:
    stage: one of `rows.STAGES`.
    subject: the set.
    label: label of the prompt.
    measured: answers under the prompt.
    expected: the target.
    quick: whether the images are a sample.
  """
  if expected.loose:
    tolerance = _loose_tolerance(measured.n, expected.value, quick)
  else:
    tolerance = control_tolerance(
      n=measured.n,
      exact=expected.exact,
      n_all=expected.n_images or measured.n,
      expected=expected.value,
      quick=quick,
    )
  return compared(
    stage,
    subject,
    quantity_of(label),
    expected.value,
    measured.top1,
    rule="within",
    tolerance=tolerance.value,
    why=tolerance.why,
    n=measured.n,
    n_target=expected.n_images,
    interval=measured.interval,
    source=expected.source,
    beside=expected.beside,
  )


def _loose_tolerance(n: int, expected: float, quick: bool) -> Tolerance:
  """Tolerance of a single set whose target was measured with other weights."""
  value = SPREAD_OF_A_SET
  why = "3.9 points: a single set moves so between seeds (PromptSRC, CoOp's issue 45)"
  if quick:
    value += 3.5 * float(np.sqrt(expected * (1 - expected) / n))
    why += f"; 3.5 standard errors of {n} images (quick)"
  return Tolerance(value, why)


def mean_row(
  stage: str,
  subject: str,
  label: str,
  measured: Mapping[str, Measured],
  expected: Expected,
  quick: bool,
) -> Row:
  """Compares a prompt's mean accuracy over sets with its target.

  Args:
    stage: one of `rows.STAGES`.
    subject: name of the mean.
    label: label of the prompt.
    measured: answers by set.
    expected: the target.
    quick: whether the images are samples.
  """
  answers = list(measured.values())
  images = [one.n for one in answers]
  variances = [one.top1 * (1 - one.top1) / one.n for one in answers]
  error = float(np.sqrt(np.sum(variances))) / len(answers)
  # Variance of each accuracy by the answers that float16 moves.
  moved = [MOVED_BY_FLOAT16 / n for n in images]
  tolerance = HALF_DIGIT + 2 * float(np.sqrt(np.sum(moved))) / len(answers)
  why = "half a printed digit, and two standard deviations of what float16 moved"
  if quick:
    tolerance += 3.5 * error
    why += "; 3.5 standard errors of the samples (quick)"
  got = mean_of([one.top1 for one in answers])
  return compared(
    stage,
    subject,
    quantity_of(label),
    expected.value,
    got,
    rule="within",
    tolerance=tolerance,
    why=why,
    n=sum(images),
    n_target=images_of(list(measured)),
    interval=(got - 1.96 * error, got + 1.96 * error),
    source=expected.source,
    beside=expected.beside,
  )


def images_of(sets: Sequence[str]) -> int | None:
  """Published number of images of several sets; None if that of any set is unknown."""
  counts = [TEST_IMAGES.get(name) for name in sets]
  known = [count for count in counts if count is not None]
  return sum(known) if len(known) == len(counts) else None


def complete(sets: Sequence[str], measured: Mapping[str, object]) -> bool:
  """Whether every set of a mean was measured."""
  return all(name in measured for name in sets)
