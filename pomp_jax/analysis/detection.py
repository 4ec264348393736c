"""Tables of a detection, and pictures with the boxes under each prompt.

Shapes: D boxes of an image.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any, NamedTuple

from jaxtyping import Float32, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
import numpy as np

from pomp_jax.analysis import drawing, sheets
from pomp_jax.analysis.labels import counted
from pomp_jax.analysis.tables import Row, Table
from pomp_jax.regions.boxes import iou

# Boxes of a picture at most, and their IoU at most.
_MOST, _OVERLAP = 8, 0.5

_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_GROUPS = ("base", "novel")
_TITLES = {"top1": "Top-1 of annotated boxes (%)", "box": "Box AP (%)", "mask": "Mask AP (%)"}


class Boxes(NamedTuple):
  """Boxes of one image to draw.

  Attributes:
    boxes: x0, y0, x1, y1 in pixels.
    classes: class of each.
    scores: higher is drawn first.
  """

  boxes: Float32[np.ndarray, "D 4"]
  classes: Int[np.ndarray, " D"]
  scores: Float32[np.ndarray, " D"]


def detection_tables(results: Mapping[str, Any]) -> list[Table]:
  """Builds the tables of the `detect` job, as percentages, without columns that are empty.

  Args:
    results: results of the job: `images`, `objects`, `classes`, `figures`.
  """
  numbers = {n: results[f"{n}s"] for n in ("image", "object")} | {"class": len(results["classes"])}
  counts = ", ".join(counted(number, noun) for noun, number in numbers.items())
  tables = []
  for kind, title in _TITLES.items():
    rows = {
      label: _columns(kind, figures[kind])
      for label, figures in results["figures"].items()
      if kind in figures
    }
    if not rows:
      continue
    columns = [c for c in next(iter(rows.values())) if any(r[c] is not None for r in rows.values())]
    values = lambda row, columns=columns: tuple(
      None if row[c] is None else 100 * row[c] for c in columns
    )
    tables.append(
      Table(
        f"{title}: {counts}",
        "prompt",
        tuple(columns),
        tuple(Row(label, values(row)) for label, row in rows.items()),
      )
    )
  return tables


def _columns(kind: str, figures: Mapping[str, Any]) -> dict[str, float | None]:
  """Columns of a table: over all classes by the figure's name, over a group by both names."""
  groups = [name for name in _GROUPS if name in figures]
  if kind == "top1":
    return {name: figures[name]["top1"] for name in ("all", *groups)}
  of_groups = {f"{g} {name}": figures[g][name] for g in groups for name in ("AP", "AP50")}
  return {name: figures.get(name) for name in _FIGURES} | of_groups


def detection_sheet(
  path: str | os.PathLike,
  images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
  boxes: Sequence[Sequence[Boxes]],
  titles: Sequence[str],
  names: Sequence[str],
  title: str = "",
) -> None:
  """Draws a row for each image, with a legend of its classes; classes beyond it are grey.

  Of boxes that overlap by more than half only the one of the highest score is drawn, and eight in
  all.

  Args:
    path: PNG file to write.
    images: one or more images.
    boxes: of each image, the boxes of each picture.
    titles: of the pictures.
    names: class names.
    title: title of the sheet, with the numbers of images, objects and classes.
  """
  drawn = [[strongest(one) for one in of_image] for of_image in boxes]
  legends = [sheets.colours_of(int(c) for one in row for c in one.classes) for row in drawn]
  pictures = [[image] * len(titles) for image in images]
  figure, axes_of = sheets.picture_rows(pictures, legends, titles, names, title)
  for row, colours, axes_of_row in zip(drawn, legends, axes_of, strict=True):
    for one, axes in zip(row, axes_of_row, strict=True):
      for box, label in zip(one.boxes.tolist(), one.classes.tolist(), strict=True):
        draw_frame(axes, box, colours.get(label, sheets.OTHER))
  drawing.save(path, figure)


def strongest(boxes: Boxes, most: int = _MOST) -> Boxes:
  """The boxes of the highest scores, `most` at most, none of which overlap by more than half."""
  overlap = iou(boxes.boxes, boxes.boxes)
  kept: list[int] = []
  for row in np.argsort(-boxes.scores, kind="stable"):
    if len(kept) < most and not (overlap[row, kept] > _OVERLAP).any():
      kept.append(row)
  return Boxes(*(part[np.array(kept, int)] for part in boxes))


def draw_frame(axes: Axes, box: Sequence[float], colour: str) -> None:
  """Draws a box with a dark rim, so that a colour is seen on a ground of its own."""
  x0, y0, x1, y1 = box
  for line, own in ((3.5, "black"), (2, colour)):
    corner = (x0 - 0.5, y0 - 0.5)
    axes.add_patch(Rectangle(corner, x1 - x0, y1 - y0, fill=False, edgecolor=own, linewidth=line))
