"""Shared elements of all plots: colours, panels, error bars, labels, atomic PNG files.

Figures are built without pyplot: there is no shared state, and no display is needed.
"""

import os
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
import numpy as np

from pomp_jax.files.atomic import replacing

# Okabe and Ito's palette for colour-blind readers, without its lightest colour.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, RED, "#56B4E9", "#CC79A7", "#000000")
GREY = "#999999"
MARKERS = "os^vDPX"
COLUMNS = 4  # panels in a row
DPI = 150


def style(number: int) -> dict[str, str]:
  """Returns colour and marker of a series; colour alone never tells series apart."""
  return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def panels(
  n: int, width: float, height: float, title: str = "", columns: int = COLUMNS
) -> tuple[Figure, list[Axes]]:
  """Creates a figure with n axes in rows of equal length, at most `columns`; sizes in inches."""
  rows = -(-n // columns)
  columns = -(-n // rows)
  figure = Figure(figsize=(1.6 + width * columns, 0.6 + height * rows), layout="constrained")
  if title:
    figure.suptitle(title, fontsize=11)
  axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
  for unused in axes[n:]:
    unused.remove()
  return figure, axes[:n]


def label_panel(
  axes: Axes, title: str, x: str = "", y: str = "", *, grid: str = "", size: int = 8
) -> None:
  """Sets title, axis labels and grid of a panel, and removes its upper and right frame.

  Args:
    axes: panel.
    title: title, shortened.
    x: label of the x axis.
    y: label of the y axis.
    grid: axis with grid lines, "x", "y" or "both"; none by default.
    size: font size of labels and ticks, in points; the title is 2 larger.
  """
  axes.set_title(shorten(title), fontsize=size + 2)
  axes.set_xlabel(x, fontsize=size)
  axes.set_ylabel(y, fontsize=size)
  axes.tick_params(labelsize=size)
  axes.spines[["top", "right"]].set_visible(False)
  if grid:
    axes.grid(axis=grid, color="0.92")
    axes.set_axisbelow(True)


def error_bars(axes: Axes, x: Any, y: Any, number: int, **options: Any) -> ErrorbarContainer:
  """Draws a series with error bars; `options` are those of `Axes.errorbar`."""
  base = {"markersize": 5, "linewidth": 1.4, "capsize": 3, **style(number)}
  return axes.errorbar(x, y, **base | options)


def legend_below(figure: Figure, lines: list, labels: list[str]) -> None:
  """Adds one legend for all panels below them."""
  figure.legend(
    lines,
    [shorten(label) for label in labels],
    loc="outside lower center",
    ncols=min(len(labels), 3),
    fontsize=8,
    frameon=False,
  )


def shorten(name: str, length: int = 34, *, keep_start: bool = False) -> str:
  """Cuts a name to a length, at its start by default, and escapes "$", which starts a formula."""
  if len(name) > length:
    # The end of a path tells more than its start.
    name = f"{name[: length - 1].rstrip()}\u2026" if keep_start else f"\u2026{name[1 - length :]}"
  return name.replace("$", r"\$")


def save(path: str | os.PathLike, figure: Figure) -> None:
  """Writes a PNG file atomically."""
  FigureCanvasAgg(figure)
  with replacing(path) as file:
    figure.savefig(file, format="png", dpi=DPI)
