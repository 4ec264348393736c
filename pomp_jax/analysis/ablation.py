"""The cells of an ablation as a tidy table, and summed up over its seeds."""

from collections.abc import Mapping, Sequence
import csv
import io
from typing import Any, NamedTuple

import numpy as np

SEED = "seed"
# Figures of a cell beside its accuracies: how a table calls them, and its unit.
COSTS = {"seconds": "training (s)", "memory_mib": "memory (MiB)"}


class Spread(NamedTuple):
  """A figure over seeds.

  Attributes:
    mean: of the seeds.
    std: sample standard deviation; 0 of one seed.
    values: one a seed.
  """

  mean: float
  std: float
  values: tuple[float, ...]


class Group(NamedTuple):
  """Cells that differ in the seed alone.

  Attributes:
    values: swept field -> value, without the seed.
    figures: name -> over the seeds; those of cells that failed are missing.
    failed: how many cells failed.
  """

  values: dict[str, Any]
  figures: dict[str, Spread]
  failed: int


def figures_of(cell: Mapping[str, Any]) -> dict[str, float]:
  """A cell's figures by name: top-1 of each split, and what it cost; none if it failed."""
  if cell.get("error"):
    return {}
  top1 = {f"{split}_top1": value for split, value in cell["top1"].items()}
  return top1 | {name: cell[name] for name in COSTS if cell.get(name) is not None}


def groups(cells: Sequence[Mapping[str, Any]]) -> list[Group]:
  """The cells, summed up over the seeds, in the order of their first.

  Args:
    cells: each with `values` (swept field -> value), and `error` or `top1` and costs.
  """
  found: dict[str, list[Mapping[str, Any]]] = {}
  for cell in cells:
    values = {field: value for field, value in cell["values"].items() if field != SEED}
    found.setdefault(repr(values), []).append(cell)
  result = []
  for members in found.values():
    values = {field: value for field, value in members[0]["values"].items() if field != SEED}
    of_members = [figures for figures in map(figures_of, members) if figures]
    names = dict.fromkeys(name for figures in of_members for name in figures)
    spreads = {
      name: spread([figures[name] for figures in of_members if name in figures]) for name in names
    }
    result.append(Group(values, spreads, len(members) - len(of_members)))
  return result


def spread(values: Sequence[float]) -> Spread:
  """Mean and sample standard deviation of one value or more."""
  std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
  return Spread(float(np.mean(values)), std, tuple(values))


def csv_text(cells: Sequence[Mapping[str, Any]]) -> str:
  """One line a cell: swept fields, figures, error; a field that is not read there is empty."""
  fields = list(dict.fromkeys(field for cell in cells for field in cell["values"]))
  figures = list(dict.fromkeys(name for cell in cells for name in figures_of(cell)))
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow([*fields, *figures, "error"])
  for cell in cells:
    own = figures_of(cell)
    writer.writerow(
      [cell["values"].get(field) for field in fields]
      + [own.get(name) for name in figures]
      + [cell.get("error")]
    )
  return file.getvalue()


def swept(groups_of: Sequence[Group]) -> list[str]:
  """The fields, other than the seed, that take several values, in their order."""
  fields = list(dict.fromkeys(field for group in groups_of for field in group.values))
  return [
    field
    for field in fields
    if len({str(group.values[field]) for group in groups_of if group.values[field] is not None}) > 1
  ]
