"""Rows of a reproduction: what is expected, what was got, the tolerance and why.

All figures are fractions of 1 where they are accuracies.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

PASS, FAIL, BETTER, NOT_RUN = "PASS", "FAIL", "BETTER", "NOT RUN"
UNDECIDED = "UNDECIDED"  # of an order that the seeds do not decide
STATUSES = (PASS, FAIL, BETTER, UNDECIDED, NOT_RUN)
INPUTS, CONTROLS, PUBLISHED, RETRAINED = (
  "Inputs",
  "Controls",
  "Published prompts",
  "Retrained",
)
STAGES = (INPUTS, CONTROLS, PUBLISHED, RETRAINED)


class Row(NamedTuple):
  """One comparison of a stage."""

  stage: str  # one of STAGES
  subject: str  # set, mean of sets, or "weights", "recipe"
  quantity: str  # such as "top-1, hand_written"
  expected: float | str | None
  got: float | str | None
  status: str  # one of STATUSES
  tolerance: float | None = None  # largest difference that passes
  # equal, within, at least, order, or none of a row that was not run
  rule: str = "equal"
  why: str = ""  # of the tolerance, or why the row was not run
  n: int | None = None  # images, or seeds
  interval: tuple[float, float] | None = None  # 95%, of what was got
  source: str = ""  # where the expected figure is printed
  beside: float | None = None  # another published figure, for the eye
  n_target: int | None = None  # images that the expected figure is of, where published


def status_of(
  rule: str,
  expected: float | str | None,
  got: float | str | None,
  tolerance: float | None,
) -> str:
  """The status of a row, which `verify` computes again.

  Args:
    rule: as `Row.rule`.
    expected: figure or text.
    got: likewise.
    tolerance: largest difference that passes, of figures.
  """
  if rule == "none" or expected is None or got is None:
    return NOT_RUN
  if rule == "equal":
    return PASS if expected == got else FAIL
  assert tolerance is not None
  difference = float(got) - float(expected)
  # A rounding of the difference decides nothing.
  within = tolerance + 1e-9
  if rule == "within":
    return PASS if abs(difference) <= within else FAIL
  if rule == "order":
    # Both are differences; the tolerance is the reach of ours.
    if abs(float(got)) <= within:
      return UNDECIDED
    return PASS if float(got) > 0 else FAIL
  if difference < -within:
    return FAIL
  return BETTER if difference > within else PASS


def compared(
  stage: str,
  subject: str,
  quantity: str,
  expected: float | str | None,
  got: float | str | None,
  *,
  rule: str = "equal",
  tolerance: float | None = None,
  **others: Any,
) -> Row:
  """A row with the status that follows from its figures; see `Row` for the fields."""
  status = status_of(rule, expected, got, tolerance)
  return Row(
    stage=stage,
    subject=subject,
    quantity=quantity,
    expected=expected,
    got=got,
    status=status,
    tolerance=tolerance,
    rule=rule,
    **others,
  )


def not_run(stage: str, subject: str, quantity: str, why: str, **others: Any) -> Row:
  """A row that was not run, and why."""
  return Row(
    stage=stage,
    subject=subject,
    quantity=quantity,
    expected=others.pop("expected", None),
    got=None,
    status=NOT_RUN,
    rule="none",
    why=why,
    **others,
  )


def failed(rows: Iterable[Row]) -> list[Row]:
  """The rows that failed."""
  return [row for row in rows if row.status == FAIL]


def to_dict(row: Row) -> dict[str, Any]:
  """A row as JSON values."""
  return row._asdict()


def from_dict(values: Mapping[str, Any]) -> Row:
  """A row of JSON values; KeyError or TypeError for other keys."""
  interval = values["interval"]
  return Row(**{**values, "interval": tuple(interval) if interval else None})
