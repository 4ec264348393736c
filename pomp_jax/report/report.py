"""The one model of a report, and how it is written: Markdown, self-contained HTML; CSV.

Each job builds its sections of text, tables and pictures once, and the page in the
browser shows them too. All cells are text here already, so that every writer has the
same figures.
"""

import base64
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
import csv
from html import escape
import io
import pathlib
import re
from typing import Any, NamedTuple
import urllib.parse

from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import Path
from pomp_jax.report.labels import prompt_labels

_MARKDOWN_ESCAPES = {ord(letter): f"\\{letter}" for letter in "\\|*_`<["}
_STYLE = pathlib.Path(__file__).with_name("report.css")
# Legends of tables of accuracies with intervals: of single sets, and of means too.
INTERVAL = "In brackets: 95% interval (Wilson) over the images."
INTERVAL_OF_MEANS = (
  "In brackets: 95% interval over the images (Wilson; of a mean by bootstrap)."
)
_INTERVAL_CELL = re.compile(r"(?<=\d) \([-+]?[\d.]+ to [-+]?[\d.]+\)$")


class Table(NamedTuple):
  """Text cells in rows."""

  columns: Sequence[str]  # headings; empty for facts, whose rows are a name and a value
  rows: Sequence[Sequence[str]]
  # of each row "best", "failed", a word for a part of the table, or ""
  marks: Sequence[str] = ()
  # Row and column of each cell that is shown to be better than a reference, by an
  # interval.
  bold: Collection[tuple[int, int]] = ()


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
  rows = [
    (name, str(value)) for name, value in values.items() if value not in (None, "")
  ]
  return Table((), rows)


def with_pictures(report: Report, files: Collection[str]) -> Report:
  """The report with the pictures that exist; sections of other pictures alone are
  dropped."""
  kept = [one for one in report.sections if one.table or one.picture in {"", *files}]
  sections = [one if one.picture in files else one._replace(picture="") for one in kept]
  return report._replace(sections=sections)


def cell(value: float | int | None, digits: int = 1) -> str:
  """Formats a value: integers without decimals, None as a dash."""
  if value is None:
    return "-"
  return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def percent(value: float | None, ends: Sequence[float] | None = None) -> str:
  """Formats a fraction as a percentage, with the ends of its interval where there is
  one."""
  if value is None:
    return cell(None)
  text = f"{100 * value:.1f}"
  return (
    text if ends is None else f"{text} ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"
  )


def without_intervals(section: Section) -> Section:
  """The section without the intervals that `percent` puts into cells, and without
  their legend."""
  if section.table is None:
    return section
  rows = [[_INTERVAL_CELL.sub("", text) for text in row] for row in section.table.rows]
  text = section.text
  for legend in (INTERVAL, INTERVAL_OF_MEANS):
    text = text.replace(legend, "").strip()
  return section._replace(text=text, table=section.table._replace(rows=rows))


def is_words(table: Table, column: int) -> bool:
  """Whether a column holds words rather than figures; a table without headings holds
  words."""
  # A column of figures has few other cells, such as dashes.
  cells_of_column = [row[column] for row in table.rows]
  n_figures = sum(bool(re.match(r"[-+]?\d", text)) for text in cells_of_column)
  return not table.columns or 2 * n_figures < len(cells_of_column)


def short_labels(prompts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Label -> short label of the prompts of `results.json`."""
  names = [prompt["label"] for prompt in prompts]
  return dict(zip(names, prompt_labels(names), strict=True))


def prompts_section(
  prompts: Sequence[Mapping[str, Any]], labels: Mapping[str, str]
) -> Section:
  """Says which prompt each short label stands for, and the step of checkpoints."""
  rows = [[labels[one["label"]], one["label"]] for one in prompts]
  columns = ["called here", "prompt"]
  if any(one["step"] is not None for one in prompts):
    rows = [[*row, cell(one["step"])] for row, one in zip(rows, prompts, strict=True)]
    columns.append("step of a checkpoint")
  notes = [one["note"] for one in prompts if "note" in one]
  return Section("Prompts", table=Table(columns, rows), notes=notes, brief=True)


def failures(title: str, corner: str, rows: Sequence[Sequence[str]]) -> Section:
  """A section with the errors of what has failed."""
  table = Table((corner, "error"), rows, ["failed"] * len(rows))
  return Section(title, table=table) if rows else Section(title, "None.")


def markdown(report: Report) -> str:
  """Formats the brief sections of a report as a Markdown document."""
  parts = [f"# {report.title}", report.text]
  for section in report.sections:
    if section.brief:
      table = section.table and _markdown_table(section.table)
      notes = "  \n".join(section.notes)
      parts += [f"## {section.title}", *filter(None, (section.text, table, notes))]
  return "\n\n".join(parts) + "\n"


def cells(table: Table, escaped: Callable[[str], str], bold: str) -> list[list[str]]:
  """The cells of a table, escaped; `bold` formats the bold ones."""
  return [
    [
      bold.format(escaped(x)) if (r, c) in table.bold else escaped(x)
      for c, x in enumerate(row)
    ]
    for r, row in enumerate(table.rows)
  ]


def headings(table: Table) -> Sequence[str]:
  """The headings of a table; empty ones where it has none."""
  return table.columns or [""] * max(map(len, table.rows), default=1)


def _markdown_table(table: Table) -> str:
  escaped = lambda text: text.translate(_MARKDOWN_ESCAPES)
  columns = headings(table)
  rows = [map(escaped, columns), ["---"] * len(columns)]
  rows += cells(table, escaped, "**{}**")
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def html(
  report: Report, lines: Sequence[str], read_picture: Callable[[str], bytes]
) -> str:
  """Formats a report as a page with its pictures inside; its only links are to files
  beside it.

  `lines` are paragraphs below the title. `read_picture` reads a PNG file of the run's
  `plots`.
  """
  title = escape(report.title)
  paragraphs = [f"<p>{escape(text)}</p>\n" for text in lines if text]
  source_of = lambda name: (
    f"data:image/png;base64,{base64.b64encode(read_picture(name)).decode()}"
  )
  sections = [html_section(section, source_of) for section in report.sections]
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{_STYLE.read_text()}</style>
</head>
<body>
<h1>{title}</h1>
{"".join(paragraphs)}{"".join(sections)}</body>
</html>
"""


def html_section(section: Section, source_of: Callable[[str], str]) -> str:
  """Formats a section; `source_of` returns the address of a picture."""
  body = f"<p>{escape(section.text)}</p>\n" if section.text else ""
  if section.picture:
    source = escape(source_of(section.picture))
    body += f'<img class="plot" alt="{escape(section.title)}" src="{source}">\n'
  if section.table is not None:
    body += _html_table(section.table)
  body += "".join(f"<p>{escape(text)}</p>\n" for text in section.notes)
  if section.links:
    items = [
      f'<li><a href="{escape(urllib.parse.quote(path))}">{escape(text)}</a></li>'
      for text, path in section.links.items()
    ]
    body += f"<ul>{''.join(items)}</ul>\n"
  if section.code:
    body += f"<pre>{escape(section.code)}</pre>\n"
  if section.folded:
    body = f"<details><summary>show</summary>\n{body}</details>\n"
  return f"<h2>{escape(section.title)}</h2>\n{body}"


def _html_table(table: Table) -> str:
  n_columns = len(table.columns) or max(map(len, table.rows), default=0)
  kinds = [
    "words" if is_words(table, column) else "figure" for column in range(n_columns)
  ]
  # A heading of one long word breaks behind its underscores.
  head = "".join(
    f'<th class="{kind}">{escape(text).replace("_", "_<wbr>")}</th>'
    for text, kind in zip(table.columns, kinds, strict=bool(table.columns))
  )
  lines = [f"<thead><tr>{head}</tr></thead>", "<tbody>"] if head else ["<tbody>"]
  marks = table.marks or [""] * len(table.rows)
  shown = cells(table, escape, "<strong>{}</strong>")
  for row, texts, mark in zip(table.rows, shown, marks, strict=True):
    # Sentences wrap, words stand on the left, and figures below one another on the
    # right.
    of_row = [
      "text" if len(x) > 36 else kind for x, kind in zip(row, kinds, strict=True)
    ]
    tags = [
      f'<td class="{kind}">{x}</td>' for kind, x in zip(of_row, texts, strict=True)
    ]
    lines.append(f'<tr class="{mark}">{"".join(tags)}</tr>')
  body = "\n".join(lines)
  return f'<div class="scroll"><table>\n{body}\n</tbody></table></div>\n'


def write_csv(
  path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Writes a CSV file atomically; None becomes an empty field."""
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows([columns, *rows])
  write_file(path, text.getvalue())
