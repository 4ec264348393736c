"""Differences between the cells of an ablation, paired by their seed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from pomp_jax.report.report import Section, Table
from pomp_jax.rooms.ablation import plots

_PAIRED = (
  "Mean over the seeds of the difference in top-1 to the cell of the same seed in the first row of"
  " the summary, in points; the images are the same. In brackets: Student's 95% interval over the"
  " seeds, which does not cover the choice of the images."
)


class Difference(NamedTuple):
  """Difference of a figure between two kinds of cells, paired by seed, as fractions."""

  mean: float
  # Student's 95% interval over the seeds.
  interval: tuple[float, float] | None  # None for one seed, or without spread


# For each kind of cells but the first: its swept values without the seed, and its
# differences to the first kind by figure.
Differences = Sequence[tuple[Mapping[str, Any], Mapping[str, Difference]]]


def paired_differences(cells: Sequence[Mapping[str, Any]]) -> Differences:
  """Compares the top-1 figures of each kind of cells with those of the first kind.

  A difference is over the seeds that both kinds have.
  """
  figures_of_kinds: dict[str, dict[Any, dict[str, float]]] = {}  # by kind and seed
  values_of_kinds: dict[str, dict[str, Any]] = {}
  for cell in cells:
    values = plots.kind_of(cell["values"])
    kind = repr(values)
    values_of_kinds.setdefault(kind, values)
    figures_of_seeds = figures_of_kinds.setdefault(kind, {})
    figures_of_seeds[cell["values"].get("seed")] = plots.figures_of(cell)
  first, *others = values_of_kinds
  differences = []
  for kind in others:
    differences_of_kind = _differences(figures_of_kinds[kind], figures_of_kinds[first])
    differences.append((values_of_kinds[kind], differences_of_kind))
  return differences


def _differences(
  figures_of_seeds: Mapping[Any, Mapping[str, float]],
  first_figures: Mapping[Any, Mapping[str, float]],
) -> dict[str, Difference]:
  """Differences of a kind's accuracies to the first kind's, without its costs."""
  values_of_seeds: dict[str, list[float]] = {}
  for seed, figures in figures_of_seeds.items():
    for name, value in figures.items():
      values = values_of_seeds.setdefault(name, [])
      if name in first_figures.get(seed, {}):
        values.append(value - first_figures[seed][name])
  differences = {}
  for name, values in values_of_seeds.items():
    if values and name not in plots.COSTS:
      differences[name] = _difference(values)
  return differences


def _difference(pairs: Sequence[float]) -> Difference:
  """Mean of `pairs`, one difference a seed, with Student's 95% interval."""
  n_pairs = len(pairs)
  mean = float(np.mean(pairs))
  std = 0.0
  if n_pairs > 1:
    std = float(np.std(pairs, ddof=1))
  # One seed, or a few seeds with equal differences, don't tell the spread.
  if np.isclose(std, 0, atol=1e-9):
    return Difference(mean, None)
  quantile = float(scipy.special.stdtrit(n_pairs - 1, 0.975))
  reach = quantile * std / n_pairs**0.5
  return Difference(mean, (mean - reach, mean + reach))


def differences_section(differences: Differences) -> list[Section]:
  """Tabulates the differences, a row for each kind but the first; [] for one kind."""
  fields: list[str] = []
  names: list[str] = []
  for values, differences_of_kind in differences:
    fields += values.keys()
    names += differences_of_kind.keys()
  # List each field and each figure once, in the order of the kinds.
  fields = list(dict.fromkeys(fields))
  names = list(dict.fromkeys(names))
  if not names:
    return []
  rows = []
  for values, differences_of_kind in differences:
    row = [plots.text_of(values.get(field)) for field in fields]
    row += [_difference_cell(differences_of_kind.get(name)) for name in names]
    rows.append(row)
  columns = [*fields, *(name.removesuffix("_top1") for name in names)]
  return [
    Section(
      "Differences to the first kind of cells",
      _PAIRED,
      Table(columns, rows),
      brief=True,
    )
  ]


def _difference_cell(difference: Difference | None) -> str:
  """A difference in points, with its interval."""
  if difference is None:
    return "-"
  text = f"{100 * difference.mean:+.1f}"
  if difference.interval is None:
    return text
  low, high = difference.interval
  return f"{text} ({100 * low:+.1f} to {100 * high:+.1f})"
