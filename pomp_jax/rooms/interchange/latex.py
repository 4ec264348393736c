"""The tables of a report as LaTeX, to be included in a paper.

A table that is too wide with intervals is written without them, with upright headings;
one that is still too wide is scaled to the line, and one that is too long for a page is
divided.
"""

import re

from pomp_jax.files.paths import without_folders
from pomp_jax.report.report import (
  Report,
  Section,
  Table,
  cells,
  headings,
  is_words,
  without_intervals,
)

_ESCAPES = {ord(letter): f"\\{letter}" for letter in "&%$#_{}"} | {
  ord("\\"): r"\textbackslash{}",
  ord("~"): r"\textasciitilde{}",
  ord("^"): r"\textasciicircum{}",
  ord("<"): r"\textless{}",
  ord(">"): r"\textgreater{}",
  ord("|"): r"\textbar{}",
  ord("\u00b1"): r"$\pm$",
  ord("\u2026"): r"\ldots{}",
}
_HEADER = r"""% Packages: \usepackage{booktabs} and \usepackage{graphicx} (\rotatebox, \resizebox).
% Include it by \input{results}. Tables are floats; their numbers are those of results.json.
% Names in other than Latin letters need XeLaTeX or LuaLaTeX."""
# Characters of a line of a one-column article at 10 points; and of a table that is
# scaled to it.
_LINE, _SCALED = 72, 100
_ROWS = 40  # of a table on one page
_CELL = 60  # characters of a cell; a longer one is a paragraph
_SAVED = 0.8  # share of the width from which on headings stand upright
_GAP = 2  # characters between columns
_BREAK = ", "  # where a heading has a line's end


def latex(report: Report) -> str:
  """Formats the brief sections as floats, below a comment with the packages that they
  need.

  Absolute paths are cut to their last name.
  """
  parts = [_comment(report.title, report.text), _HEADER]
  for section in report.sections:
    if section.brief and section.table:
      parts += _tables(section)
    elif section.brief:
      parts.append(_comment(section.title, section.text, *section.notes))
  return "\n\n".join(parts) + "\n"


def _comment(*texts: str) -> str:
  lines = [line for text in texts for line in without_folders(text).splitlines()]
  return "\n".join(f"% {line}" for line in lines)


def _tables(section: Section) -> list[str]:
  """The floats of a section, in its compact form if the whole one is too wide."""
  section, before = _without_paths(section), ""
  compact, table = without_intervals(section), section.table
  assert table is not None and compact.table is not None
  if _width(table, upright=False) > _SCALED and compact.table.rows != table.rows:
    section, table, before = (
      compact,
      compact.table,
      "% Without intervals, which results.md has.\n",
    )
  floats = []
  for first in range(0, max(len(table.rows), 1), _ROWS):
    rows = range(first, min(first + _ROWS, len(table.rows)))
    bold = [(row - first, column) for row, column in table.bold if row in rows]
    marks = (table.marks or [""] * len(table.rows))[first : first + _ROWS]
    part = Table(table.columns, table.rows[first : first + _ROWS], marks, bold)
    title = section.title + (" (continued)" if first else "")
    floats.append(before + _float(section._replace(title=title, table=part), part))
  return floats


def _without_paths(section: Section) -> Section:
  table = section.table
  assert table is not None
  rows = [[without_folders(text) for text in row] for row in table.rows]
  notes = [without_folders(note) for note in section.notes]
  table = table._replace(rows=rows)
  return section._replace(text=without_folders(section.text), notes=notes, table=table)


def _width(table: Table, *, upright: bool) -> int:
  """Characters of a line of the table; upright headings, but that of the rows, need
  one each."""
  widths = []
  for column, heading in enumerate(headings(table)):
    of_heading = 1 if upright and column else max(map(len, heading.split(_BREAK)))
    longest = max([of_heading, *(len(row[column]) for row in table.rows)])
    widths.append(min(longest, _CELL) + _GAP)
  return sum(widths)


def _float(section: Section, table: Table) -> str:
  width, narrow = (_width(table, upright=upright) for upright in (False, True))
  upright = width > _LINE and narrow < _SAVED * width
  lines = [rf"{' & '.join(_headings(table, upright))} \\"]
  rows = cells(table, _escaped, r"\textbf{{{}}}")
  for number, row in enumerate(rows):
    if number == 0 or _part(table, number) != _part(table, number - 1):
      lines.append(r"\midrule")
    lines.append(rf"{' & '.join(row)} \\")
  body = [
    rf"\begin{{tabular}}{{{_layout(table)}}}",
    r"\toprule",
    *lines,
    r"\bottomrule",
  ]
  body.append(r"\end{tabular}")
  if (narrow if upright else width) > _LINE:
    body = [r"\resizebox{\linewidth}{!}{" + body[0], *body[1:-1], body[-1] + "}"]
  caption = _escaped(". ".join(filter(None, (section.title, section.text))))
  head = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", r"\smallskip"]
  notes = [rf"\par\footnotesize {_escaped(note)}" for note in section.notes]
  return "\n".join([*head, *body, *notes, r"\end{table}"])


def _part(table: Table, row: int) -> str:
  """The part of the table that a row belongs to; "best" and "failed" rows are in the
  main one."""
  return "" if table.marks[row] in ("best", "failed") else table.marks[row]


def _headings(table: Table, upright: bool) -> list[str]:
  """Headings, broken behind commas, or upright but for that of the rows."""
  found = []
  for column, heading in enumerate(headings(table)):
    parts = list(map(_escaped, heading.split(_BREAK)))
    if upright and column:
      found.append(rf"\rotatebox{{90}}{{{_BREAK.join(parts)}}}")
    elif len(parts) > 1:
      stacked = r" \\ ".join(parts)
      found.append(rf"\shortstack{{{stacked}}}")
    else:
      found += parts
  return found


def _layout(table: Table) -> str:
  """Words on the left, figures on the right, long cells as paragraphs."""
  layout = ""
  for column, heading in enumerate(headings(table)):
    longest = max([len(heading), *(len(row[column]) for row in table.rows)])
    if longest > _CELL:
      layout += r"p{0.6\linewidth}"
    else:
      layout += "l" if column == 0 or is_words(table, column) else "r"
  return layout


def _escaped(text: str) -> str:
  text = re.sub(r"(?<![\w-])-(?=\d)", "\0", text.translate(_ESCAPES)).replace(
    "\0", "$-$"
  )
  # Behind "\\" LaTeX reads "[" and "*" as an argument.
  return f"{{}}{text}" if text.startswith(("[", "*")) else text
