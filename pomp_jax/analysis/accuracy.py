"""Top-1 of an evaluation as its tables have it: by group of sets, with means."""

from collections.abc import Mapping, Sequence
from statistics import harmonic_mean
from typing import Any, NamedTuple

import numpy as np

from pomp_jax.data.suites import GROUPS

# Parts of a set's classes that a prompt was not learned on: CoOp's half, or a user's list.
_OTHERS = ("new", "novel")


class SetFigures(NamedTuple):
  """What was found on one set.

  Attributes:
    group: the table that it stands in, one of `suites.GROUPS`.
    column: its heading there.
    part: "all", or the part of its classes: base, new or novel.
    prompts: prompt -> `metrics.Tally.figures`.
  """

  group: str
  column: str
  part: str
  prompts: Mapping[str, Mapping[str, Any]]


# Group -> kind -> prompt -> set, or the mean -> value.
Tables = dict[str, dict[str, dict[str, dict[str, Any]]]]


def accuracy_by_group(found: Sequence[SetFigures]) -> Tables:
  """Top-1 as a fraction: group -> kind -> prompt -> set, or the mean -> value.

  Kinds: `top1`; of sets that are evaluated in parts `base`, `new` or `novel`, and their `harmonic`
  mean, where a set has both. That of the means is the harmonic mean of the mean accuracies, as
  CoCoOp's tables have it.

  The mean over several sets is called "mean" where these are all that belong to the group, and
  "mean of 3" otherwise.
  """
  tables = figure_by_group(found, "top1")
  for group, kinds in tables.items():
    others = [kinds[part] for part in _OTHERS if part in kinds]
    if "base" in kinds and others:
      harmonic = {
        label: _harmonic(group, row, others[0][label]) for label, row in kinds["base"].items()
      }
      if all(harmonic.values()):  # some set has both parts
        kinds["harmonic"] = harmonic
    for kind, rows in kinds.items():
      for label, row in rows.items():
        rows[label] = row if kind == "harmonic" else row | _mean(group, row)
  return tables


def figure_by_group(found: Sequence[SetFigures], figure: str) -> Tables:
  """A figure that a set has under a prompt: group -> kind -> prompt -> set -> value."""
  tables: Tables = {}
  for one in found:
    kind = "top1" if one.part == "all" else one.part
    rows = tables.setdefault(one.group, {}).setdefault(kind, {})
    for label, figures in one.prompts.items():
      if figure in figures:
        rows.setdefault(label, {})[one.column] = figures[figure]
  return tables


def images_by_group(found: Sequence[SetFigures]) -> dict[str, dict[str, dict[str, int]]]:
  """Images that each figure of `accuracy_by_group` is of: group -> kind -> set -> count.

  A harmonic mean is of the images of both parts.
  """
  tables = {
    group: {kind: next(iter(rows.values())) for kind, rows in kinds.items()}
    for group, kinds in figure_by_group(found, "images").items()
  }
  for kinds in tables.values():
    others = [kinds[part] for part in _OTHERS if part in kinds]
    if "base" in kinds and others:
      both = {c: n + others[0][c] for c, n in kinds["base"].items() if c in others[0]}
      if both:
        kinds["harmonic"] = both
  return tables


def _harmonic(
  group: str, base: Mapping[str, float], other: Mapping[str, float]
) -> dict[str, float]:
  row = {
    column: harmonic_mean((value, other[column]))
    for column, value in base.items()
    if column in other
  }
  if base.keys() != other.keys():  # a part is missing: the means are of other sets
    return row
  means = zip(_mean(group, base).items(), _mean(group, other).values(), strict=True)
  return row | {name: harmonic_mean((value, of_other)) for (name, value), of_other in means}


def _mean(group: str, row: Mapping[str, float]) -> dict[str, float]:
  """The mean over a row's sets, by its name; none of one set, or where it says nothing."""
  if not GROUPS[group].mean or len(row) < 2:
    return {}
  name = "mean" if row.keys() == set(GROUPS[group].sets) else f"mean of {len(row)}"
  return {name: float(np.mean(list(row.values())))}
