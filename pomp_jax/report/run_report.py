"""The report of a run: which job's it is, what all runs add to it, and its files."""

from collections.abc import Mapping
import json
from typing import Any

from pomp_jax.config.settings import defaults, flatten
from pomp_jax.files.atomic import replacing
from pomp_jax.files.paths import exists, read_bytes
from pomp_jax.files.run_folder import RunFolder, to_json, with_provenance, writing
from pomp_jax.registry import JOBS, LATEX, load
from pomp_jax.report.report import (
  Report,
  Section,
  Table,
  facts,
  html,
  markdown,
  with_pictures,
)

# Files of runs that a report links to, with what they hold.
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


def report_of(results: Mapping[str, Any], fields: Mapping[str, Any]) -> Report:
  """The report of what `results.json` holds.

  Args:
    results: the figures; `results["job"]` has a report (`JOBS`).
    fields: fields of the config by dotted name.
  """
  return load(JOBS[results["job"]].report)(results, fields)


def finish_run(
  folder: RunFolder, config: Mapping[str, Any], results: Mapping[str, Any], *names: str
) -> None:
  """Writes a run's report and, last, its results: a folder with results is a finished run.

  The plots are in the folder already. `config` is that of config.json; `results` are without their
  provenance; `names` are "results.md" and "results.tex", as the job leaves them.
  """
  stored = with_provenance(results)
  report = report_of(stored, flatten(config))
  drawn = {section.picture for section in report.sections} - {""}
  report = with_pictures(report, {name for name in drawn if exists(folder.plots / name)})
  with writing(folder.path):
    for name in names:
      if write := markdown if name == "results.md" else LATEX and load(LATEX):
        with replacing(folder.path / name) as file:
          file.write(write(report).encode())
    page = _page(folder, config, report, stored["provenance"])  # links to the files above
    with replacing(folder.path / "report.html") as file:
      file.write(page.encode())
  folder.write_results(stored)


def _page(
  folder: RunFolder, config: Mapping[str, Any], report: Report, origin: Mapping[str, Any]
) -> str:
  """The report as HTML, with what every run says: origin, command, config, files, versions."""
  devices, commit = origin.get("devices"), origin.get("commit") or ""
  run = {
    "job": config["job"],
    "date": (origin.get("date") or "").replace("T", " ").replace("+00:00", " UTC"),
    "commit": commit,
    "devices": f"{devices['number']} x {devices['kind']}" if devices else "",
  }
  short = run | {"commit": f"commit {commit[:10]}" if commit else ""}
  unchanged = defaults(config["job"]).flat() | {"job": defaults().job}
  changed = [
    (field, value if isinstance(value, str) else json.dumps(json.loads(to_json(value))))
    for field, value in flatten(config).items()
    if value != unchanged[field]
  ]
  # results.json is written after the report, so that a folder with results is complete.
  files = [name for name in _FILES if name == "results.json" or exists(folder.path / name)]
  versions = {name: text or "-" for name, text in origin.get("versions", {}).items()}
  sections = [
    *report.sections,
    Section("Run", table=facts(run)),
    *([Section("Command", code=origin["command"])] if "command" in origin else []),
    Section(
      "Fields of the config that differ from their defaults",
      "" if changed else "None.",
      Table(("field", "value"), changed) if changed else None,
    ),
    Section("Config", code=json.dumps(config, indent=2), folded=True),
    Section("Files", links={f"{name}: {_FILES[name]}": name for name in files}),
    Section("Versions", table=facts(versions)),
  ]
  lines = " \u00b7 ".join(filter(None, short.values())), report.text
  whole = report._replace(sections=sections)
  return html(whole, lines, lambda name: read_bytes(folder.plots / name))
