"""Stages 2 and 3: prompts that are not trained here, set by set and on average."""

from collections.abc import Mapping, Sequence

import numpy as np

from pomp_jax.rooms.reproduce.measure import Measured, mean_of
from pomp_jax.rooms.reproduce.rows import (
  HALF_DIGIT,
  MOVED_BY_FLOAT16,
  SPREAD_OF_A_SET,
  Row,
  compared,
  control_tolerance,
)
from pomp_jax.rooms.reproduce.targets import Target


def quantity_of(label: str) -> str:
  """What a row says that it compares."""
  return f"top-1, {label}"


def set_row(
  stage: str,
  subject: str,
  label: str,
  measured: Measured,
  *,
  expected: float,
  n_all: int,
  exact: bool,
  quick: bool,
  source: str,
  beside: float | None = None,
) -> Row:
  """The row of a set under a prompt, on the images of the target.

  Args:
    stage: one of `rows.STAGES`.
    subject: the set.
    label: of the prompt.
    measured: answers.
    expected: the target, a fraction of 1.
    n_all: images of the target.
    exact: whether the target is a count of this code.
    quick: whether the images are a sample.
    source: where the target is printed.
    beside: another published figure.
  """
  tolerance = control_tolerance(measured.n, exact, n_all, expected, quick)
  return compared(
    stage,
    subject,
    quantity_of(label),
    expected,
    measured.top1,
    rule="within",
    tolerance=tolerance.value,
    why=tolerance.why,
    n=measured.n,
    interval=measured.interval,
    source=source,
    beside=beside,
  )


def loose_row(
  stage: str, subject: str, label: str, measured: Measured, paper: Target, quick: bool
) -> Row:
  """The row of a single set beside the paper's own row, which other weights have.

  Args:
    stage: one of `rows.STAGES`.
    subject: the set.
    label: of the prompt.
    measured: answers.
    paper: the paper's figure.
    quick: whether the images are a sample.
  """
  expected = paper.value / 100
  why = "3.9 points: a single set moves so between seeds (PromptSRC, CoOp's issue 45)"
  tolerance = SPREAD_OF_A_SET
  if quick:
    sampled = 3.5 * float(np.sqrt(expected * (1 - expected) / measured.n))
    tolerance += sampled
    why += f"; 3.5 standard errors of {measured.n} images (quick)"
  return compared(
    stage,
    subject,
    quantity_of(label),
    expected,
    measured.top1,
    rule="within",
    tolerance=tolerance,
    why=why,
    n=measured.n,
    interval=measured.interval,
    source=f"{paper.table}, {paper.row}",
  )


def mean_row(
  stage: str,
  subject: str,
  label: str,
  measured: Sequence[Measured],
  *,
  expected: float,
  quick: bool,
  exact: bool,
  source: str,
  beside: float | None = None,
) -> Row:
  """The row of a mean over sets.

  Args:
    stage: one of `rows.STAGES`.
    subject: name of the mean.
    label: of the prompt.
    measured: answers of each set.
    expected: the target, a fraction of 1.
    quick: whether the images are samples.
    exact: whether the target is a count of this code.
    source: where the target is printed.
    beside: another published figure.
  """
  figures = [one.top1 for one in measured]
  images = [one.n for one in measured]
  errors = [one.top1 * (1 - one.top1) / one.n for one in measured]
  error = float(np.sqrt(np.sum(errors))) / len(measured)
  if exact:
    tolerance = mean_of([3 / n for n in images])
    why = "the mean of the sets' tolerances"
  else:
    moved = [MOVED_BY_FLOAT16 / n for n in images]
    tolerance = HALF_DIGIT + 2 * float(np.sqrt(np.sum(moved))) / len(measured)
    why = "half a printed digit, and two standard deviations of what float16 moved"
  if quick:
    tolerance += 3.5 * error
    why += "; 3.5 standard errors of the samples (quick)"
  got = mean_of(figures)
  return compared(
    stage,
    subject,
    quantity_of(label),
    expected,
    got,
    rule="within",
    tolerance=tolerance,
    why=why,
    n=sum(images),
    interval=(got - 1.96 * error, got + 1.96 * error),
    source=source,
    beside=beside,
  )


def complete(sets: Sequence[str], measured: Mapping[str, object]) -> bool:
  """Whether every set of a mean was measured."""
  return all(name in measured for name in sets)
