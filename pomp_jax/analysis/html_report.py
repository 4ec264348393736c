"""One HTML file that needs nothing else: no server, no network, no script; pictures within."""

import base64
from collections.abc import Mapping, Sequence
import html
import os
import pathlib
from typing import NamedTuple

from pomp_jax.files.atomic import replacing

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 72rem; margin: 2rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; border: 1px solid #ddd; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.8rem; text-align: right; border-bottom: 1px solid #e3e3e3;
  white-space: nowrap; }
th { border-bottom: 2px solid #888; } th:first-child, td:first-child { text-align: left; }
td.text { white-space: normal; text-align: left; }
tr.best td { background: #eef5fb; } tr.failed td { color: #a33000; }
pre { background: #f5f5f5; padding: 0.8rem; overflow-x: auto; font-size: 13px; }
details summary { cursor: pointer; }
@media print { details[open] { break-inside: avoid; } }
"""


class Grid(NamedTuple):
  """A table as text.

  Attributes:
    columns: headings.
    rows: cells, as many in each as there are columns.
    classes: for each row a mark: "best", "failed" or "".
  """

  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  classes: Sequence[str] = ()


class Section(NamedTuple):
  """A part of the report.

  Attributes:
    title: its heading.
    text: sentences before what follows; may be empty.
    table: shown if given.
    picture: a PNG file, put into the page; with `caption` as its description.
    caption: of the picture.
    code: preformatted lines, such as commands or a config.
    folded: whether the reader has to open it.
  """

  title: str
  text: str = ""
  table: Grid | None = None
  picture: str | os.PathLike | None = None
  caption: str = ""
  code: str = ""
  folded: bool = False


def write_report(
  path: str | os.PathLike, title: str, sections: Sequence[Section], facts: Mapping[str, str]
) -> None:
  """Writes the page, whole or not at all.

  Args:
    path: the HTML file.
    title: of the page.
    sections: in their order.
    facts: what it was made with, by name; a table at the end.
  """
  made_with = Grid(("", ""), [(name, value) for name, value in facts.items()])
  parts = [_section(section) for section in (*sections, Section("Versions", table=made_with))]
  page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{"".join(parts)}</body>
</html>
"""
  with replacing(path) as file:
    file.write(page.encode())


def _section(section: Section) -> str:
  parts = []
  if section.text:
    parts.append(f"<p>{html.escape(section.text)}</p>\n")
  if section.picture is not None:
    data = base64.b64encode(pathlib.Path(section.picture).read_bytes()).decode()
    caption = html.escape(section.caption, quote=True)
    parts.append(f'<img alt="{caption}" src="data:image/png;base64,{data}">\n')
  if section.table is not None:
    parts.append(_table(section.table))
  if section.code:
    parts.append(f"<pre>{html.escape(section.code)}</pre>\n")
  body = "".join(parts)
  if section.folded:
    body = f"<details><summary>show</summary>\n{body}</details>\n"
  return f"<h2>{html.escape(section.title)}</h2>\n{body}"


def _table(table: Grid) -> str:
  head = ""
  if any(table.columns):
    cells = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    head = f"<thead><tr>{cells}</tr></thead>\n"
  marks = table.classes or [""] * len(table.rows)
  lines = []
  for row, mark in zip(table.rows, marks, strict=True):
    cells = "".join(_cell(text) for text in row)
    lines.append(f'<tr class="{mark}">{cells}</tr>' if mark else f"<tr>{cells}</tr>")
  body = "\n".join(lines)
  return f'<div class="scroll"><table>\n{head}<tbody>\n{body}\n</tbody></table></div>\n'


def _cell(text: str) -> str:
  # Sentences wrap; figures and names do not.
  mark = ' class="text"' if len(text) > 40 else ""
  return f"<td{mark}>{html.escape(text)}</td>"
