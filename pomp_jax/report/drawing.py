"""Elements that all plots share: colours, panels, axes, error bars, labels, PNG files.

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
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
RED = "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, RED, "#56B4E9", "#CC79A7", "#000000")
GREY = "#999999"
MARKERS = "os^vDPX"
COLUMNS = 4  # panels in a row
DPI = 150
# Font sizes in points.
TITLE = 11  # of the figure
HEADING = 10  # of a panel
TEXT = 8  # everything else
_LENGTH = 34  # of a name, in characters
_LEGEND_COLUMN = 2.6  # inches of a name in a legend
_MOST_TICKS = 8  # on a logarithmic axis
# Ticks of a logarithmic axis of at most so many decades, as multiples of a power of
# ten.
_MULTIPLES = {
  1.2: (1, 2, 3, 4, 6, 8),
  2.4: (1, 2, 4),
  3.6: (1, 3),
  math.inf: (1,),
}


def style(number: int) -> dict[str, Any]:
  """Returns colour and marker of a series; colour alone never tells series apart."""
  return {
    "color": COLOURS[number % len(COLOURS)],
    "marker": MARKERS[number % len(MARKERS)],
  }


def panels(
  n: int, width: float, height: float, title: str = "", columns: int = COLUMNS
) -> tuple[Figure, list[Axes]]:
  """Creates a figure with n axes in rows of equal length.

  Args:
    n: number of panels.
    width: width of a panel in inches.
    height: height of a panel in inches.
    title: title of the figure.
    columns: most panels in a row.
  """
  figure, stacks = stacked_panels(n, width, (height,), title, columns)
  return figure, [axes for [axes] in stacks]


def stacked_panels(
  n: int,
  width: float,
  heights: Sequence[float],
  title: str = "",
  columns: int = COLUMNS,
) -> tuple[Figure, list[list[Axes]]]:
  """Creates a figure as `panels` does, whose panels are several axes each.

  Args:
    n: number of panels.
    width: width of a panel in inches.
    heights: heights of a panel's axes in inches, from above.
    title: title of the figure.
    columns: most panels in a row.

  Returns:
    The figure, and the axes of each panel from above.
  """
  rows = -(-n // columns)
  # As many panels in each row, rather than a last row of one.
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

  Args:
    axes: axes of the panel.
    title: heading; a user's words in it are escaped as `name` does.
    x: label of the horizontal axis.
    y: label of the vertical axis.
    grid: axis whose ticks have grid lines.
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
  """Makes an axis logarithmic, with plain numbers at its ticks.

  Call it after all is drawn: round numbers are chosen to fit the range.

  Args:
    axes: axes of the panel.
    which: "x" or "y".
    values: ticks, if they are few; round numbers otherwise.
  """
  axes.set(**{f"{which}scale": "log"})
  axis = axes.xaxis if which == "x" else axes.yaxis
  distinct = sorted(set(values))
  decades = np.ptp(np.log10(axis.get_view_interval()))
  if 0 < len(distinct) <= _MOST_TICKS:
    axis.set_major_locator(FixedLocator(distinct))
  elif decades > 0.5:
    multiples = next(m for most, m in _MULTIPLES.items() if decades <= most)
    axis.set_major_locator(LogLocator(subs=multiples, numticks=_MOST_TICKS))
  else:
    axis.set_major_locator(MaxNLocator(5))
  axis.set_major_formatter(FuncFormatter(_plain_number))
  axis.set_minor_locator(NullLocator())


def _plain_number(value: float, _position: int | None = None) -> str:
  """Formats six digits without an exponent: 0.002, 40, 21,841."""
  return f"{float(f'{value:.6g}'):,.12f}".rstrip("0").rstrip(".")


def end_at(axes: Axes, which: str, lowest: float, highest: float) -> None:
  """Ends a linear axis where its values do, such as at 0 and 100%.

  Call it after all is drawn. Marks on the end are drawn whole.

  Args:
    axes: axes of the panel.
    which: "x" or "y".
    lowest: smallest possible value.
    highest: largest possible value.
  """
  low, high = getattr(axes, f"get_{which}lim")()
  axes.set(**{f"{which}lim": (max(low, lowest), min(high, highest))})
  for artist in (*axes.lines, *axes.collections):
    artist.set_clip_on(False)


def error_bars(
  axes: Axes, x: Any, y: Any, number: int, **options: Any
) -> ErrorbarContainer:
  """Draws a series with error bars.

  Args:
    axes: axes of the panel.
    x: horizontal positions [V].
    y: values [V].
    number: number of the series, which decides on its colour and marker.
    **options: arguments of `Axes.errorbar`, such as `yerr`.
  """
  base = {"markersize": 5, "linewidth": 1.4, "capsize": 3, **style(number)}
  return axes.errorbar(x, y, **base | options)


def legend_below(figure: Figure, lines: list, labels: Sequence[str]) -> None:
  """Adds one legend for all panels below them.

  Args:
    figure: figure with all its panels.
    lines: artists that stand for the series.
    labels: names of the series.
  """
  fitting = max(1, int(figure.get_figwidth() // _LEGEND_COLUMN))
  figure.legend(
    lines,
    names(labels, 44),
    loc="outside lower center",
    ncols=min(len(labels), fitting, 3),
    fontsize=TEXT,
    frameon=False,
  )


def name(text: str, length: int = _LENGTH) -> str:
  """A name for a plot: cut in its middle to a length, and escaped."""
  return escape(shorten(text, length))


def names(texts: Sequence[str], length: int = _LENGTH) -> list[str]:
  """Names for a plot, cut to a length; numbered if different ones would become equal."""
  distinct = list(dict.fromkeys(texts))
  short = [shorten(text, length) for text in distinct]
  if len(set(short)) < len(distinct):
    digits = len(str(len(distinct)))
    rest = max(length - digits - 1, 3)
    short = [
      f"{i:0{digits}} {shorten(text, rest)}" for i, text in enumerate(distinct, 1)
    ]
  name_of = dict(zip(distinct, map(escape, short), strict=True))
  return [name_of[text] for text in texts]


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
