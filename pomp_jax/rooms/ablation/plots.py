"""Computes and plots an ablation's means and standard deviations over the seeds."""

from collections.abc import Mapping, Sequence
import os
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
import numpy as np

from pomp_jax.report import drawing
from pomp_jax.report.labels import counted

# Headings of a cell's figures that are not accuracies.
COSTS = {"seconds": "training (s)", "memory_mib": "memory (MiB)"}


class Spread(NamedTuple):
  """A figure over the seeds."""

  mean: float
  std: float  # of the sample; 0 for one value
  # One a seed. A cost has one a program, because it is measured once for all lanes.
  values: tuple[float, ...]


class Group(NamedTuple):
  """Cells that differ only in the seed."""

  values: dict[str, Any]  # of the swept fields without the seed, by field
  figures: dict[str, Spread]  # of the cells that did not fail, by name
  failed: int  # number of failed cells


def kind_of(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the values of a cell's swept fields without the seed."""
  return {field: value for field, value in values.items() if field != "seed"}


def text_of(value: Any) -> str:
  """Formats a swept field's value; None, for a field that is not read, is a dash."""
  return "-" if value is None else str(value)


def figures_of(cell: Mapping[str, Any]) -> dict[str, float]:
  """Returns a cell's top-1 of each split and its costs by name; {} if it failed."""
  if cell.get("error"):
    return {}
  figures = {f"{split}_top1": value for split, value in cell["top1"].items()}
  for name in COSTS:
    if cell.get(name) is not None:
      figures[name] = cell[name]
  return figures


def scale_of(name: str) -> float:
  """Returns the factor for display: 100 for accuracies, which are shown in percent."""
  return 1.0 if name in COSTS else 100.0


def groups(cells: Sequence[Mapping[str, Any]]) -> list[Group]:
  """Groups cells over the seeds, in the order of their first cell."""
  members: dict[str, list[Mapping[str, Any]]] = {}
  for cell in cells:
    members.setdefault(repr(kind_of(cell["values"])), []).append(cell)
  return [_group(cells_of_kind) for cells_of_kind in members.values()]


def _group(cells: Sequence[Mapping[str, Any]]) -> Group:
  """Spreads of the figures of cells that differ only in the seed."""
  values_of: dict[str, list[float]] = {}
  failed = 0
  for cell in cells:
    figures = figures_of(cell)
    if not figures:
      failed += 1
    for name, value in figures.items():
      values_of.setdefault(name, []).append(value)
  spreads = {}
  for name, values in values_of.items():
    if name in COSTS:
      # Count equal costs once: lanes of one program share a cost that was measured
      # once, and repeating it would make the spread too small.
      values = list(dict.fromkeys(values))
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    spreads[name] = Spread(float(np.mean(values)), std=std, values=tuple(values))
  return Group(kind_of(cells[0]["values"]), figures=spreads, failed=failed)


def swept(groups_of: Sequence[Group]) -> list[str]:
  """Returns the fields, other than the seed, that take several values."""
  values_of: dict[str, set[str]] = {}
  for group in groups_of:
    for field, value in group.values.items():
      values = values_of.setdefault(field, set())
      if value is not None:
        values.add(str(value))
  return [field for field, values in values_of.items() if len(values) > 1]


def is_ordered(groups_of: Sequence[Group], field: str) -> bool:
  """Whether a field's values are numbers or "all" (all classes), and not names."""
  values = [group.values.get(field) for group in groups_of]
  return all(value == "all" or type(value) in (int, float) for value in values)


def sweep(
  path: str | os.PathLike,
  groups_of: Sequence[Group],
  references: Mapping[str, Mapping[str, float]],
  images: Mapping[str, str],
) -> None:
  """Plots mean and standard deviation over the seeds, one panel a figure.

  The x axis is the first swept field with its values evenly spaced. Every combination
  of the other swept fields is a line, or only marks if the x axis has names. A group
  that does not read a field is drawn on the lines of all the field's values. Each seed
  is a faint dot.

  Args:
    path: file of the plot.
    groups_of: cells grouped over the seeds, from `groups`.
    references: heights of grey reference lines, by figure and label.
    images: numbers of images, by split.
  """
  # If no field is swept, all groups share one tick without a name.
  along, *others = swept(groups_of) or [""]
  ticks = list(dict.fromkeys(_tick(group, along) for group in groups_of))
  # Each line has the values of the other fields. A group that reads none of these
  # fields is drawn on every line, so it gets no line of its own.
  combinations = dict.fromkeys(
    tuple(group.values[f] for f in others) for group in groups_of
  )
  lines: list[tuple[Any, ...]] = []
  for combination in combinations:
    if any(value is not None for value in combination):
      lines.append(combination)
  if not lines:
    lines.append(())  # one line with all groups
  names = list(dict.fromkeys(name for group in groups_of for name in group.figures))
  n_seeds = 0
  for group in groups_of:
    for spread in group.figures.values():
      n_seeds = max(n_seeds, len(spread.values))
  title = f"Mean and standard deviation over {counted(n_seeds, 'seed')}"
  figure, axes_of = drawing.panels(max(len(names), 1), 3.3, 3.3, title, columns=3)
  # Names have no order: do not connect their means.
  between = "-" if is_ordered(groups_of, along) else "none"
  legend: dict[str, Any] = {}
  for axes, name in zip(axes_of, names, strict=False):
    for number, combination in enumerate(lines):
      points = []
      for group in groups_of:
        if name in group.figures and _is_on_line(group, others, combination):
          points.append((ticks.index(_tick(group, along)), group.figures[name]))
      points.sort(key=lambda point: point[0])
      # Shift each line sideways, so that error bars of several lines do not overlap.
      shift = 0.06 * (number - (len(lines) - 1) / 2)
      line = _draw_line(axes, points, number, shift, scale_of(name), between)
      label = ", ".join(f"{f}={v}" for f, v in zip(others, combination, strict=False))
      legend.setdefault(label, line)
    for label, value in references.get(name, {}).items():
      legend[label] = reference_line(axes, scale_of(name) * value)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    spreads = [group.figures[name] for group in groups_of if name in group.figures]
    _limit_y(axes, name, spreads)
    if name in COSTS:
      heading = f"{COSTS[name]}, a cell's share"
    else:
      heading = top1_heading(name.removesuffix("_top1"), images)
    drawing.label_panel(axes, heading, along, grid="both")
  legend.pop("", None)  # a line of all groups needs no label
  if legend:
    drawing.legend_below(figure, list(legend.values()), list(legend))
  drawing.save(path, figure)


def _tick(group: Group, along: str) -> str:
  """Label of a group's place on the x axis."""
  return text_of(group.values.get(along, ""))


def _is_on_line(group: Group, fields: Sequence[str], key: tuple[Any, ...]) -> bool:
  """Whether a group has the line's value of each field, or does not read the field."""
  for field, value in zip(fields, key, strict=False):
    if group.values[field] is not None and group.values[field] != value:
      return False
  return True


def _limit_y(axes: Axes, name: str, spreads: Sequence[Spread]) -> None:
  """Sets the y axis: accuracies within 0..100%, and costs from 0.

  Seconds that differ by a factor above 20 get a logarithmic axis.
  """
  means = [spread.mean for spread in spreads]
  if name not in COSTS:
    drawing.end_at(axes, "y", 0.0, 100.0)
  elif name == "seconds" and min(means) > 0 and max(means) > 20 * min(means):
    drawing.log_axis(axes, "y")
  else:
    largest = max(max(spread.values) for spread in spreads)
    axes.set_ylim(0, 1.1 * max(largest, 1e-6))


def top1_heading(split: str, images: Mapping[str, str]) -> str:
  """Writes the title of a panel: a split with its number of images."""
  count = f", {images[split]} images" if split in images else ""
  return f"{drawing.name(split, 18)}: top-1 (%){count}"


def _draw_line(
  axes: Axes,
  points: Sequence[tuple[int, Spread]],
  number: int,
  shift: float,
  scale: float,
  between: str,
) -> ErrorbarContainer:
  """Draws means with error bars, connected in the style `between`; seeds as dots."""
  x = shift + np.array([tick for tick, _ in points])
  means = scale * np.array([spread.mean for _, spread in points])
  stds = scale * np.array([spread.std for _, spread in points])
  colour = drawing.style(number)["color"]
  for place, (_, spread) in zip(x, points, strict=True):
    seeds = scale * np.array(spread.values)
    places = np.full(len(seeds), place)
    axes.scatter(places, seeds, s=9, color=colour, alpha=0.35, linewidths=0)
  return drawing.error_bars(axes, x, means, number, yerr=stds, linestyle=between)


def reference_line(axes: Axes, value: float, label: str = "") -> Line2D:
  """Draws a grey horizontal line with a label.

  Args:
    axes: panel to draw in.
    value: height of the line.
    label: text above the right end of the line; "": none.
  """
  line = axes.axhline(value, color="0.6", linestyle="--", linewidth=1, zorder=0)
  axes.text(
    0.99,
    value,
    label,
    color="0.25",
    fontsize=7,
    va="bottom",
    ha="right",
    transform=axes.get_yaxis_transform(),
    zorder=5,  # above curves and marks; the outline covers little of them
    path_effects=drawing.outline(),
  )
  return line
