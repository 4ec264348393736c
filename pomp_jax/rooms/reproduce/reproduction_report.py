"""Report of a reproduction: the verdict, what to check first, one table per stage."""

from collections.abc import Mapping, Sequence
from typing import Any

from pomp_jax.report import report
from pomp_jax.rooms.reproduce.findings import then
from pomp_jax.rooms.reproduce.orders_stage import DIFFERENCE
from pomp_jax.rooms.reproduce.region_tables import REGION_TABLES
from pomp_jax.rooms.reproduce.rows import (
  BETTER,
  FAIL,
  NOT_RUN,
  PASS,
  STAGES,
  STATUSES,
  UNDECIDED,
  Row,
  from_dict,
)

_COLUMNS = (
  "subject",
  "what",
  "expected",
  "got",
  "n",
  "95% interval",
  "tolerance",
  "status",
  "why",
  "target",
)
# status -> mark of the row in `report.Table`
_MARKS = {FAIL: "failed", BETTER: "best", PASS: "", UNDECIDED: "", NOT_RUN: ""}


def verdict_of(rows: Sequence[Row], findings: Sequence[Mapping[str, Any]]) -> str:
  """The verdict in one line.

  Args:
    rows: rows of all stages.
    findings: causes; the first is of the earliest stage.
  """
  counts = {status: sum(row.status == status for row in rows) for status in STATUSES}
  shown = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
  if counts[FAIL]:
    first = findings[0] if findings else None
    cause = ""
    if first:
      place = f"{first['stage']}, {first['kind']} ({_shortened(first['subject'])})"
      cause = f": {place}: {first['sentence']}"
    return f"NOT REPRODUCED{cause} [{shown}]"
  n_passed = counts[PASS] + counts[BETTER]
  if not n_passed + counts[UNDECIDED]:
    return f"NOTHING WAS RUN [{shown}]"
  skipped = list(
    dict.fromkeys(f"{row.stage}: {row.why}" for row in rows if row.status == NOT_RUN)
  )
  undecided = [
    f"{row.quantity.removeprefix(DIFFERENCE)} on {row.subject}"
    for row in rows
    if row.status == UNDECIDED
  ]
  if skipped or undecided:
    parts = []
    if undecided:
      parts.append(f"undecided by the seeds: {', '.join(undecided)}")
    if skipped:
      parts.append(f"not run: {'; '.join(skipped)}")
    what = "REPRODUCED IN PART" if n_passed else "NOTHING IS DECIDED"
    return f"{what}; {'; '.join(parts)} [{shown}]"
  return f"REPRODUCED [{shown}]"


def _shortened(subject: str) -> str:
  """The first of many subjects, and the number of the other subjects."""
  names = subject.split(", ")
  if len(names) <= _NAMED:
    return subject
  return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"


_NAMED = 3  # most subjects that the verdict names


def succeeded(rows: Sequence[Row]) -> bool:
  """Whether no row failed and at least one passed; the verdict has what was not run."""
  statuses = {row.status for row in rows}
  return FAIL not in statuses and bool(statuses & {PASS, BETTER})


def reproduction_report(
  results: Mapping[str, Any], _: Mapping[str, Any]
) -> report.Report:
  """Builds the report from `results.json` of the job reproduce."""
  rows = [from_dict(one) for one in results["rows"]]
  sections = []
  if results["findings"]:
    sections.append(_findings_section(results["findings"]))
  texts = _TEXTS
  if results["table"] in REGION_TABLES:
    texts = {**_TEXTS, **_TEXTS_OF_REGIONS}
  counts = [
    [stage, *(str(sum(_is(row, stage, status) for row in rows)) for status in _MARKS)]
    for stage in STAGES
  ]
  overview = report.Table(("stage", *_MARKS), counts)
  sections.append(report.Section("Stages", table=overview, brief=True))
  for number, stage in enumerate(STAGES, 1):
    of_stage = [row for row in rows if row.stage == stage]
    if of_stage:
      title = f"{number}. {stage}"
      text = texts[stage]
      table = _table_of(of_stage)
      notes = [_PART] if any(map(_is_part, of_stage)) else []
      sections.append(report.Section(title, text, table, notes=notes, brief=True))
  if "provenance" in results:
    sections.append(_code_section(results["provenance"]))
  title = f"Reproduction: {results['table']}"
  return report.Report(title, results["verdict"], sections)


_PART = (
  "n of N: fewer images than the N of the target; the row says nothing of the rest."
)
_AFTER = (
  "Begin with the first row. What is not in a row of this table need not be deleted;"
  " deleting the run's whole folder is always right, and measures everything again."
)


def _findings_section(findings: Sequence[Mapping[str, Any]]) -> report.Section:
  """One row per cause: what was found, what to check, and how to run again."""
  columns = (
    "stage",
    "subject",
    "kind",
    "what was found",
    "check first",
    "after the fix",
  )
  shown = []
  for one in findings:
    place = [one["stage"], one["subject"], one["kind"]]
    shown.append([*place, one["sentence"], one["first"], then(one)])
  table = report.Table(columns, shown, ["failed"] * len(shown))
  return report.Section("What to check first", _AFTER, table, brief=True)


def _code_section(provenance: Mapping[str, Any]) -> report.Section:
  """The command and the code that a reader of `results.md` alone needs."""
  versions = provenance["versions"]
  values = {
    "command": provenance["command"],
    "commit": provenance["commit"] or "none: an installed release",
    "pomp_jax": versions["pomp_jax"],
    "jax": versions["jax"],
    "date": provenance["date"],
  }
  return report.Section("Command and code", table=report.facts(values), brief=True)


_TEXTS = {
  "Inputs": "Counts and digests of sets, names, images and weights.",
  "Controls": "Hand-written prompts, without training; accuracies in percent.",
  "Published prompts": (
    "Released prompts beside their own column; in brackets the paper's row."
  ),
  "Retrained": "Trained here: not worse than the target, one-sided; in percent.",
}


_TEXTS_OF_REGIONS = {
  "Controls": "The other network's row and hand-written prompts; in percent.",
  "Published prompts": "POMP's rows in percent; in brackets the released README's.",
  "Retrained": "Networks.",
}


def _table_of(rows: Sequence[Row]) -> report.Table:
  """Rows of a stage as a table, without columns that are empty in every row."""
  cells = [_cells(row) for row in rows]
  kept = [n for n in range(len(_COLUMNS)) if any(row[n] for row in cells)]
  shown = [[row[n] for n in kept] for row in cells]
  marks = [_MARKS[row.status] for row in rows]
  return report.Table([_COLUMNS[n] for n in kept], shown, marks)


def _is(row: Row, stage: str, status: str) -> bool:
  return row.stage == stage and row.status == status


def _cells(row: Row) -> list[str]:
  is_share = "top-1" in row.quantity or "(%)" in row.quantity
  figure = _percent if is_share else _plain
  expected = figure(row.expected)
  if row.beside is not None:
    expected = f"{expected} ({figure(row.beside)})"
  interval = ""
  if row.interval is not None:
    interval = " to ".join(map(_percent, row.interval))
  tolerance = "" if row.tolerance is None else figure(row.tolerance)
  return [
    row.subject,
    row.quantity,
    expected,
    figure(row.got),
    _images(row),
    interval,
    tolerance,
    row.status,
    row.why,
    row.source,
  ]


def _is_part(row: Row) -> bool:
  """Whether a figure is of fewer images than its target."""
  return row.n is not None and row.n_target is not None and row.n < row.n_target


def _images(row: Row) -> str:
  """Number of images or seeds, as "n of N" if the target has more images."""
  if row.n is None:
    return ""
  if _is_part(row):
    return f"{row.n:,} of {row.n_target:,}"
  return f"{row.n:,}"


def _percent(value: Any) -> str:
  return "" if value is None else f"{100 * value:.2f}"


def _plain(value: Any) -> str:
  if value is None:
    return ""
  return f"{value:,.6g}" if isinstance(value, float) else str(value)
