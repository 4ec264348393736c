"""Writes the tables of a report as LaTeX, to be included in a paper.

A table that is too wide loses its intervals. If it is still wider than a line, its
headings stand upright, provided that this saves enough. A table that is even then too
wide is scaled to the line. A table that is too long for a page is divided.
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
_LINE = 72  # characters of a line of a one-column article at 10 points
_WIDEST = 100  # most characters of a row with intervals that is scaled to such a line
_ROWS = 40  # most rows of a table on one page
_CELL = 60  # most characters of a cell; a longer cell is a paragraph
_SAVED = 0.8  # headings stand upright if this reduces the width to a smaller share
_GAP = 2  # characters between columns
_BREAK = ", "  # a heading may have a line break here


def latex(report: Report) -> str:
  """Formats the sections of a report that are `brief`: those that a paper would have.

  A table becomes a float. The text of a section without a table becomes a comment. The
  first comment names the packages that the tables need.

  Args:
    report: report of a job. Its absolute paths are cut to their last name.

  Returns:
    LaTeX to be included by \\input, without a preamble.
  """
  parts = [_comment(report.title, report.text), _HEADER]
  for section in report.sections:
    if not section.brief:
      continue
    if section.table:
      parts += _tables(section)
    else:
      parts.append(_comment(section.title, section.text, *section.notes))
  return "\n\n".join(parts) + "\n"


def _comment(*texts: str) -> str:
  """Texts as lines of a comment."""
  lines = [line for text in texts for line in without_folders(text).splitlines()]
  return "\n".join(f"% {line}" for line in lines)


def _tables(section: Section) -> list[str]:
  """LaTeX's `table` environments of a section, without intervals if too wide with them."""
  section = _without_paths(section)
  comment = ""
  compact = without_intervals(section)
  assert section.table is not None
  assert compact.table is not None
  has_intervals = compact.table.rows != section.table.rows
  if has_intervals and _width(section.table, upright=False) > _WIDEST:
    section = compact
    comment = "% Without intervals, which results.md has.\n"
  table = section.table
  assert table is not None
  marks = table.marks or [""] * len(table.rows)
  environments = []
  for start in range(0, max(len(table.rows), 1), _ROWS):
    stop = min(start + _ROWS, len(table.rows))
    bold = [(row - start, column) for row, column in table.bold if start <= row < stop]
    page = Table(
      table.columns, rows=table.rows[start:stop], marks=marks[start:stop], bold=bold
    )
    title = section.title
    if start:
      title += " (continued)"
    section_of_page = section._replace(title=title, table=page)
    environments.append(comment + _environment(section_of_page, page))
  return environments


def _without_paths(section: Section) -> Section:
  """A section whose paths are cut to their last names."""
  table = section.table
  assert table is not None
  rows = [[without_folders(text) for text in row] for row in table.rows]
  notes = [without_folders(note) for note in section.notes]
  table = table._replace(rows=rows)
  return section._replace(text=without_folders(section.text), notes=notes, table=table)


def _width(table: Table, *, upright: bool) -> int:
  """Characters of a line of the table.

  The first heading is never upright. An upright heading is one character wide.
  """
  width = 0
  for column, heading in enumerate(headings(table)):
    longest = max(map(len, heading.split(_BREAK)))
    if upright and column:
      longest = 1
    for row in table.rows:
      longest = max(longest, len(row[column]))
    width += min(longest, _CELL) + _GAP
  return width


def _environment(section: Section, table: Table) -> str:
  """A section's title, text, table and notes as a float that fits the line."""
  width = _width(table, upright=False)
  upright_width = _width(table, upright=True)
  upright = width > _LINE and upright_width < _SAVED * width
  if upright:
    width = upright_width
  begin = rf"\begin{{tabular}}{{{_layout(table)}}}"
  end = r"\end{tabular}"
  if width > _LINE:
    begin = r"\resizebox{\linewidth}{!}{" + begin
    end += "}"
  caption = _escaped(". ".join(filter(None, (section.title, section.text))))
  lines = [
    r"\begin{table}",
    r"\centering",
    rf"\caption{{{caption}}}",
    r"\smallskip",
    begin,
    r"\toprule",
    rf"{' & '.join(_headings(table, upright))} \\",
  ]
  for number, row in enumerate(cells(table, _escaped, r"\textbf{{{}}}")):
    if number == 0 or _part(table, number) != _part(table, number - 1):
      lines.append(r"\midrule")
    lines.append(rf"{' & '.join(row)} \\")
  lines += [r"\bottomrule", end]
  lines += [rf"\par\footnotesize {_escaped(note)}" for note in section.notes]
  lines.append(r"\end{table}")
  return "\n".join(lines)


def _part(table: Table, row: int) -> str:
  """Part of the table that a row belongs to, by its mark; "" is the main part."""
  # The marks "best" and "failed" are those of rows in the main part.
  mark = table.marks[row]
  return "" if mark in ("best", "failed") else mark


def _headings(table: Table, upright: bool) -> list[str]:
  """LaTeX of a table's headings.

  A heading has a line break behind each comma. If `upright`, a heading is one line that
  is turned by 90 degrees. The first heading is not turned: its column is as wide as the
  names in it.
  """
  texts = []
  for column, heading in enumerate(headings(table)):
    parts = [_escaped(part) for part in heading.split(_BREAK)]
    is_turned = upright and column > 0
    if is_turned:
      line = _BREAK.join(parts)
      texts.append(rf"\rotatebox{{90}}{{{line}}}")
    elif len(parts) > 1:
      lines = r" \\ ".join(parts)
      texts.append(rf"\shortstack{{{lines}}}")
    else:
      texts.append(parts[0])
  return texts


def _layout(table: Table) -> str:
  """LaTeX's columns: words are left-aligned, figures right, long cells paragraphs."""
  layout = ""
  for column, heading in enumerate(headings(table)):
    longest = max([len(heading), *(len(row[column]) for row in table.rows)])
    if longest > _CELL:
      layout += r"p{0.6\linewidth}"
    else:
      layout += "l" if column == 0 or is_words(table, column) else "r"
  return layout


def _escaped(text: str) -> str:
  """Escapes a text for LaTeX; a hyphen before a number becomes a minus sign."""
  text = text.translate(_ESCAPES)
  text = re.sub(r"(?<![\w-])-(?=\d)", "$-$", text)
  if text.startswith(("[", "*")):
    # Behind the "\\" of the row before, LaTeX would read "[" or "*" as an argument.
    return f"{{}}{text}"
  return text
