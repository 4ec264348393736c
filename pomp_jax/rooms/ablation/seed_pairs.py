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
  """A kind of cells less another one, seed by seed: mean in fractions, and Student's
  interval."""

  mean: float
  interval: tuple[float, float] | None  # None for one seed, or without spread


# Of each kind but the first: its swept values without the seed, and differences by
# figure.
Differences = Sequence[tuple[Mapping[str, Any], Mapping[str, Difference]]]


def paired_differences(cells: Sequence[Mapping[str, Any]]) -> Differences:
  """Differences of each kind of cells to the first kind in each top-1, over the
  seeds of both."""
  kinds: dict[str, dict[Any, dict[str, float]]] = {}  # kind -> seed -> figures
  values_of: dict[str, dict[str, Any]] = {}
  for cell in cells:
    values = plots.kind_of(cell["values"])
    values_of.setdefault(repr(values), values)
    of_seeds = kinds.setdefault(repr(values), {})
    of_seeds[cell["values"].get("seed")] = plots.figures_of(cell)
  first, *others = kinds.values()
  found = []
  for values, of_seeds in zip(list(values_of.values())[1:], others, strict=True):
    differences = {}
    for name in dict.fromkeys(name for own in of_seeds.values() for name in own):
      pairs = [
        own[name] - first[seed][name]
        for seed, own in of_seeds.items()
        if name in own and name in first.get(seed, {})
      ]
      if pairs and name not in plots.COSTS:
        differences[name] = _difference(pairs)
    found.append((values, differences))
  return found


def _difference(pairs: Sequence[float]) -> Difference:
  n, mean = len(pairs), float(np.mean(pairs))
  std = float(np.std(pairs, ddof=1)) if n > 1 else 0.0
  # equal differences of a few seeds don't tell the spread
  if np.isclose(std, 0, atol=1e-9):
    return Difference(mean, None)
  reach = float(scipy.special.stdtrit(n - 1, 0.975)) * std / n**0.5
  return Difference(mean, (mean - reach, mean + reach))


def differences_section(differences: Differences) -> list[Section]:
  """A row for each kind of cells but the first; nothing for one kind."""
  names = list(dict.fromkeys(name for _, own in differences for name in own))
  fields = list(dict.fromkeys(field for values, _ in differences for field in values))
  rows = []
  for values, own in differences:
    shown = []
    for name in names:
      text = "-"
      if name in own:
        text = f"{100 * own[name].mean:+.1f}"
        if ends := own[name].interval:
          text += f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})"
      shown.append(text)
    rows.append([*(plots.text_of(values.get(field)) for field in fields), *shown])
  if not names:
    return []
  columns = [*fields, *(name.removesuffix("_top1") for name in names)]
  return [
    Section(
      "Differences to the first kind of cells",
      _PAIRED,
      Table(columns, rows),
      brief=True,
    )
  ]
