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
_LENGTH = 34  # most characters of a name
_LEGEND_COLUMN = 2.6  # width of a name in a legend, inches
_MOST_TICKS = 8  # ticks of a logarithmic axis
# Most decades of a logarithmic axis -> its ticks, as multiples of a power of ten.
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

  Returns:
    The figure, and the axes of the panels, row by row.
  """
  figure, stacks = stacked_panels(n, width, (height,), title, columns)
  panel_axes = []
  for (axes,) in stacks:
    panel_axes.append(axes)
  return figure, panel_axes


def stacked_panels(
  n: int,
  width: float,
  heights: Sequence[float],
  title: str = "",
  columns: int = COLUMNS,
) -> tuple[Figure, list[list[Axes]]]:
  """Creates a figure as `panels` does, whose panels are stacks of several axes.

  Args:
    n: number of panels.
    width: width of a panel in inches.
    heights: heights of a panel's axes in inches, from top to bottom.
    title: title of the figure.
    columns: most panels in a row.

  Returns:
    The figure, and the axes of each panel, from top to bottom.
  """
  # Rounded up. The panels are then spread evenly over these rows, rather than leaving
  # a last row with a single panel.
  n_rows = -(-n // columns)
  n_columns = -(-n // n_rows)
  # The constants leave room for the labels of the axes and the title.
  figure_width = 1.6 + width * n_columns
  figure_height = 0.6 + sum(heights) * n_rows
  figure = Figure(figsize=(figure_width, figure_height), layout="constrained")
  if title:
    figure.suptitle(escape(title), fontsize=TITLE)

  # A row of panels takes as many lines of the grid as a stack has axes.
  n_stacked = len(heights)
  line_heights = list(heights) * n_rows
  grid = figure.add_gridspec(n_rows * n_stacked, n_columns, height_ratios=line_heights)
  stacks = []
  for number in range(n):
    row, column = divmod(number, n_columns)
    first_line = row * n_stacked
    stack = []
    for line in range(first_line, first_line + n_stacked):
      stack.append(figure.add_subplot(grid[line, column]))
    stacks.append(stack)
  return figure, stacks


def starts_row(axes: Axes) -> bool:
  """Whether a panel is the first of its row.

  Plots whose rows share an axis label only this panel on the left.
  """
  place = axes.get_subplotspec()
  return place is not None and place.is_first_col()


def label_panel(
  axes: Axes,
  title: str,
  x: str = "",
  y: str = "",
  *,
  grid: Literal["", "x", "y", "both"] = "",
) -> None:
  """Gives a panel its heading and labels, in the style of all our plots.

  The upper and the right frame are removed, and grid lines lie behind the data.

  Args:
    axes: axes of the panel.
    title: heading; the caller escapes a user's words in it, as `name` does.
    x: label of the horizontal axis, with its unit.
    y: label of the vertical axis, with its unit.
    grid: axis whose ticks have grid lines; "" for none.
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

  Call this after everything is drawn, because the ticks depend on the range.

  Args:
    axes: axes of the panel.
    which: "x" or "y".
    values: values to use as ticks if they are few; otherwise ticks are round numbers.
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
    # Within half a decade, evenly spaced ticks have rounder numbers.
    axis.set_major_locator(MaxNLocator(5))
  axis.set_major_formatter(FuncFormatter(_plain_number))
  axis.set_minor_locator(NullLocator())


def _plain_number(value: float | np.number, _position: int | None = None) -> str:
  """Formats six significant digits without an exponent: 0.002, 40, 21,841."""
  return f"{float(f'{value:.6g}'):,.12f}".rstrip("0").rstrip(".")


def end_at(axes: Axes, which: Literal["x", "y"], lowest: float, highest: float) -> None:
  """Ends a linear axis at the limits of its values, such as 0 and 100%.

  Call this after everything is drawn: matplotlib adds margins beyond the data, to 104%
  for example. Marks at the ends are drawn whole, not cut by the frame.

  Args:
    axes: axes of the panel.
    which: the horizontal or the vertical axis.
    lowest: smallest possible value.
    highest: largest possible value.
  """
  if which == "x":
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, lowest), min(high, highest))
  else:
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, lowest), min(high, highest))
  for artist in (*axes.lines, *axes.collections):
    artist.set_clip_on(False)


def error_bars(
  axes: Axes, x: Any, y: Any, number: int, **options: Any
) -> ErrorbarContainer:
  """Draws a series with error bars, in the style of all our plots.

  Args:
    axes: axes of the panel.
    x: horizontal positions of the V values.
    y: values [V].
    number: number of the series, which determines its colour and marker.
    **options: arguments of `Axes.errorbar`, such as `yerr`; they override the style.

  Returns:
    What matplotlib drew, for a legend.
  """
  drawing_style: dict[str, Any] = {"markersize": 5, "linewidth": 1.4, "capsize": 3}
  drawing_style.update(style(number))
  drawing_style.update(options)
  return axes.errorbar(x, y, **drawing_style)


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
  """Cuts texts to names for a plot; numbers all of them if cut names would be equal."""
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
  """`path_effects` for text on top of other elements: a rim of another colour."""
  return [withStroke(linewidth=2.0, foreground=colour)]


def save(path: str | os.PathLike, figure: Figure) -> None:
  """Writes a PNG file atomically; its folder is created if it is missing."""
  FigureCanvasAgg(figure)  # becomes the canvas of the figure
  to_path(path).parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as file:
    figure.savefig(file, format="png", dpi=DPI)
