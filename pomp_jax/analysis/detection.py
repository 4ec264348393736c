"""Pictures with boxes under each prompt.

Shapes: D boxes of an image.
"""

from collections.abc import Sequence
import os
from typing import NamedTuple

from jaxtyping import Float32, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
import numpy as np

from pomp_jax.analysis import drawing, sheets
from pomp_jax.regions.boxes import iou

# Boxes of a picture at most, and their IoU at most.
_MOST, _OVERLAP = 8, 0.5


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
