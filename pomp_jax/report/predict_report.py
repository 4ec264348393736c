"""The report of the job predict: what is said of each picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from pomp_jax.report import report
from pomp_jax.report.labels import counted
from pomp_jax.report.report import Report, Section, Table

_MOST_PICTURES = 1000
# What a name may have: shares are of the pixels.
_WEIGHTS = ("share", "score", "probability")


def predict_report(results: Mapping[str, Any], config: Mapping[str, Any]) -> Report:
  """Reports the job `predict`: a row for each picture, and the unreadable ones."""
  images = results["images"]
  facts = {
    "prompt": results.get("prompt"),
    "names": results.get("names"),
    "probabilities": results.get("probabilities"),
    "class vectors": results.get("size"),
  }
  sections = [
    _pictures(images),
    Section("What answered", table=report.facts(facts), brief=True),
  ]
  unreadable = results.get("unreadable", {})
  if unreadable:
    rows = list(unreadable.items())
    sections.append(report.failures("Pictures that can't be read", "picture", rows))
  text = f"Names for {counted(len(images), 'picture')}."
  return Report("Names for pictures", text, sections)


def _pictures(images: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
  answered = list(images.values())
  has_answer = any("answer" in rows[0] for rows in answered if rows)
  has_sets = any(rows[0].get("in_set") is not None for rows in answered if rows)
  columns = ["picture", "names"]
  if has_answer:
    columns.insert(1, "answer")
  if has_sets:
    columns.append("names in the set")
  lines = []
  for file, rows in list(images.items())[:_MOST_PICTURES]:
    line = [file, ", ".join(map(named, rows)) or "-"]
    if has_answer:
      line.insert(1, rows[0]["answer"])
    if has_sets:
      line.append(_names_in_set(rows))
    lines.append(line)
  text = ""
  if len(images) > _MOST_PICTURES:
    text = f"The first {_MOST_PICTURES:,} of {len(images):,}; results.csv has all."
  return Section("Pictures", text, Table(columns, lines), brief=True)


def named(row: Mapping[str, Any]) -> str:
  """A name with the first of a share of the pixels, a score and a probability."""
  weight = next(row[key] for key in _WEIGHTS if key in row)
  return f"{row['name']} {100 * weight:.1f}%"


def _names_in_set(rows: Sequence[Mapping[str, Any]]) -> str:
  """How many of the names shown are in the set, which may have more where all are."""
  n_inside = sum(row["in_set"] for row in rows)
  return f"{n_inside} or more" if n_inside == len(rows) else str(n_inside)
