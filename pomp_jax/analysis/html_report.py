"""Self-contained HTML reports: one file with embedded pictures; no server, network or script.

`write_run_report` adds to a job's own sections what all runs have: command, commit, date, devices,
config and versions. The only links are to files beside the page.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
import json
import os
from typing import Any, NamedTuple
import urllib.parse

from pomp_jax.config.fields import Settings, flatten
from pomp_jax.files.atomic import replacing
from pomp_jax.files.paths import exists, read_bytes
from pomp_jax.files.run_folder import RunFolder, to_json

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 72rem; margin: 2rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; border: 1px solid #ddd; }
p { max-width: 50rem; } h1 + p { color: #555; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.8rem; text-align: right; border-bottom: 1px solid #e3e3e3;
  white-space: nowrap; }
th { border-bottom: 2px solid #888; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
thead th:first-child, thead ~ tbody td:first-child { position: sticky; left: 0;
  background: #fff; }
th.words, td.words { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; text-align: left; }
table tbody tr.best td { background: #eef5fb; } tr.failed td { color: #a33000; }
pre { background: #f5f5f5; padding: 0.8rem; font-size: 13px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
details summary { cursor: pointer; }
@media (max-width: 40rem) { body { margin: 1rem auto; padding: 0 0.7rem; }
  th, td { padding: 0.25rem 0.5rem; } thead th:first-child, thead ~ tbody td:first-child {
  white-space: normal; min-width: 7rem; } }
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
  links: Mapping[str, str] = {}  # text -> path beside the page


class Report(NamedTuple):
  """What a job says of its results."""

  title: str
  text: str  # what was done, in a few sentences, with its numbers
  sections: Sequence[Section]


def pictures(folder: RunFolder, captions: Mapping[str, str]) -> list[Section]:
  """Sections of the plots that there are.

  Args:
    folder: folder of the run.
    captions: file in `plots` -> what it shows.
  """
  return [
    Section(caption, picture=folder.plots / name, caption=caption)
    for name, caption in captions.items()
    if exists(folder.plots / name)
  ]


# Files of runs that a report may name, with what they hold.
_FILES = {
  "results.json": "every figure",
  "results.md": "tables in Markdown",
  "results.tex": "tables in LaTeX",
  "cells.csv": "a line a cell",
  "results.csv": "a line a prompt and set",
  "classes.csv": "accuracy of each class",
  "confusions.csv": "names that were taken for others",
  "clip_benchmark.csv": "figures in CLIP_benchmark's form",
  "prompt.npz": "the learned prompt",
  "prompt_last.npz": "that of the last checkpoint",
  "prompt_best.npz": "that of the checkpoint that is best on validation",
  "classifier.npz": "the classifier",
  "metrics.jsonl": "scalars of the training",
  "config.json": "every field of the config",
  "plots": "pictures",
  "sets": "figures of each class",
  "labels": "label images of each prompt",
  "detections": "detections of each prompt in COCO's form",
}


def write_run_report(
  folder: RunFolder, config: Settings, results: Mapping[str, Any], report: Report
) -> None:
  """Writes `report.html` into a run's folder.

  Args:
    folder: folder of the run.
    config: config of the run.
    results: what `results.json` holds, with its provenance.
    report: the job's own part.
  """
  origin = results.get("provenance") or {}
  devices = origin.get("devices")
  facts = {
    "job": config.job,
    "date": (origin.get("date") or "").replace("T", " ").replace("+00:00", " UTC"),
    "commit": origin.get("commit") or "",
    "devices": f"{devices['number']} x {devices['kind']}" if devices else "",
  }
  changed = _changed_fields(config)
  files = {name: about for name, about in _FILES.items() if exists(folder.path / name)}
  # results.json is written after the report, so that a folder with results is complete.
  files = {"results.json": _FILES["results.json"]} | files
  sections = [
    *report.sections,
    Section("Run", table=Grid((), [(name, text) for name, text in facts.items() if text])),
    *([Section("Command", code=origin["command"])] if "command" in origin else []),
    Section(
      "Fields of the config that differ from their defaults",
      "" if changed else "None.",
      Grid(("field", "value"), changed) if changed else None,
    ),
    Section("Config", code=json.dumps(config.to_dict(), indent=2), folded=True),
    Section("Files", links={f"{name}: {about}": name for name, about in files.items()}),
  ]
  versions = {name: text or "-" for name, text in origin.get("versions", {}).items()}
  commit = f"commit {facts['commit'][:10]}" if facts["commit"] else ""
  line = " \u00b7 ".join(filter(None, (facts | {"commit": commit}).values()))
  write_report(folder.path / "report.html", report.title, sections, versions, (line, report.text))


def _changed_fields(config: Settings) -> list[tuple[str, str]]:
  defaults = flatten(Settings().to_dict())
  return [
    (field, value if isinstance(value, str) else json.dumps(json.loads(to_json(value))))
    for field, value in config.flat().items()
    if value != defaults.get(field)
  ]


def write_report(
  path: str | os.PathLike,
  title: str,
  sections: Sequence[Section],
  versions: Mapping[str, str],
  introduction: Sequence[str] = (),
) -> None:
  """Writes a page atomically.

  Args:
    path: HTML file to write.
    title: title of the page.
    sections: sections in order.
    versions: versions and other facts by name, for a table at the end.
    introduction: paragraphs below the title.
  """
  last = Section("Versions", table=Grid((), list(versions.items())))
  paragraphs = [f"<p>{escape(text)}</p>\n" for text in introduction if text]
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
{"".join(paragraphs)}{"".join(map(_section, (*sections, last)))}</body>
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


def _table(table: Grid) -> str:
  # A column of figures has few other cells, such as dashes. Facts, without a heading, are words.
  words = [
    not table.columns or 2 * sum(map(_is_figure, column)) < len(column)
    for column in zip(*table.rows, strict=True)
  ]
  words = words or [True] * len(table.columns)

  def line(tag: str, row: Sequence[str]) -> str:
    # Sentences wrap, words stand on the left, and figures below one another on the right.
    kinds = [
      "text" if tag == "td" and len(text) > 36 else "words" * is_words
      for text, is_words in zip(row, words, strict=True)
    ]
    # A heading of one long word breaks behind its underscores.
    shown = [escape(text).replace("_", "_<wbr>" if tag == "th" else "_") for text in row]
    return "".join(
      f'<{tag} class="{kind}">{text}</{tag}>' if kind else f"<{tag}>{text}</{tag}>"
      for kind, text in zip(kinds, shown, strict=True)
    )

  head = f"<thead><tr>{line('th', table.columns)}</tr></thead>\n" if table.columns else ""
  lines = [
    f'<tr class="{mark}">{line("td", row)}</tr>' if mark else f"<tr>{line('td', row)}</tr>"
    for row, mark in zip(table.rows, table.classes or [""] * len(table.rows), strict=True)
  ]
  body = "\n".join(lines)
  return f'<div class="scroll"><table>\n{head}<tbody>\n{body}\n</tbody></table></div>\n'


def _is_figure(text: str) -> bool:
  """Whether a cell holds a number, perhaps with its interval or spread."""
  return text[:1].isdigit() or text[1:2].isdigit() and text[0] in "-+"
