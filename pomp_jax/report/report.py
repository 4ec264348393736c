"""The model of all reports, and its writers: Markdown, self-contained HTML; CSV files.

Each job builds its sections of text, tables and pictures once. The browser page, of the
room `page`, shows the same sections. All cells are already text, so that every writer
has the same figures.
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
_SENTENCE = 36  # characters; the text of a longer cell wraps
_STYLE = pathlib.Path(__file__).with_name("report.css")
# Legends of tables whose accuracies have intervals. The second is for tables that also
# hold means over sets.
INTERVAL = "In brackets: 95% interval (Wilson) over the images."
INTERVAL_OF_MEANS = (
  "In brackets: 95% interval over the images (Wilson; of a mean by bootstrap)."
)
_INTERVAL_CELL = re.compile(r"(?<=\d) \([-+]?[\d.]+ to [-+]?[\d.]+\)$")


class Table(NamedTuple):
  """Text cells in rows."""

  # Headings; empty for facts, whose rows are a name and a value.
  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  # A word for each row: "best", "failed", the name of a part of the table, or "".
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
  """Report of a job's results: a title, a few sentences with numbers, sections."""

  title: str
  text: str
  sections: Sequence[Section]


def facts(values: Mapping[str, Any]) -> Table:
  """A table of names and values, without those that are None or empty."""
  rows = [
    (name, str(value)) for name, value in values.items() if value not in (None, "")
  ]
  return Table(columns=(), rows=rows)


def with_pictures(report: Report, files: Collection[str]) -> Report:
  """The report without pictures that don't exist.

  A section without its picture is kept if it has a table, and dropped otherwise.
  """
  sections = []
  for section in report.sections:
    if not section.picture or section.picture in files:
      sections.append(section)
    elif section.table:
      sections.append(section._replace(picture=""))
  return report._replace(sections=sections)


def cell(value: float | int | None, digits: int = 1) -> str:
  """Formats a value: integers without decimals, None as a dash."""
  match value:
    case None:
      return "-"
    case int():
      return f"{value:,}"
    case _:
      return f"{value:.{digits}f}"


def percent(value: float | None, ends: Sequence[float] | None = None) -> str:
  """Formats a fraction as a percentage, with the `ends` of its interval, if any."""
  if value is None:
    return cell(None)
  text = f"{100 * value:.1f}"
  if ends is None:
    return text
  low, high = ends
  return f"{text} ({100 * low:.1f} to {100 * high:.1f})"


def without_intervals(section: Section) -> Section:
  """The section without the intervals that `percent` adds, and without their legend."""
  if section.table is None:
    return section
  rows = [[_INTERVAL_CELL.sub("", text) for text in row] for row in section.table.rows]
  text = section.text
  for legend in (INTERVAL, INTERVAL_OF_MEANS):
    text = text.replace(legend, "").strip()
  return section._replace(text=text, table=section.table._replace(rows=rows))


def is_words(table: Table, column: int) -> bool:
  """Whether a column holds words rather than figures.

  A column of figures may have a few other cells, such as dashes. Tables without
  headings hold words.
  """
  if not table.columns:
    return True
  n_figures = sum(bool(re.match(r"[-+]?\d", row[column])) for row in table.rows)
  return 2 * n_figures < len(table.rows)


def short_labels(prompts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Label -> short label of the prompts of `results.json`."""
  labels = [prompt["label"] for prompt in prompts]
  return dict(zip(labels, prompt_labels(labels), strict=True))


def prompts_section(
  prompts: Sequence[Mapping[str, Any]], labels: Mapping[str, str]
) -> Section:
  """Says which prompt each short label stands for, and the step of checkpoints."""
  columns = ["called here", "prompt"]
  rows = [[labels[prompt["label"]], prompt["label"]] for prompt in prompts]
  if any(prompt["step"] is not None for prompt in prompts):
    columns.append("step of a checkpoint")
    for row, prompt in zip(rows, prompts, strict=True):
      row.append(cell(prompt["step"]))
  notes = [prompt["note"] for prompt in prompts if "note" in prompt]
  return Section("Prompts", table=Table(columns, rows), notes=notes, brief=True)


def failures(title: str, corner: str, rows: Sequence[Sequence[str]]) -> Section:
  """A section with failures and their errors.

  Args:
    title: title of the section.
    corner: heading of the first column, such as "cell".
    rows: name and error of each failure; the section says "None." without any.
  """
  if not rows:
    return Section(title, "None.")
  table = Table((corner, "error"), rows, marks=["failed"] * len(rows))
  return Section(title, table=table)


def markdown(report: Report) -> str:
  """Formats the brief sections of a report as a Markdown document."""
  parts = [f"# {report.title}", report.text]
  for section in report.sections:
    if not section.brief:
      continue
    parts.append(f"## {section.title}")
    if section.text:
      parts.append(section.text)
    if section.table:
      parts.append(_markdown_table(section.table))
    if section.notes:
      parts.append("  \n".join(section.notes))
  return "\n\n".join(parts) + "\n"


def cells(table: Table, escaped: Callable[[str], str], bold: str) -> list[list[str]]:
  """The cells of a table, escaped and set in bold for a format.

  Args:
    table: table with plain text.
    escaped: function that escapes the format's special characters.
    bold: template of a bold cell, such as "**{}**".
  """
  texts = [[escaped(text) for text in row] for row in table.rows]
  for row, column in table.bold:
    texts[row][column] = bold.format(texts[row][column])
  return texts


def headings(table: Table) -> Sequence[str]:
  """The headings of a table; empty texts if it has none."""
  return table.columns or [""] * max(map(len, table.rows), default=1)


def _markdown_table(table: Table) -> str:
  escaped = lambda text: text.translate(_MARKDOWN_ESCAPES)
  columns = headings(table)
  rows = [[escaped(text) for text in columns], ["---"] * len(columns)]
  rows += cells(table, escaped, "**{}**")
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def html(
  report: Report, lines: Sequence[str], read_picture: Callable[[str], bytes]
) -> str:
  """Formats a report as an HTML page that contains its pictures.

  The page links only to files beside it.

  Args:
    report: report of a run.
    lines: paragraphs below the title; empty ones are skipped.
    read_picture: function that returns the content of a PNG file in the run's `plots`.
  """

  def source_of(name: str) -> str:
    picture = base64.b64encode(read_picture(name)).decode()
    return f"data:image/png;base64,{picture}"

  title = escape(report.title)
  paragraphs = [f"<p>{escape(text)}</p>\n" for text in lines if text]
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
  body = ""
  if section.text:
    body += f"<p>{escape(section.text)}</p>\n"
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
  # Words are aligned on the left, and figures on the right.
  styles = ["figure"] * n_columns
  for column in range(n_columns):
    if is_words(table, column):
      styles[column] = "words"
  lines = []
  if table.columns:
    head = ""
    for text, style in zip(table.columns, styles, strict=True):
      # A heading of one long word breaks behind its underscores.
      heading = escape(text).replace("_", "_<wbr>")
      head += f'<th class="{style}">{heading}</th>'
    lines.append(f"<thead><tr>{head}</tr></thead>")
  lines.append("<tbody>")
  marks = table.marks or [""] * len(table.rows)
  escaped = cells(table, escape, "<strong>{}</strong>")
  for row, escaped_row, mark in zip(table.rows, escaped, marks, strict=True):
    tags = ""
    for text, style, content in zip(row, styles, escaped_row, strict=True):
      if len(text) > _SENTENCE:
        style = "text"  # wraps
      tags += f'<td class="{style}">{content}</td>'
    lines.append(f'<tr class="{mark}">{tags}</tr>')
  body = "\n".join(lines)
  return f'<div class="scroll"><table>\n{body}\n</tbody></table></div>\n'


def write_csv(
  path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Writes a CSV file atomically, in UTF-8 with Unix line ends on every system.

  Args:
    path: file to write.
    columns: headings, the first line.
    rows: values in the order of the headings; None becomes an empty field.

  Raises:
    OSError: the file can't be written.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(columns)
  writer.writerows(rows)
  write_file(path, text.getvalue())
