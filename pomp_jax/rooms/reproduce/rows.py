"""Rows of a reproduction: what is expected, what was got, the tolerance and why.

Accuracies are fractions of 1.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

PASS, FAIL, BETTER, NOT_RUN = "PASS", "FAIL", "BETTER", "NOT RUN"
UNDECIDED = "UNDECIDED"  # the seeds do not decide an order
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
  # Largest difference that passes. Of the rule "order" it is the half-width of the
  # interval of our difference: a difference within it is undecided.
  tolerance: float | None = None
  # "equal", "within", "at least" or "order"; "none" for a row that was not run
  rule: str = "equal"
  why: str = ""  # reason for the tolerance, or why the row was not run
  n: int | None = None  # number of images, or of seeds
  interval: tuple[float, float] | None = None  # 95% interval of `got`
  source: str = ""  # where the expected figure is printed
  beside: float | None = None  # another published figure, which is only shown
  n_target: int | None = None  # number of images behind `expected`, if published


def status_of(
  rule: str,
  expected: float | str | None,
  got: float | str | None,
  tolerance: float | None,
) -> str:
  """The status of a row, which `verify` computes again.

  Args:
    rule: `Row.rule`.
    expected: expected figure or text.
    got: measured figure or text.
    tolerance: see `Row.tolerance`; None for texts.
  """
  if rule == "none" or expected is None or got is None:
    return NOT_RUN
  if rule == "equal":
    return PASS if expected == got else FAIL
  assert tolerance is not None
  difference = float(got) - float(expected)
  # Rounding of the difference must not decide.
  within = tolerance + 1e-9
  if rule == "within":
    return PASS if abs(difference) <= within else FAIL
  if rule == "order":
    # Expected and got are differences of two arms. The sign of `got` decides, unless
    # its interval contains zero.
    if abs(float(got)) <= within:
      return UNDECIDED
    return PASS if float(got) > 0 else FAIL
  # The rule is "at least".
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
  """Makes a row, whose status follows from its figures; `Row` describes the fields."""
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
  """Makes a row of a comparison that was not run, with the reason."""
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
  """Makes a row from JSON values; KeyError or TypeError if the keys are not a row's."""
  interval = values["interval"]
  return Row(**{**values, "interval": tuple(interval) if interval else None})
