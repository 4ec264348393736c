"""Self-contained HTML reports: one file with embedded pictures; no server, network or script."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
import os
from typing import NamedTuple

from pomp_jax.files.atomic import replacing
from pomp_jax.files.paths import read_bytes

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
  """A table of text cells."""

  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  classes: Sequence[str] = ()  # CSS class of each row: "best", "failed" or ""


class Section(NamedTuple):
  """A part of the report."""

  title: str
  text: str = ""  # introductory sentences
  table: Grid | None = None
  picture: str | os.PathLike | None = None  # PNG file to embed
  caption: str = ""  # description of the picture
  code: str = ""  # preformatted lines, such as a command or a config
  folded: bool = False  # whether the section starts folded


def write_report(
  path: str | os.PathLike, title: str, sections: Sequence[Section], versions: Mapping[str, str]
) -> None:
  """Writes a page atomically.

  Args:
    path: HTML file to write.
    title: title of the page.
    sections: sections in order.
    versions: versions and other facts by name, for a table at the end.
  """
  last = Section("Versions", table=Grid((), list(versions.items())))
  page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{"".join(map(_section, (*sections, last)))}</body>
</html>
"""
  with replacing(path) as file:
    file.write(page.encode())


def _section(section: Section) -> str:
  body = f"<p>{escape(section.text)}</p>\n" if section.text else ""
  if section.picture is not None:
    data = base64.b64encode(read_bytes(section.picture)).decode()
    body += f'<img alt="{escape(section.caption)}" src="data:image/png;base64,{data}">\n'
  if section.table is not None:
    body += _table(section.table)
  if section.code:
    body += f"<pre>{escape(section.code)}</pre>\n"
  if section.folded:
    body = f"<details><summary>show</summary>\n{body}</details>\n"
  return f"<h2>{escape(section.title)}</h2>\n{body}"


def _table(table: Grid) -> str:
  cells = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
  head = f"<thead><tr>{cells}</tr></thead>\n" if cells else ""
  lines = []
  for row, mark in zip(table.rows, table.classes or [""] * len(table.rows), strict=True):
    # Sentences wrap; figures and names do not.
    kinds = [' class="text"' if len(text) > 40 else "" for text in row]
    cells = "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True))
    lines.append(f'<tr class="{mark}">{cells}</tr>' if mark else f"<tr>{cells}</tr>")
  body = "\n".join(lines)
  return f'<div class="scroll"><table>\n{head}<tbody>\n{body}\n</tbody></table></div>\n'
