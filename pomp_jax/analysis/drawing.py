"""What plots have in common: colours, panels, names that fit, and files that are whole.

Figures are built without pyplot: no state is shared, no display is needed.
"""

import os

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from pomp_jax.files.atomic import replacing

# Okabe and Ito's, which colour-blind readers can tell apart; the lightest is left out.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
MARKERS = "os^vDPX"
COLUMNS = 4  # panels in a row
_DPI = 150


def style(number: int) -> dict[str, str]:
  """Colour and marker of the number-th thing; nothing is told by colour alone."""
  return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def panels(n: int, width: float, height: float, title: str) -> tuple[Figure, list[Axes]]:
  """A figure with n axes, at most COLUMNS in a row, rows filled alike; sizes of each in inches."""
  rows = -(-n // COLUMNS)
  columns = -(-n // rows)
  figure = Figure(figsize=(1.6 + width * columns, 0.6 + height * rows), layout="constrained")
  figure.suptitle(title, fontsize=11)
  axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
  for unused in axes[n:]:
    unused.remove()
  return figure, axes[:n]


def legend_below(figure: Figure, lines: list, labels: list[str]) -> None:
  """One legend for all panels, under them."""
  place = {"loc": "outside lower center", "ncols": min(len(labels), 3), "fontsize": 8}
  figure.legend(lines, [short(label) for label in labels], frameon=False, **place)


def plain(axes: Axes, title: str) -> None:
  """A panel's title, small figures at its ticks, and no frame above and to the right."""
  axes.set_title(short(title), fontsize=10)
  axes.tick_params(labelsize=8)
  axes.spines[["top", "right"]].set_visible(False)


def short(name: str, length: int = 34) -> str:
  """A name cut to a length, safe from being read as a formula."""
  # Of a path the end tells more. A "$" would start a formula.
  name = name if len(name) <= length else f"\u2026{name[len(name) - length + 1 :]}"
  return name.replace("$", r"\$")


def save(path: str | os.PathLike, figure: Figure) -> None:
  """Writes a PNG file, whole or not at all."""
  FigureCanvasAgg(figure)
  with replacing(path) as file:
    figure.savefig(file, format="png", dpi=_DPI)
