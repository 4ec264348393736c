"""Pictures with what was found in them: classes of pixels, or boxes, and legends of the
classes.

Sheets have a row for each image and a column for each prompt; `overlay` and
`boxes_picture` draw one picture. Shapes: H, W sides of a picture in pixels, D boxes.
"""

from collections.abc import Iterable, Mapping, Sequence
import os
from typing import Any

from jaxtyping import Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
import numpy as np
from PIL import Image

from pomp_jax.report import drawing
from pomp_jax.report.labels import counted, shorten
from pomp_jax.rooms.regions.detections import Detections, select_detections

# Tol's muted palette and Okabe and Ito's, told apart by colour-blind readers too.
_COLOURS = (
  *(
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#332288",
  ),
  *("#AA4499", "#117733", "#882255", "#44AA99"),
)
OTHER = "#777777"  # colour of classes beyond the palette
# Boxes at most of a picture in a sheet, and of a picture alone: fewer than colours; and
# their IoU.
_OF_SHEET, _OF_PICTURE, _OVERLAP = 8, 12, 0.5
# Share of a class's colour in a pixel of a picture alone; the rest is the picture's.
_TINT = 0.6
# Inches: sides of a picture in a sheet and alone, width of a legend, heights of title
# and headings.
_SIDE, _ALONE, _LEGEND, _TITLE, _HEADING = 2.2, 5.0, 3.0, 0.3, 0.25
_MARGIN = 0.05
# A wider sheet is reduced where it is shown, inches. Its letters grow with it.
_SHOWN = 12.0
_POINTS = 72.0  # in an inch
_LINE = 1.35  # of a legend, in sizes of its letters
_LETTERS = 26  # of a heading, without growth
_LEAST_LETTERS = 22  # where fewer fit, they are smaller
_NAME = 40  # letters of a name in a legend


def strongest(boxes: Detections, most: int = _OF_SHEET) -> Detections:
  """The boxes of the highest scores, `most` at most, none of which overlap by more
  than half."""
  rows, *_ = select_detections(
    boxes.boxes, boxes.scores[:, None], min_score=-np.inf, max_iou=_OVERLAP, top=most
  )
  return Detections(*(part[rows] for part in boxes[:3]))


def colours_of(classes: Iterable[int]) -> dict[int, str]:
  """Returns the colours of the first classes, as many as the palette has."""
  return dict(zip(dict.fromkeys(classes), _COLOURS, strict=False))


def label_colours(*maps: Int[np.ndarray, "_ _"]) -> dict[int, str]:
  """Colours of the classes with most pixels, those of the first map before others."""
  order: list[int] = []
  for labels_HxW in maps:
    classes, counts = np.unique(labels_HxW[labels_HxW >= 0], return_counts=True)
    order += classes[np.argsort(-counts, kind="stable")].tolist()
  return colours_of(order)


def segmentation_sheet(
  path: str | os.PathLike,
  images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
  maps: Sequence[Sequence[Int[np.ndarray, "_ _"]]],
  titles: Sequence[str],
  names: Sequence[str],
  title: str = "",
) -> None:
  """Draws a row for each image, with a legend of its largest classes; the rest is grey.

  `maps` are label maps of each image, one a title; negative: no class, shown as the
  image.
  """
  legends = [label_colours(*of_image) for of_image in maps]
  pictures = [
    [image, *(_coloured(0.5 + image / 510, labels, colours) for labels in of_image)]
    for image, of_image, colours in zip(images, maps, legends, strict=True)
  ]
  figure, _ = sheet(
    pictures, [_named(one, names) for one in legends], ("image", *titles), title
  )
  drawing.save(path, figure)


def detection_sheet(
  path: str | os.PathLike,
  images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
  boxes: Sequence[Sequence[Detections]],
  titles: Sequence[str],
  names: Sequence[str],
  title: str = "",
) -> None:
  """Draws the `strongest` boxes, a row for each image with a legend, and a picture a
  title.

  Each picture says how many of its boxes it shows.
  """
  drawn = [[strongest(one) for one in of_image] for of_image in boxes]
  legends = [colours_of(int(c) for one in row for c in one.classes) for row in drawn]
  pictures = [[image] * len(titles) for image in images]
  figure, axes_of = sheet(
    pictures, [_named(one, names) for one in legends], titles, title
  )
  for row, all_boxes, colours, axes_of_row in zip(
    drawn, boxes, legends, axes_of, strict=True
  ):
    for one, whole, axes in zip(row, all_boxes, axes_of_row, strict=True):
      _draw_label(
        axes, (0.02, 0.02), _shown(one, whole, "box"), va="bottom", of_axes=True
      )
      for box, label in zip(one.boxes.tolist(), one.classes.tolist(), strict=True):
        _draw_frame(axes, box, colours.get(label, OTHER))
  drawing.save(path, figure)


def overlay(
  path: str | os.PathLike,
  image: UInt8[np.ndarray, "H W 3"],
  labels_HxW: Int[np.ndarray, "H W"],
  names: Sequence[str],
  title: str,
) -> None:
  """Draws a picture under the colours of its classes (none if negative), and their
  shares."""
  colours = label_colours(labels_HxW)
  others = set(np.unique(labels_HxW[labels_HxW >= 0]).tolist()) - set(colours)
  share = lambda classes: f"  {100 * np.isin(labels_HxW, classes).mean():.1f}%"
  named = zip(_named(colours, names), colours.items(), strict=True)
  legend = {name + share(label): colour for name, (label, colour) in named}
  if others:
    legend[f"{len(others)} other names{share(list(others))}"] = OTHER
  if (labels_HxW < 0).any():
    legend[f"no region{share([-1])}"] = "white"
  picture = _resized(image, Image.Resampling.BICUBIC) / 255
  labels = _resized(labels_HxW, Image.Resampling.NEAREST)
  tinted = (1 - _TINT) * picture + _TINT * _coloured(picture, labels, colours)
  edge = np.zeros(labels.shape, bool)  # light lines between classes
  for own, all_labels in ((edge, labels), (edge.T, labels.T)):
    own[1:] |= (changes := all_labels[1:] != all_labels[:-1])
    own[:-1] |= changes
  tinted[edge] = 1
  figure, _ = _alone(tinted, legend, title)
  drawing.save(path, figure)


def boxes_picture(
  path: str | os.PathLike,
  image: UInt8[np.ndarray, "H W 3"],
  boxes: Detections,
  names: Sequence[str],
  title: str,
) -> None:
  """Draws the `strongest` boxes on a picture with numbers, and a legend with names and
  scores.

  The title is followed by their number, and that of all boxes.
  """
  drawn = strongest(boxes, _OF_PICTURE)
  colours = colours_of(drawn.classes.tolist())
  shown = dict(zip(colours, _named(colours, names), strict=True))
  rows = list(zip(drawn.classes.tolist(), drawn.scores, strict=True))
  legend = {
    f"{i}  {shown[c]}  {score:.2f}": colours[c] for i, (c, score) in enumerate(rows, 1)
  }
  picture = _resized(image, Image.Resampling.BICUBIC)
  figure, axes = _alone(
    picture, legend, f"{title}: {_shown(drawn, boxes, 'detection')}"
  )
  factor = max(picture.shape[:2]) / max(image.shape[:2])
  for number, (box, (label, _)) in enumerate(
    zip(drawn.boxes * factor, rows, strict=True), 1
  ):
    _draw_frame(axes, box.tolist(), colours[label])
    corner = float(box[0]), float(box[1])
    _draw_label(axes, corner, str(number), va="top", edge=colours[label])
  drawing.save(path, figure)


def _shown(drawn: Detections, boxes: Detections, noun: str) -> str:
  """The number of the boxes that are drawn, and of all if there are more."""
  n_drawn, n_all = len(drawn.boxes), len(boxes.boxes)
  return (
    counted(n_all, noun) if n_drawn == n_all else f"{n_drawn} of {counted(n_all, noun)}"
  )


def _draw_label(
  axes: Axes,
  place: tuple[float, float],
  text: str,
  *,
  va: str,
  edge: str = "black",
  of_axes: bool = False,
) -> None:
  """Writes white on black, which can be read on any picture, at a pixel or a share
  of the axes."""
  box = {"facecolor": "black", "edgecolor": edge, "pad": 1.5}
  where: dict[str, Any] = {"transform": axes.transAxes} if of_axes else {}
  axes.text(
    *place, text, fontsize=drawing.TEXT, va=va, color="white", bbox=box, **where
  )


def _named(colours: Mapping[int, str], names: Sequence[str]) -> dict[str, str]:
  """A legend: name -> colour."""
  shown = drawing.names([names[label] for label in colours], _NAME)
  return dict(zip(shown, colours.values(), strict=True))


def _coloured(
  ground: np.ndarray, labels_HxW: np.ndarray, colours: Mapping[int, str]
) -> np.ndarray:
  """Colours of classes, and the ground where there is no class; fractions [H,W,3]."""
  picture = np.where(labels_HxW[..., None] < 0, ground, to_rgb(OTHER))
  for label, colour in colours.items():
    picture[labels_HxW == label] = to_rgb(colour)
  return picture


def _draw_frame(axes: Axes, box: Sequence[float], colour: str) -> None:
  """Draws a box with a dark rim, so that a colour is seen on a ground of its own."""
  x0, y0, x1, y1 = box
  for line, own in ((3.5, "black"), (2, colour)):
    corner = (x0 - 0.5, y0 - 0.5)
    axes.add_patch(
      Rectangle(corner, x1 - x0, y1 - y0, fill=False, edgecolor=own, linewidth=line)
    )


def _resized(pixels: np.ndarray, filter: Image.Resampling) -> np.ndarray:
  """A picture, or labels, with the pixels that a picture alone has on the page."""
  image = Image.fromarray(pixels)
  factor = _ALONE * drawing.DPI / max(image.size)
  width, height = (max(round(side * factor), 1) for side in image.size)
  filter = Image.Resampling.NEAREST if factor > 1 else filter  # few pixels stay pixels
  return np.asarray(image.resize((width, height), filter))


def _alone(
  picture: np.ndarray, legend: Mapping[str, str], title: str
) -> tuple[Figure, Axes]:
  """A sheet of one picture, pixel by pixel, that is high enough for its legend."""
  high, wide = (side / drawing.DPI + 2 * _MARGIN for side in picture.shape[:2])
  sides = (wide, max(high, _ALONE / 2))
  figure, [[axes]] = sheet([[picture]], [legend], [""], shorten(title, 80), sides)
  return figure, axes


def sheet(
  pictures: Sequence[Sequence[np.ndarray]],
  legends: Sequence[Mapping[str, str]],
  headings: Sequence[str],
  title: str,
  sides: tuple[float, float] = (_SIDE, _SIDE),
) -> tuple[Figure, list[list[Axes]]]:
  """Draws rows of pictures, uint8 [H,W,3] or fractions, of equal size; returns the axes
  of each.

  A row has a picture a heading, and a legend: name -> colour. `sides`: width and
  height, inches.
  """
  (wide, high), columns, rows = sides, len(headings), len(pictures)
  growth = max(1.0, (columns * wide + _LEGEND) / _SHOWN)
  width = columns * wide + growth * _LEGEND
  height = rows * high + growth * (_TITLE + _HEADING * any(headings))
  figure = Figure(figsize=(width, height))
  figure.suptitle(
    drawing.escape(title),
    fontsize=growth * drawing.TITLE,
    x=_MARGIN / width,
    y=1 - 0.1 / height,
    ha="left",
    va="top",
  )
  letters = _LETTERS / growth
  headings = drawing.names(headings, max(int(letters), _LEAST_LETTERS))
  heading_size = (
    growth * (drawing.TEXT + 1) * min(1.0, letters / max(1, *map(len, headings)))
  )
  axes_of: list[list[Axes]] = []
  for row, (of_row, legend) in enumerate(zip(pictures, legends, strict=True)):
    y = (rows - 1 - row) * high
    axes_of.append([])
    for column, picture in enumerate(of_row):
      box = (
        column * wide + _MARGIN,
        y + _MARGIN,
        wide - 2 * _MARGIN,
        high - 2 * _MARGIN,
      )
      left, bottom, w, h = (
        v / s for v, s in zip(box, (width, height) * 2, strict=True)
      )
      axes = figure.add_axes((left, bottom, w, h))
      axes.axis("off")
      axes.set_anchor("NW")
      # Few pixels must stay pixels; many are reduced, where smoothing is right.
      enlarged = max(picture.shape[:2]) < max(sides) * drawing.DPI
      axes.imshow(picture, interpolation="nearest" if enlarged else "antialiased")
      if row == 0:
        axes.set_title(headings[column], fontsize=heading_size)
      axes_of[-1].append(axes)
    if legend:
      # Smaller letters where a row has many classes.
      fitting = _POINTS * (high - 0.2) / (_LINE * len(legend))
      # White has a rim, which tells it from the page.
      handles = [
        Patch(fc=colour, ec=drawing.GREY if colour == "white" else colour)
        for colour in legend.values()
      ]
      figure.legend(
        handles=handles,
        labels=list(legend),
        loc="upper left",
        bbox_to_anchor=(columns * wide / width, (y + high - _MARGIN) / height),
        fontsize=min(growth * drawing.TEXT, fitting),
        labelspacing=0.3,
        borderaxespad=0.2,
        frameon=False,
      )
  return figure, axes_of
