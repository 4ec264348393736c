"""Plots of an ablation: accuracy, time and memory against the first swept field."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from matplotlib.axes import Axes
import numpy as np

from pomp_jax.analysis.ablation import COSTS, Group, swept
from pomp_jax.analysis.drawing import legend_below, panels, plain, save, style

# A field that is not read at a value: such a point belongs to every line.
_OF_ALL_LINES = None


def sweep(
  path: str | os.PathLike,
  groups: Sequence[Group],
  references: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
  """A panel a figure: mean over the seeds and one standard deviation, each seed a faint dot.

  The first swept field runs along the axis, its values evenly spaced; every combination of the
  others is a line.

  Args:
    path: the PNG file.
    groups: from `ablation.groups`, at least one.
    references: figure -> label -> value, drawn as grey lines.
  """
  fields = swept(groups)
  along, others = (fields[0] if fields else None), fields[1:]
  names = list(dict.fromkeys(name for group in groups for name in group.figures))
  places = list(dict.fromkeys(_value(group, along) for group in groups))
  lines = list(dict.fromkeys(_line(group, others) for group in groups))
  lines = [line for line in lines if not others or any(value is not None for value in line)]
  lines = lines or [()]
  figure, axes_of = panels(max(len(names), 1), 3.3, 3.3, "Mean and standard deviation over seeds")
  drawn: dict[str, Any] = {}
  for axes, name in zip(axes_of, names, strict=False):
    for number, line in enumerate(lines):
      own = [group for group in groups if _belongs(group, others, line) and name in group.figures]
      own.sort(key=lambda group: places.index(_value(group, along)))
      x = [places.index(_value(group, along)) for group in own]
      drawn.setdefault(
        ", ".join(f"{f}={v}" for f, v in zip(others, line, strict=False)) or "all cells",
        _draw(axes, x, [group.figures[name] for group in own], number, len(lines), _scale(name)),
      )
    for label, value in (references or {}).get(name, {}).items():
      axes.axhline(_scale(name) * value, color="0.6", linestyle="--", linewidth=1, zorder=0)
      axes.annotate(
        label, (0.01, _scale(name) * value), xycoords=("axes fraction", "data"), fontsize=7,
        color="0.35", va="bottom",
      )  # fmt: skip
    axes.set_xticks(range(len(places)), places)
    axes.set_xlabel(along or "", fontsize=8)
    axes.set_xlim(-0.4, len(places) - 0.6)
    if name in COSTS and _spans_decades(groups, name):
      axes.set_yscale("log")
    axes.grid(color="0.92")
    plain(axes, COSTS.get(name) or f"{name.removesuffix('_top1')}: top-1 (%)")
  if len(drawn) > 1:
    legend_below(figure, list(drawn.values()), list(drawn))
  save(path, figure)


def _draw(axes: Axes, x: list[int], spreads: list, number: int, of: int, scale: float):
  # Side by side, so that error bars of several lines can be told apart.
  x_shifted = np.array(x, float) + 0.06 * (number - (of - 1) / 2)
  means = np.array([scale * found.mean for found in spreads])
  errors = [scale * found.std for found in spreads]
  line = axes.errorbar(x_shifted, means, errors, markersize=5, capsize=3, lw=1.4, **style(number))
  for place, found in zip(x_shifted, spreads, strict=True):
    seeds = scale * np.array(found.values)
    dots = {"s": 9, "color": style(number)["color"], "alpha": 0.35, "linewidths": 0}
    axes.scatter(np.full(len(seeds), place), seeds, **dots)
  return line


def _value(group: Group, field: str | None) -> str:
  return "" if field is None else str(group.values[field])


def _line(group: Group, others: Sequence[str]) -> tuple[Any, ...]:
  return tuple(group.values[field] for field in others)


def _belongs(group: Group, others: Sequence[str], line: tuple[Any, ...]) -> bool:
  own = _line(group, others)
  return all(a == b or a is _OF_ALL_LINES for a, b in zip(own, line, strict=False))


def _scale(name: str) -> float:
  return 1.0 if name in COSTS else 100.0


def _spans_decades(groups: Sequence[Group], name: str) -> bool:
  means = [group.figures[name].mean for group in groups if name in group.figures]
  return bool(means) and min(means) > 0 and max(means) > 20 * min(means)
