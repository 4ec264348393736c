"""Cells of an ablation: mean and standard deviation over the seeds, and their plot."""

from collections.abc import Mapping, Sequence
import os
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
import numpy as np

from pomp_jax.report import drawing
from pomp_jax.report.labels import counted

# Headings of the figures of a cell other than its accuracies.
COSTS = {"seconds": "training (s)", "memory_mib": "memory (MiB)"}


class Spread(NamedTuple):
  """Mean and sample standard deviation of a figure over seeds, and its value at each
  seed.

  Of costs the values are those of programs: the lanes of one share what was measured
  once.
  """

  mean: float
  std: float
  values: tuple[float, ...]


class Group(NamedTuple):
  """Cells that differ only in the seed."""

  values: dict[str, Any]  # swept field -> value, without the seed
  # name -> spread over the seeds of the cells that did not fail
  figures: dict[str, Spread]
  failed: int  # number of failed cells


def kind_of(values: Mapping[str, Any]) -> dict[str, Any]:
  """The values of a cell's swept fields without the seed."""
  return {field: value for field, value in values.items() if field != "seed"}


def text_of(value: Any) -> str:
  """Formats a value of a swept field; None, of a field that is not read, is a dash."""
  return "-" if value is None else str(value)


def figures_of(cell: Mapping[str, Any]) -> dict[str, float]:
  """Returns a cell's top-1 of each split and its costs by name; empty if it failed."""
  if cell.get("error"):
    return {}
  top1 = {f"{split}_top1": value for split, value in cell["top1"].items()}
  return top1 | {name: cell[name] for name in COSTS if cell.get(name) is not None}


def scale_of(name: str) -> float:
  """Factor of a figure where it is shown: accuracies are percentages."""
  return 1.0 if name in COSTS else 100.0


def groups(cells: Sequence[Mapping[str, Any]]) -> list[Group]:
  """Groups cells over the seeds, in the order of their first cell."""
  members_of: dict[str, list[Mapping[str, Any]]] = {}
  for cell in cells:
    members_of.setdefault(repr(kind_of(cell["values"])), []).append(cell)
  result = []
  for members in members_of.values():
    figures_of_seeds = [figures_of(cell) for cell in members]
    names = dict.fromkeys(name for figures in figures_of_seeds for name in figures)
    spreads = {}
    for name in names:
      values = [figures[name] for figures in figures_of_seeds if name in figures]
      if name in COSTS:
        # Lanes of one program have exactly the same share of it.
        values = list(dict.fromkeys(values))
      spreads[name] = _spread_of(values)
    n_failed = figures_of_seeds.count({})
    result.append(Group(kind_of(members[0]["values"]), spreads, n_failed))
  return result


def _spread_of(values: Sequence[float]) -> Spread:
  std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
  return Spread(float(np.mean(values)), std, tuple(values))


def swept(groups_of: Sequence[Group]) -> list[str]:
  """Returns the fields, other than the seed, that take several values."""
  values: dict[str, set[str]] = {}
  for group in groups_of:
    for field, value in group.values.items():
      of_field = values.setdefault(field, set())
      if value is not None:
        of_field.add(str(value))
  return [field for field, of_field in values.items() if len(of_field) > 1]


def is_ordered(groups_of: Sequence[Group], field: str) -> bool:
  """Whether the values of a field are numbers, or "all" classes, rather than names."""
  values = [group.values.get(field) for group in groups_of]
  return all(value == "all" or type(value) in (int, float) for value in values)


def sweep(
  path: str | os.PathLike,
  groups_of: Sequence[Group],
  references: Mapping[str, Mapping[str, float]],
  images: Mapping[str, str],
) -> None:
  """Plots mean and standard deviation over the seeds, a panel a figure.

  Each seed is a faint dot. The x axis is the first swept field with its values evenly
  spaced. Every combination of the other swept fields is a line, or marks alone where
  the x axis has names; a group that does not read one of them belongs to every line.

  Args:
    path: PNG file to write.
    groups_of: groups of cells.
    references: figure -> label -> value, which are grey lines.
    images: numbers of images of each split, as text.
  """
  along, *others = swept(groups_of) or [""]
  x_of_groups = [text_of(group.values.get(along, "")) for group in groups_of]
  ticks = list(dict.fromkeys(x_of_groups))
  keys = [tuple(group.values[field] for field in others) for group in groups_of]
  # A group that reads none of the other fields makes no line of its own.
  lines = [key for key in dict.fromkeys(keys) if any(v is not None for v in key)]
  lines = lines or [()]
  names = list(dict.fromkeys(name for group in groups_of for name in group.figures))
  n_seeds = max(
    (len(spread.values) for g in groups_of for spread in g.figures.values()), default=0
  )
  title = f"Mean and standard deviation over {counted(n_seeds, 'seed')}"
  figure, axes_of = drawing.panels(max(len(names), 1), 3.3, 3.3, title, columns=3)
  line_of_label: dict[str, Any] = {}
  linestyle = "-" if is_ordered(groups_of, along) else "none"
  for axes, name in zip(axes_of, names, strict=False):
    spreads = [group.figures[name] for group in groups_of if name in group.figures]
    for number, key_of_line in enumerate(lines):
      points = [
        (ticks.index(x), group.figures[name])
        for x, key, group in zip(x_of_groups, keys, groups_of, strict=True)
        if name in group.figures and _is_on_line(key, key_of_line)
      ]
      points.sort(key=lambda point: point[0])
      line = _draw_line(
        axes,
        points,
        number,
        # Shifted, so that the error bars of several lines can be told apart.
        shift=0.06 * (number - (len(lines) - 1) / 2),
        scale=scale_of(name),
        between=linestyle,
      )
      label = ", ".join(f"{f}={v}" for f, v in zip(others, key_of_line, strict=False))
      line_of_label.setdefault(label, line)
    for label, value in references.get(name, {}).items():
      line_of_label[label] = reference_line(axes, scale_of(name) * value)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    _scale_y_axis(axes, name, spreads)
    if name in COSTS:
      heading = f"{COSTS[name]}, a cell's share"
    else:
      heading = top1_heading(name.removesuffix("_top1"), images)
    drawing.label_panel(axes, heading, along, grid="both")
  named = {label: line for label, line in line_of_label.items() if label}
  if named:
    drawing.legend_below(figure, list(named.values()), list(named))
  drawing.save(path, figure)


def _is_on_line(key: tuple, key_of_line: tuple) -> bool:
  """Whether a group's other swept fields are those of a line, or are not read."""
  pairs = zip(key, key_of_line, strict=False)
  return all(value is None or value == of_line for value, of_line in pairs)


def _scale_y_axis(axes: Axes, name: str, spreads: Sequence[Spread]) -> None:
  """Sets the limits of a panel: 0 to 100% at most, or costs from 0, or logarithmic."""
  means = [spread.mean for spread in spreads]
  if name not in COSTS:
    drawing.end_at(axes, "y", 0.0, 100.0)
  elif name == "seconds" and min(means) > 0 and max(means) > 20 * min(means):
    drawing.log_axis(axes, "y")
  else:
    values = [value for spread in spreads for value in spread.values]
    axes.set_ylim(0, 1.1 * max(1e-6, *values))


def top1_heading(split: str, images: Mapping[str, str]) -> str:
  """Title of a panel: a split with its number of images."""
  count = f", {images[split]} images" if split in images else ""
  return f"{drawing.name(split, 18)}: top-1 (%){count}"


def _draw_line(
  axes: Axes,
  points: Sequence[tuple[int, Spread]],
  number: int,
  shift: float,
  scale: float,
  between: str,
):
  """Draws means with error bars, a line style between them, and the seeds as dots."""
  x = shift + np.array([place for place, _ in points])
  means = scale * np.array([spread.mean for _, spread in points])
  stds = scale * np.array([spread.std for _, spread in points])
  colour = drawing.style(number)["color"]
  for place, (_, spread) in zip(x, points, strict=True):
    seeds = scale * np.array(spread.values)
    places = np.full(len(seeds), place)
    axes.scatter(places, seeds, s=9, color=colour, alpha=0.35, linewidths=0)
  return drawing.error_bars(axes, x, means, number, yerr=stds, linestyle=between)


def reference_line(axes: Axes, value: float, label: str = "") -> Line2D:
  """Draws a grey horizontal line.

  Args:
    axes: axes of the panel.
    value: height of the line.
    label: name on the right, where curves have left the line.
  """
  line = axes.axhline(value, color="0.6", linestyle="--", linewidth=1, zorder=0)
  # Above curves and marks, which the text's rim leaves visible.
  above: dict[str, Any] = {"zorder": 5, "path_effects": drawing.outline()}
  axes.text(
    0.99,
    value,
    label,
    color="0.25",
    va="bottom",
    ha="right",
    fontsize=7,
    transform=axes.get_yaxis_transform(),
    **above,
  )
  return line
