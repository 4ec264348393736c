"""Shared elements of all plots: colours, panels, axes, error bars, labels, atomic PNG
files.

Figures are built without pyplot: there is no shared state, and no display is needed.
"""

from collections.abc import Sequence
import math
import os
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import (
  FixedLocator,
  FuncFormatter,
  LogLocator,
  MaxNLocator,
  NullLocator,
)
import numpy as np

from pomp_jax.files.atomic import replacing
from pomp_jax.files.paths import to_path
from pomp_jax.report.labels import shorten

# Okabe and Ito's palette for colour-blind readers, without its lightest colour.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, RED, "#56B4E9", "#CC79A7", "#000000")
GREY = "#999999"
MARKERS = "os^vDPX"
COLUMNS = 4  # panels in a row
DPI = 150
# Font sizes in points: of the figure's title, a panel's, and all other text.
TITLE, HEADING, TEXT = 11, 10, 8
_LENGTH = 34  # of a name, in characters
_LEGEND_COLUMN = 2.6  # inches of a name in a legend
# Ticks on a logarithmic axis: the most, and the multiples of a power of ten, up to some
# decades.
_MOST = 8
_MULTIPLES = {1.2: (1, 2, 3, 4, 6, 8), 2.4: (1, 2, 4), 3.6: (1, 3), math.inf: (1,)}


def style(number: int) -> dict[str, Any]:
  """Returns colour and marker of a series; colour alone never tells series apart."""
  return {
    "color": COLOURS[number % len(COLOURS)],
    "marker": MARKERS[number % len(MARKERS)],
  }


def panels(
  n: int, width: float, height: float, title: str = "", columns: int = COLUMNS
) -> tuple[Figure, list[Axes]]:
  """Creates a figure with n axes in rows of equal length, at most `columns`; sizes
  in inches."""
  figure, stacks = stacked_panels(n, width, (height,), title, columns)
  return figure, [axes for [axes] in stacks]


def stacked_panels(
  n: int,
  width: float,
  heights: Sequence[float],
  title: str = "",
  columns: int = COLUMNS,
) -> tuple[Figure, list[list[Axes]]]:
  """Creates a figure as `panels`, whose n panels are axes of these heights below one
  another."""
  rows = -(-n // columns)
  columns = -(-n // rows)
  size = (1.6 + width * columns, 0.6 + sum(heights) * rows)
  figure = Figure(figsize=size, layout="constrained")
  if title:
    figure.suptitle(escape(title), fontsize=TITLE)
  ratios = [*heights] * rows
  grid = figure.add_gridspec(len(ratios), columns, height_ratios=ratios)
  stacks = []
  for number in range(n):
    row, column = divmod(number, columns)
    lines = range(row * len(heights), (row + 1) * len(heights))
    stacks.append([figure.add_subplot(grid[line, column]) for line in lines])
  return figure, stacks


def label_panel(
  axes: Axes,
  title: str,
  x: str = "",
  y: str = "",
  *,
  grid: Literal["", "x", "y", "both"] = "",
) -> None:
  """Sets title, axis labels and grid of a panel, and removes its upper and right frame.

  A title with a user's words is as `name` returns it. `grid` is the axis "x", "y" or
  "both".
  """
  axes.set_title(title, fontsize=HEADING)
  axes.set_xlabel(x, fontsize=TEXT)
  axes.set_ylabel(y, fontsize=TEXT)
  axes.tick_params(labelsize=TEXT)
  axes.spines[["top", "right"]].set_visible(False)
  if grid:
    axes.grid(axis=grid, color="0.92")
    axes.set_axisbelow(True)


def log_axis(axes: Axes, which: str, values: Sequence[float | int] = ()) -> None:
  """Makes an axis logarithmic, with plain numbers at its ticks: few `values`, or round
  ones.

  Round numbers fit the range when it is called, so after all is drawn.
  """
  axes.set(**{f"{which}scale": "log"})
  axis = axes.xaxis if which == "x" else axes.yaxis
  few = 0 < len(set(values)) <= _MOST
  decades = np.ptp(np.log10(axis.get_view_interval()))
  multiples = next(found for most, found in _MULTIPLES.items() if decades <= most)
  round_numbers = (
    LogLocator(subs=multiples, numticks=_MOST) if decades > 0.5 else MaxNLocator(5)
  )
  axis.set_major_locator(FixedLocator(sorted(set(values))) if few else round_numbers)
  # Six digits without an exponent: 0.002, 40, 21,841.
  plain = lambda value, _: f"{float(f'{value:.6g}'):,.12f}".rstrip("0").rstrip(".")
  axis.set_major_formatter(FuncFormatter(plain))
  axis.set_minor_locator(NullLocator())


def end_at(axes: Axes, which: str, lowest: float, highest: float) -> None:
  """Ends a linear axis where its values do, such as at 0 and 100%; after all is drawn.

  Marks on the end are drawn whole.
  """
  low, high = getattr(axes, f"get_{which}lim")()
  axes.set(**{f"{which}lim": (max(low, lowest), min(high, highest))})
  for artist in (*axes.lines, *axes.collections):
    artist.set_clip_on(False)


def error_bars(
  axes: Axes, x: Any, y: Any, number: int, **options: Any
) -> ErrorbarContainer:
  """Draws the series of a number with error bars; `options` are those of
  `Axes.errorbar`."""
  base = {"markersize": 5, "linewidth": 1.4, "capsize": 3, **style(number)}
  return axes.errorbar(x, y, **base | options)


def legend_below(figure: Figure, lines: list, labels: Sequence[str]) -> None:
  """Adds one legend for all panels below them."""
  fitting = max(1, int(figure.get_figwidth() // _LEGEND_COLUMN))
  options: dict[str, Any] = {"ncols": min(len(labels), fitting, 3), "fontsize": TEXT}
  options["frameon"] = False
  figure.legend(lines, names(labels, 44), loc="outside lower center", **options)


def name(text: str, length: int = _LENGTH) -> str:
  """A name for a plot: cut in its middle to a length, and escaped."""
  return escape(shorten(text, length))


def names(texts: Sequence[str], length: int = _LENGTH) -> list[str]:
  """Names for a plot, cut to a length; if different ones would become equal, all are
  numbered."""
  distinct = list(dict.fromkeys(texts))
  short = [shorten(text, length) for text in distinct]
  if len(set(short)) < len(distinct):
    width = len(str(len(distinct)))
    rest = max(length - width - 1, 3)
    short = [
      f"{i:0{width}} {shorten(text, rest)}" for i, text in enumerate(distinct, 1)
    ]
  found = dict(zip(distinct, map(escape, short), strict=True))
  return [found[text] for text in texts]


def escape(text: str) -> str:
  """Escapes "$", which starts a formula."""
  return text.replace("$", r"\$")


def outline(colour: str = "white") -> list[AbstractPathEffect]:
  """`path_effects` of a text that lies on other elements: a rim of another colour."""
  return [withStroke(linewidth=2.0, foreground=colour)]


def save(path: str | os.PathLike, figure: Figure) -> None:
  """Writes a PNG file atomically; its folder is created if it is missing."""
  FigureCanvasAgg(figure)
  to_path(path).parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as file:
    figure.savefig(file, format="png", dpi=DPI)
