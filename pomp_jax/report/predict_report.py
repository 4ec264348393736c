"""The report of the job predict: the names in each picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from pomp_jax.registry import TASKS, Task, load
from pomp_jax.report import report
from pomp_jax.report.labels import counted
from pomp_jax.report.report import Report, Section, Table

Rows = Sequence[Mapping[str, Any]]

_MOST_PICTURES = 1000
# Weights that a row may have; `share` is a share of the pixels.
_WEIGHTS = ("share", "score", "probability")


def predict_report(results: Mapping[str, Any], config: Mapping[str, Any]) -> Report:
  """Reports the job `predict`: a row for each picture, and the unreadable ones."""
  images = results["images"]
  task = TASKS.get(str(results.get("task")))
  facts = {
    "prompt": results.get("prompt"),
    "names": results.get("names"),
    "probabilities": results.get("probabilities"),
  }
  if task is not None:
    facts.update((heading, results.get(key)) for heading, key in task.facts)
  sections = [
    _pictures(images, task),
    Section("What answered", table=report.facts(facts), brief=True),
  ]
  unreadable = results.get("unreadable", {})
  if unreadable:
    rows = list(unreadable.items())
    sections.append(report.failures("Pictures that can't be read", "picture", rows))
  text = f"Names for {counted(len(images), 'picture')}."
  return Report("Names for pictures", text, sections)


def _pictures(images: Mapping[str, Rows], task: Task | None) -> Section:
  """A row for each picture: the columns of the task's summary, and the names."""
  summary = _no_summary
  if task is not None and task.summary:
    summary = load(task.summary)
  lines = []
  headers: dict[str, None] = {}
  first_images = list(images.items())[:_MOST_PICTURES]
  summaries = [summary(rows) for _, rows in first_images]
  for columns in summaries:
    headers.update(dict.fromkeys(columns))
  for (file, rows), columns in zip(first_images, summaries, strict=True):
    names = ", ".join(map(named, rows)) or "-"
    lines.append([file, *(columns.get(header, "-") for header in headers), names])
  text = ""
  if len(images) > _MOST_PICTURES:
    text = f"The first {_MOST_PICTURES:,} of {len(images):,}; results.csv has all."
  table = Table(["picture", *headers, "names"], lines)
  return Section("Pictures", text, table, brief=True)


def _no_summary(rows: Rows) -> dict[str, str]:
  return {}


def named(row: Mapping[str, Any]) -> str:
  """A name with its weight in percent: the first of _WEIGHTS that the row has."""
  weight = next(row[key] for key in _WEIGHTS if key in row)
  return f"{row['name']} {100 * weight:.1f}%"
