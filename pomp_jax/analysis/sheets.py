"""Sheets of pictures in rows, with a legend of the classes of each row."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
import numpy as np

from pomp_jax.analysis import drawing

# Tol's muted palette and Okabe and Ito's, told apart by colour-blind readers too.
_COLOURS = (
  *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#332288"),
  *("#AA4499", "#117733", "#882255", "#44AA99"),
)
OTHER = "#777777"  # colour of classes beyond the palette
# Sides of a picture and of the legend, and heights of the titles, inches.
_PICTURE, _LEGEND, _TITLE, _HEADING = 2.2, 3.0, 0.3, 0.25
# A wider sheet is reduced where it is shown, inches. Its letters grow with it.
_SHOWN = 12.0
_POINTS = 72.0  # in an inch
_LINE = 1.35  # of a legend, in sizes of its letters
_LETTERS = 26  # of a heading, without growth
_LEAST_LETTERS = 22  # where fewer fit, they are smaller


def colours_of(classes: Iterable[int]) -> dict[int, str]:
  """Returns the colours of the first classes, as many as the palette has."""
  return dict(zip(dict.fromkeys(classes), _COLOURS, strict=False))


def picture_rows(
  pictures: Sequence[Sequence[np.ndarray]],
  legends: Sequence[Mapping[int, str]],
  headings: Sequence[str],
  names: Sequence[str],
  title: str,
) -> tuple[Figure, list[list[Axes]]]:
  """Draws rows of pictures of equal size.

  Args:
    pictures: one or more rows with a picture a heading, uint8 [H,W,3] or fractions.
    legends: class -> colour of each row.
    headings: of the columns.
    names: class names.
    title: title of the sheet.

  Returns:
    The figure, and the axes of each picture.
  """
  columns, rows = len(headings), len(pictures)
  growth = max(1.0, (columns * _PICTURE + _LEGEND) / _SHOWN)
  width = columns * _PICTURE + growth * _LEGEND
  height = rows * _PICTURE + growth * (_HEADING + _TITLE)
  figure = Figure(figsize=(width, height))
  figure.suptitle(
    drawing.escape(title), fontsize=growth * drawing.TITLE, x=0.05 / width, y=1 - 0.1 / height,
    ha="left", va="top",
  )  # fmt: skip
  letters = _LETTERS / growth
  headings = drawing.names(headings, max(int(letters), _LEAST_LETTERS))
  heading_size = growth * (drawing.TEXT + 1) * min(1.0, letters / max(map(len, headings)))
  axes_of = []
  for row, (of_row, colours) in enumerate(zip(pictures, legends, strict=True)):
    y = (rows - 1 - row) * _PICTURE
    axes_of.append([])
    for column, picture in enumerate(of_row):
      box = (column * _PICTURE + 0.05, y + 0.05, _PICTURE - 0.1, _PICTURE - 0.1)
      axes = figure.add_axes([v / s for v, s in zip(box, (width, height) * 2, strict=True)])
      axes.axis("off")
      # Few pixels must stay pixels; many are reduced, where smoothing is right.
      enlarged = max(picture.shape[:2]) < _PICTURE * drawing.DPI
      axes.imshow(picture, interpolation="nearest" if enlarged else "antialiased")
      if row == 0:
        axes.set_title(headings[column], fontsize=heading_size)
      axes_of[-1].append(axes)
    corner = columns * _PICTURE / width, (y + _PICTURE - 0.05) / height
    _legend(figure, colours, names, corner, growth * drawing.TEXT)
  return figure, axes_of


def _legend(
  figure: Figure,
  colours: Mapping[int, str],
  names: Sequence[str],
  corner: tuple[float, float],
  size: float,
) -> None:
  """Draws a legend with letters of a size, in points; smaller ones where a row has many classes."""
  shown = drawing.names([names[label] for label in colours], 40)
  patches: list[Any] = [
    Patch(color=colour, label=name) for colour, name in zip(colours.values(), shown, strict=True)
  ]
  fitting = _POINTS * (_PICTURE - 0.2) / (_LINE * max(len(patches), 1))
  figure.legend(
    handles=patches,
    loc="upper left",
    bbox_to_anchor=corner,
    fontsize=min(size, fitting),
    labelspacing=0.3,
    borderaxespad=0.2,
    frameon=False,
  )
