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
  """Returns a cell's top-1 of each split and its costs by name; nothing if it
  failed."""
  if cell.get("error"):
    return {}
  top1 = {f"{split}_top1": value for split, value in cell["top1"].items()}
  return top1 | {name: cell[name] for name in COSTS if cell.get(name) is not None}


def scale_of(name: str) -> float:
  """Factor of a figure where it is shown: accuracies are percentages."""
  return 1.0 if name in COSTS else 100.0


def groups(cells: Sequence[Mapping[str, Any]]) -> list[Group]:
  """Groups cells over the seeds, in the order of their first cell."""
  members: dict[str, list[Mapping[str, Any]]] = {}
  for cell in cells:
    members.setdefault(repr(kind_of(cell["values"])), []).append(cell)
  result = []
  for own in members.values():
    figures, spreads = list(map(figures_of, own)), {}
    for name in dict.fromkeys(name for of_cell in figures for name in of_cell):
      values = tuple(of_cell[name] for of_cell in figures if name in of_cell)
      # Lanes of one program have exactly the same share of it.
      values = tuple(dict.fromkeys(values)) if name in COSTS else values
      std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
      spreads[name] = Spread(float(np.mean(values)), std, values)
    result.append(Group(kind_of(own[0]["values"]), spreads, figures.count({})))
  return result


def swept(groups_of: Sequence[Group]) -> list[str]:
  """Returns the fields, other than the seed, that take several values."""
  fields = dict.fromkeys(field for group in groups_of for field in group.values)
  values = {
    f: {str(g.values[f]) for g in groups_of if g.values[f] is not None} for f in fields
  }
  return [field for field in fields if len(values[field]) > 1]


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
  """Plots mean and standard deviation over the seeds, a panel a figure; each seed is a
  faint dot.

  The x axis is the first swept field with its values evenly spaced. Every combination
  of the other swept fields is a line, or marks alone where the x axis has names; a
  group that does not read one of them belongs to every line. References are grey lines:
  figure -> label -> value. `images` are the numbers of images of each split.
  """
  along, *others = swept(groups_of) or [""]
  x_of = [text_of(group.values.get(along, "")) for group in groups_of]
  ticks = list(dict.fromkeys(x_of))
  keys = [tuple(group.values[field] for field in others) for group in groups_of]
  lines = [
    key for key in dict.fromkeys(keys) if any(value is not None for value in key)
  ] or [()]
  names = list(dict.fromkeys(name for group in groups_of for name in group.figures))
  seeds = max(
    (len(one.values) for g in groups_of for one in g.figures.values()), default=0
  )
  title = f"Mean and standard deviation over {counted(seeds, 'seed')}"
  figure, axes_of = drawing.panels(max(len(names), 1), 3.3, 3.3, title, columns=3)
  drawn: dict[str, Any] = {}
  between = "-" if is_ordered(groups_of, along) else "none"
  for axes, name in zip(axes_of, names, strict=False):
    for number, key_of_line in enumerate(lines):
      points = [
        (ticks.index(x), group.figures[name])
        for x, key, group in zip(x_of, keys, groups_of, strict=True)
        if name in group.figures
        and all(a is None or a == b for a, b in zip(key, key_of_line, strict=False))
      ]
      points.sort(key=lambda point: point[0])
      # Shifted, so that the error bars of several lines can be told apart.
      shift = 0.06 * (number - (len(lines) - 1) / 2)
      label = ", ".join(f"{f}={v}" for f, v in zip(others, key_of_line, strict=False))
      line = _draw_line(axes, points, number, shift, scale_of(name), between)
      drawn.setdefault(label, line)
    for label, value in references.get(name, {}).items():
      drawn[label] = reference_line(axes, scale_of(name) * value)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    means = [group.figures[name].mean for group in groups_of if name in group.figures]
    if name not in COSTS:
      drawing.end_at(axes, "y", 0.0, 100.0)
    elif name == "seconds" and min(means) > 0 and max(means) > 20 * min(means):
      drawing.log_axis(axes, "y")
    else:
      spreads = [group.figures[name] for group in groups_of if name in group.figures]
      axes.set_ylim(
        0, 1.1 * max([1e-6, *(value for one in spreads for value in one.values)])
      )
    split = name.removesuffix("_top1")
    heading = (
      f"{COSTS[name]}, a cell's share" if name in COSTS else top1_heading(split, images)
    )
    drawing.label_panel(axes, heading, along, grid="both")
  shown = {label: line for label, line in drawn.items() if label}
  if shown:
    drawing.legend_below(figure, list(shown.values()), list(shown))
  drawing.save(path, figure)


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
  means, stds = (
    scale * np.array([(found.mean, found.std) for _, found in points]).reshape(-1, 2).T
  )
  for place, (_, found) in zip(x, points, strict=True):
    seeds = scale * np.array(found.values)
    dots = {
      "s": 9,
      "color": drawing.style(number)["color"],
      "alpha": 0.35,
      "linewidths": 0,
    }
    axes.scatter(np.full(len(seeds), place), seeds, **dots)
  return drawing.error_bars(axes, x, means, number, yerr=stds, linestyle=between)


def reference_line(axes: Axes, value: float, label: str = "") -> Line2D:
  """Draws a grey horizontal line, perhaps named on the right, where curves have left
  it."""
  line = axes.axhline(value, color="0.6", linestyle="--", linewidth=1, zorder=0)
  place: dict[str, Any] = {"va": "bottom", "ha": "right", "fontsize": 7}
  # Above curves and marks, which its rim leaves visible.
  where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "zorder": 5}
  axes.text(
    0.99, value, label, color="0.25", path_effects=drawing.outline(), **place, **where
  )
  return line
