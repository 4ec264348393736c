"""The one model of a report: sections of text, tables and pictures, built once by each job.

`report_files` writes a report as Markdown, LaTeX and HTML, and the page in the browser shows it.
All cells are text here already, so that every writer has the same figures.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from pomp_jax.report.labels import prompt_labels

# Below a table of accuracies.
INTERVAL = "In brackets: 95% interval (Wilson) over the images."


class Table(NamedTuple):
  """Text cells in rows."""

  columns: Sequence[str]  # headings; empty for facts, whose rows are a name and a value
  rows: Sequence[Sequence[str]]
  marks: Sequence[str] = ()  # of each row "best", "failed", a word for a part of the table, or ""
  highest: Collection[tuple[int, int]] = ()  # row and column of each highlighted cell


class Section(NamedTuple):
  """A part of a report."""

  title: str
  text: str = ""  # introductory sentences
  table: Table | None = None
  picture: str = ""  # PNG file in the run's `plots`
  notes: Sequence[str] = ()  # lines below the table
  code: str = ""  # preformatted lines, such as a command
  links: Mapping[str, str] = {}  # text -> path beside the report
  folded: bool = False  # whether the section starts folded
  brief: bool = False  # whether `results.md` and `results.tex` have the section too


class Report(NamedTuple):
  """What a job says of its results: a title, a few sentences with numbers, sections."""

  title: str
  text: str
  sections: Sequence[Section]


def facts(values: Mapping[str, Any]) -> Table:
  """A table of names and values, without those that are None or empty."""
  rows = [(name, str(value)) for name, value in values.items() if value not in (None, "")]
  return Table((), rows)


def pictures(titles: Mapping[str, str]) -> list[Section]:
  """A section for each picture: file in `plots` -> title."""
  return [Section(title, picture=name) for name, title in titles.items()]


def with_pictures(report: Report, files: Collection[str]) -> Report:
  """The report with the pictures that exist; sections of other pictures alone are dropped."""
  found = []
  for section in report.sections:
    if section.picture in files:
      found.append(section)
    elif section.table or not section.picture:
      found.append(section._replace(picture=""))
  return report._replace(sections=found)


def cell(value: float | int | None, digits: int = 1) -> str:
  """Formats a value: integers without decimals, None as a dash."""
  if value is None:
    return "-"
  return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def percent(value: float | None, ends: Sequence[float] | None = None) -> str:
  """Formats a fraction as a percentage, with the ends of its interval where there is one."""
  if value is None:
    return cell(None)
  text = f"{100 * value:.1f}"
  return text if ends is None else f"{text} ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"


def highest_cells(rows: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
  """Row and column of the highest figure of each column but the first, among several rows."""
  found = []
  for column in range(1, len(rows[0]) if len(rows) > 1 else 0):
    shown = {r: float(row[column].split()[0]) for r, row in enumerate(rows) if row[column] != "-"}
    found += [(r, column) for r, value in shown.items() if value == max(shown.values())]
  return found


def short_labels(prompts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Label -> short label of the prompts of `results.json`."""
  names = [prompt["label"] for prompt in prompts]
  return dict(zip(names, prompt_labels(names), strict=True))


def prompts_section(prompts: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Section:
  """Says which prompt each short label stands for, and the step of checkpoints."""
  rows = [[labels[one["label"]], one["label"]] for one in prompts]
  columns = ["called here", "prompt"]
  if any(one["step"] is not None for one in prompts):
    rows = [[*row, cell(one["step"])] for row, one in zip(rows, prompts, strict=True)]
    columns.append("step of a checkpoint")
  return Section("Prompts", table=Table(columns, rows), brief=True)
