"""Accuracies of an evaluation by group of sets, with means, and published figures of the same."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from statistics import harmonic_mean
from typing import Any, NamedTuple

import numpy as np

from pomp_jax.registry import GROUPS

_PUBLISHED = pathlib.Path(__file__).with_name("published.json")
_TITLES = {
  "top1": "Top-1 accuracy (%)",
  "base": "Top-1 accuracy on base classes (%)",
  "new": "Top-1 accuracy on new classes (%)",
  "novel": "Top-1 accuracy on novel classes (%)",
  "harmonic": "Harmonic mean of base and the other classes (%)",
}
# Parts of a set's classes that a prompt was not trained on: CoOp's half, or a user's list.
_OTHERS = ("new", "novel")


class SetFigures(NamedTuple):
  """Figures of one set under each prompt."""

  group: str  # group of sets, a key of `registry.GROUPS`; a table each
  column: str  # heading of the set's column
  part: str  # part of its classes, "base", "new" or "novel"; "all"
  prompts: Mapping[str, Mapping[str, Any]]  # prompt -> figures of `metrics.Tally`
  split: str = "test"  # of its images


# Group -> kind -> prompt -> set, or the mean -> value.
AccuracyTables = dict[str, dict[str, dict[str, dict[str, Any]]]]


def accuracy_by_group(found: Sequence[SetFigures]) -> AccuracyTables:
  """Sorts top-1 by group and kind of accuracy, and adds means; fractions.

  Kinds: `top1`; for sets evaluated in parts `base`, `new` or `novel`, and their `harmonic` mean
  where a set has both. The harmonic mean of the means is that of the mean accuracies, as in CoCoOp.
  The mean is called "mean" if it is over all sets of the group, else e.g. "mean of 3".
  """
  tables = figure_by_group(found, "top1")
  for group, kinds in tables.items():
    base, others = kinds.get("base", {}), next((kinds[p] for p in _OTHERS if p in kinds), {})
    harmonic = {name: _harmonic(group, base[name], others[name]) for name in base if others}
    for rows in kinds.values():
      rows |= {label: row | _mean(group, row) for label, row in rows.items()}
    if harmonic and all(harmonic.values()):  # some set has both parts
      kinds["harmonic"] = harmonic
  return tables


def figure_by_group(found: Sequence[SetFigures], figure: str) -> AccuracyTables:
  """Sorts one figure by group and kind; sets without it are skipped."""
  tables: AccuracyTables = {}
  for one in found:
    kind = "top1" if one.part == "all" else one.part
    rows = tables.setdefault(one.group, {}).setdefault(kind, {})
    for label, figures in one.prompts.items():
      if figure in figures:
        rows.setdefault(label, {})[one.column] = figures[figure]
  return tables


def counts_by_group(
  found: Sequence[SetFigures], figure: str
) -> dict[str, dict[str, dict[str, int]]]:
  """Counts the "images" or "classes" behind each accuracy; those of both parts of a harmonic."""
  tables = {
    group: {kind: next(iter(rows.values())) for kind, rows in kinds.items()}
    for group, kinds in figure_by_group(found, figure).items()
  }
  for kinds in tables.values():
    others = next((kinds[part] for part in _OTHERS if part in kinds), {})
    both = {c: n + others[c] for c, n in kinds.get("base", {}).items() if c in others}
    if both:
      kinds["harmonic"] = both
  return tables


def _harmonic(
  group: str, base: Mapping[str, float], other: Mapping[str, float]
) -> dict[str, float]:
  # float: the mean of 0 and another number is the int 0.
  row = {c: float(harmonic_mean((value, other[c]))) for c, value in base.items() if c in other}
  if base.keys() == other.keys():  # else the means are over different sets
    new = _mean(group, other)
    means = _mean(group, base).items()
    row |= {name: float(harmonic_mean((value, new[name]))) for name, value in means}
  return row


def _mean(group: str, row: Mapping[str, float]) -> dict[str, float]:
  """Returns the mean over a row's sets by its name; nothing for one set or a group without mean."""
  if not GROUPS[group].mean or len(row) < 2:
    return {}
  name = "mean" if row.keys() == set(GROUPS[group].sets) else f"mean of {len(row)}"
  return {name: float(np.mean(list(row.values())))}


def title_of(group: str, kind: str) -> str:
  """Returns the title of a table or plot of a group of sets."""
  return f"{_TITLES[kind]}: {GROUPS[group].title}"


def published(
  group: str, kind: str, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
  """Published figures in the columns of `rows`: method -> `source` and `figures` (percent)."""
  content = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
  columns = {column for row in rows.values() for column in row}
  return {
    method["name"]: {
      "source": content["sources"][method["source"]],
      "figures": method["figures"][group][kind],
    }
    for method in content["methods"]
    if columns & set(method["figures"].get(group, {}).get(kind, {}))
  }
