"""A report as Markdown, LaTeX and self-contained HTML: no server, network or script; CSV."""

import base64
from collections.abc import Callable, Iterable, Sequence
import csv
from html import escape
import io
import pathlib
import re
from typing import Any
import urllib.parse

from pomp_jax.report.report import Report, Section, Table

_MARKDOWN_ESCAPES = {ord(letter): f"\\{letter}" for letter in "\\|*_`<["}
_LATEX_ESCAPES = {ord(letter): f"\\{letter}" for letter in "&%$#_{}"} | {
  ord("\\"): r"\textbackslash{}",
  ord("~"): r"\textasciitilde{}",
  ord("^"): r"\textasciicircum{}",
}
_STYLE = pathlib.Path(__file__).with_name("report.css")


def markdown(report: Report) -> str:
  """Formats the brief sections of a report as a Markdown document."""
  parts = [f"# {report.title}", report.text]
  for section in report.sections:
    if section.brief:
      table = section.table and _markdown_table(section.table)
      notes = "  \n".join(section.notes)
      parts += [f"## {section.title}", *filter(None, (section.text, table, notes))]
  return "\n\n".join(parts) + "\n"


def _cells(table: Table, escaped: Callable[[str], str], bold: str) -> list[list[str]]:
  """The cells, escaped; `bold` formats the highlighted ones."""
  return [
    [bold.format(escaped(x)) if (r, c) in table.highest else escaped(x) for c, x in enumerate(row)]
    for r, row in enumerate(table.rows)
  ]


def _markdown_table(table: Table) -> str:
  escaped = lambda text: text.translate(_MARKDOWN_ESCAPES)
  rows = [map(escaped, table.columns), ["---"] * len(table.columns)]
  rows += _cells(table, escaped, "**{}**")
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def latex(report: Report) -> str:
  r"""Formats the brief sections for a LaTeX document with `\usepackage{booktabs}`."""
  parts = [f"% {report.title}\n% {report.text}"]
  for section in report.sections:
    if section.brief and section.table:
      parts.append(_latex_table(section, section.table))
    elif section.brief:
      parts += [f"% {text}" for text in (section.title, section.text, *section.notes) if text]
  return "\n\n".join(parts) + "\n"


def _latex_table(section: Section, table: Table) -> str:
  escaped = lambda text: text.translate(_LATEX_ESCAPES)
  marks = table.marks or [""] * len(table.rows)
  rows = [map(escaped, table.columns), *_cells(table, escaped, r"\textbf{{{}}}")]
  lines = [rf"{' & '.join(row)} \\" for row in rows]
  for r in reversed(range(len(marks))):
    if r == 0 or marks[r] != marks[r - 1]:
      lines.insert(1 + r, r"\midrule")
  caption = escaped(". ".join(filter(None, (section.title, section.text))))
  before = rf"""\begin{{table}}
\centering
\caption{{{caption}}}
\begin{{tabular}}{{l{"r" * (len(table.columns) - 1)}}}
\toprule"""
  notes = [rf"\par\footnotesize {escaped(note)}" for note in section.notes]
  after = [r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}"]
  return "\n".join([before, *lines, *after])


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """Formats a CSV file; None becomes an empty field."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(columns)
  writer.writerows(rows)
  return text.getvalue()


def html(report: Report, lines: Sequence[str], read_picture: Callable[[str], bytes]) -> str:
  """Formats a report as a page with its pictures inside; its only links are to files beside it.

  `lines` are paragraphs below the title. `read_picture` reads a PNG file of the run's `plots`.
  """
  title = escape(report.title)
  paragraphs = [f"<p>{escape(text)}</p>\n" for text in lines if text]
  source_of = lambda name: f"data:image/png;base64,{base64.b64encode(read_picture(name)).decode()}"
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
  # A column of figures has few other cells, such as dashes. Facts, without a heading, are words.
  is_figure = re.compile(r"[-+]?\d").match
  words = [
    not table.columns or 2 * len(list(filter(is_figure, column))) < len(column)
    for column in zip(*table.rows, strict=True)
  ] or [True] * len(table.columns)
  # A heading of one long word breaks behind its underscores.
  head = [
    f"<th{_class('words' * is_words)}>{escape(text).replace('_', '_<wbr>')}</th>"
    for text, is_words in zip(table.columns, words, strict=bool(table.columns))
  ]
  lines = [f"<thead><tr>{''.join(head)}</tr></thead>"] if head else []
  lines.append("<tbody>")
  marks = table.marks or [""] * len(table.rows)
  shown = _cells(table, escape, "<strong>{}</strong>")
  for row, cells, mark in zip(table.rows, shown, marks, strict=True):
    # Sentences wrap, words stand on the left, and figures below one another on the right.
    kinds = ["text" if len(x) > 36 else "words" * w for x, w in zip(row, words, strict=True)]
    of_row = [f"<td{_class(kind)}>{x}</td>" for kind, x in zip(kinds, cells, strict=True)]
    lines.append(f"<tr{_class(mark)}>{''.join(of_row)}</tr>")
  body = "\n".join(lines)
  return f'<div class="scroll"><table>\n{body}\n</tbody></table></div>\n'


def _class(name: str) -> str:
  return f' class="{name}"' if name else ""
