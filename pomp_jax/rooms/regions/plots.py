"""Draws pictures with the classes of their pixels, or with boxes, and legends of the
classes.

Sheets have a row for each image and a column for each prompt; `overlay` and
`boxes_picture` draw one picture. Shapes: H, W sides of a picture in pixels, D boxes.
"""

from collections.abc import Iterable, Mapping, Sequence
import os

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

# Tol's muted palette and Okabe and Ito's, which colour-blind readers can tell apart.
_COLOURS = (
  "#0072B2",
  "#E69F00",
  "#009E73",
  "#CC79A7",
  "#56B4E9",
  "#D55E00",
  "#F0E442",
  "#332288",
  "#AA4499",
  "#117733",
  "#882255",
  "#44AA99",
)
OTHER = "#777777"  # colour of classes beyond the palette
# Most boxes of a picture in a sheet, and of a picture alone; not more than colours.
_OF_SHEET = 8
_OF_PICTURE = 12
_OVERLAP = 0.5  # most intersection over union of two boxes that are drawn
# Share of a class's colour in a pixel of `overlay`; the rest is the picture's colour.
_TINT = 0.6
# Inches.
_SIDE = 2.2  # side of a picture in a sheet
_ALONE = 5.0  # longer side of a picture alone
_LEGEND = 3.0  # width of a legend
_TITLE = 0.3  # height of the title
_HEADING = 0.25  # height of the headings
_MARGIN = 0.05
# Width in inches at which sheets are shown. A wider sheet is reduced to it, so its
# letters are enlarged by the factor `growth`.
_SHOWN = 12.0
_POINTS = 72.0  # points in an inch
_LINE = 1.35  # height of a legend's line, in font sizes
_LETTERS = 26  # letters of a heading that fit a column if `growth` is 1
_LEAST_LETTERS = 22  # a heading keeps this many; if fewer fit, its font is smaller
_NAME = 40  # letters of a name in a legend


def strongest(boxes: Detections, most: int = _OF_SHEET) -> Detections:
  """At most `most` boxes of the highest scores, with an IoU of at most _OVERLAP."""
  rows, *_ = select_detections(
    boxes.boxes, boxes.scores[:, None], min_score=-np.inf, max_iou=_OVERLAP, top=most
  )
  return Detections(boxes.boxes[rows], boxes.scores[rows], boxes.classes[rows])


def colours_of(classes: Iterable[int]) -> dict[int, str]:
  """Gives the palette's colours to the first distinct classes, and none to the rest."""
  return dict(zip(dict.fromkeys(classes), _COLOURS, strict=False))


def label_colours(*maps: Int[np.ndarray, "_ _"]) -> dict[int, str]:
  """Gives colours to the classes with most pixels, first to those of the first map."""
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
  """Draws a row for each image, with a legend of its largest classes; others are grey.

  Args:
    path: file of the sheet.
    images: pictures.
    maps: label maps of each image, one for each title; a negative label shows the
      image.
    titles: headings of the maps.
    names: names of the classes.
    title: title of the sheet.
  """
  rows = []
  legends = []
  for image, label_maps in zip(images, maps, strict=True):
    colours = label_colours(*label_maps)
    # Show the image half as dark at pixels without a class: 0..255 becomes 0.5..1.
    ground = 0.5 + image / 510
    rows.append([image, *(_coloured(ground, labels, colours) for labels in label_maps)])
    legends.append(_named(colours, names))
  figure, _ = sheet(rows, legends, ("image", *titles), title)
  drawing.save(path, figure)


def detection_sheet(
  path: str | os.PathLike,
  images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
  boxes: Sequence[Sequence[Detections]],
  titles: Sequence[str],
  names: Sequence[str],
  title: str = "",
) -> None:
  """Draws the `strongest` boxes: a row for each image, with a picture for each title.

  Each row has a legend, and each picture says how many of its boxes it shows.

  Args:
    path: file of the sheet.
    images: pictures.
    boxes: sets of boxes of each image, one for each title.
    titles: headings of the sets.
    names: names of the classes.
    title: title of the sheet.
  """
  strongest_of_rows = []
  colours_of_rows = []
  legends = []
  for sets in boxes:
    strongest_sets = [strongest(detections) for detections in sets]
    strongest_of_rows.append(strongest_sets)
    # One legend for all pictures of a row.
    classes: list[int] = []
    for detections in strongest_sets:
      classes += detections.classes.tolist()
    colours = colours_of(classes)
    colours_of_rows.append(colours)
    legends.append(_named(colours, names))

  pictures = [[image] * len(titles) for image in images]
  figure, axes_of_rows = sheet(pictures, legends, titles, title)
  for row, colours in enumerate(colours_of_rows):
    for column, axes in enumerate(axes_of_rows[row]):
      detections = strongest_of_rows[row][column]
      count = _shown(detections, boxes[row][column], "box")
      _draw_label(axes, (0.02, 0.02), count, va="bottom", of_axes=True)
      for box, label in zip(detections.boxes, detections.classes, strict=True):
        colour = colours.get(int(label), OTHER)
        _draw_frame(axes, box.tolist(), colour)
  drawing.save(path, figure)


def overlay(
  path: str | os.PathLike,
  image: UInt8[np.ndarray, "H W 3"],
  labels_HxW: Int[np.ndarray, "H W"],
  names: Sequence[str],
  title: str,
) -> None:
  """Draws a picture under the colours of its classes, with a legend of their shares.

  Args:
    path: file of the picture.
    image: picture.
    labels_HxW: class of each pixel; a negative label shows the picture.
    names: names of the classes.
    title: title of the picture.
  """
  colours = label_colours(labels_HxW)
  legend = _legend_of_shares(labels_HxW, colours, names)
  picture = _resized(image, Image.Resampling.BICUBIC) / 255
  labels = _resized(labels_HxW, Image.Resampling.NEAREST)
  tinted = (1 - _TINT) * picture + _TINT * _coloured(picture, labels, colours)
  # Draw borders of classes in white, in the pixels on both sides.
  is_edge = np.zeros(labels.shape, bool)
  differs_below = labels[1:] != labels[:-1]
  is_edge[1:] |= differs_below
  is_edge[:-1] |= differs_below
  differs_right = labels[:, 1:] != labels[:, :-1]
  is_edge[:, 1:] |= differs_right
  is_edge[:, :-1] |= differs_right
  tinted[is_edge] = 1
  figure, _ = _alone(tinted, legend, title)
  drawing.save(path, figure)


def _legend_of_shares(
  labels_HxW: np.ndarray, colours: Mapping[int, str], names: Sequence[str]
) -> dict[str, str]:
  """A legend with each class's share of the pixels: text -> colour."""

  def share(classes: Sequence[int]) -> str:
    return f"  {100 * np.isin(labels_HxW, classes).mean():.1f}%"

  legend = {}
  for name, label in zip(_named(colours, names), colours, strict=True):
    legend[name + share([label])] = colours[label]
  others = set(np.unique(labels_HxW[labels_HxW >= 0]).tolist()) - set(colours)
  if others:
    legend[f"{len(others)} other names{share(list(others))}"] = OTHER
  if (labels_HxW < 0).any():
    legend[f"no region{share([-1])}"] = "white"
  return legend


def boxes_picture(
  path: str | os.PathLike,
  image: UInt8[np.ndarray, "H W 3"],
  boxes: Detections,
  names: Sequence[str],
  title: str,
) -> None:
  """Draws the boxes with the highest scores, numbered, and a legend with their names.

  Args:
    path: file of the picture.
    image: picture.
    boxes: boxes in pixels of the picture.
    names: names of the classes.
    title: title; the number of boxes is written behind it.
  """
  drawn = strongest(boxes, _OF_PICTURE)
  classes = drawn.classes.tolist()
  colours = colours_of(classes)
  name_of = dict(zip(colours, _named(colours, names), strict=True))
  legend = {}
  for number, (label, score) in enumerate(zip(classes, drawn.scores, strict=True), 1):
    legend[f"{number}  {name_of[label]}  {score:.2f}"] = colours[label]
  picture = _resized(image, Image.Resampling.BICUBIC)
  figure, axes = _alone(
    picture, legend, f"{title}: {_shown(drawn, boxes, 'detection')}"
  )
  # The picture was resized, so scale the boxes too.
  factor = max(picture.shape[:2]) / max(image.shape[:2])
  corners = (drawn.boxes * factor).tolist()
  for number, (box, label) in enumerate(zip(corners, classes, strict=True), 1):
    _draw_frame(axes, box, colours[label])
    x, y = box[:2]
    _draw_label(axes, (x, y), str(number), va="top", edge=colours[label])
  drawing.save(path, figure)


def _shown(drawn: Detections, boxes: Detections, noun: str) -> str:
  """Says how many boxes are drawn, and of how many if not all are."""
  n_drawn = len(drawn.boxes)
  n_all = len(boxes.boxes)
  if n_drawn == n_all:
    return counted(n_all, noun)
  return f"{n_drawn} of {counted(n_all, noun)}"


def _draw_label(
  axes: Axes,
  place: tuple[float, float],
  text: str,
  *,
  va: str,
  edge: str = "black",
  of_axes: bool = False,
) -> None:
  """Writes a text in white on black, readable on any picture.

  The place is in pixels, or with `of_axes` in fractions of the axes.
  """
  x, y = place
  axes.text(
    x,
    y,
    text,
    fontsize=drawing.TEXT,
    va=va,
    color="white",
    bbox={"facecolor": "black", "edgecolor": edge, "pad": 1.5},
    transform=axes.transAxes if of_axes else axes.transData,
  )


def _named(colours: Mapping[int, str], names: Sequence[str]) -> dict[str, str]:
  """Legend of the classes: shortened name -> colour."""
  shown = drawing.names([names[label] for label in colours], _NAME)
  return dict(zip(shown, colours.values(), strict=True))


def _coloured(
  ground: np.ndarray, labels_HxW: np.ndarray, colours: Mapping[int, str]
) -> np.ndarray:
  """Picture of the classes' colours, of `ground` without a class; fractions [H,W,3]."""
  picture = np.where(labels_HxW[..., None] < 0, ground, to_rgb(OTHER))
  for label, colour in colours.items():
    picture[labels_HxW == label] = to_rgb(colour)
  return picture


def _draw_frame(axes: Axes, box: Sequence[float], colour: str) -> None:
  """Draws a box with a dark rim, so that its colour shows on a ground of that colour."""
  # `imshow` has pixel centres at whole coordinates, boxes have pixel corners there.
  x0, y0, x1, y1 = box
  for line_width, line_colour in ((3.5, "black"), (2, colour)):
    frame = Rectangle(
      (x0 - 0.5, y0 - 0.5),
      x1 - x0,
      y1 - y0,
      fill=False,
      edgecolor=line_colour,
      linewidth=line_width,
    )
    axes.add_patch(frame)


def _resized(pixels: np.ndarray, filter: Image.Resampling) -> np.ndarray:
  """Resizes a picture, or labels, to the pixels of a picture alone: _ALONE at DPI."""
  image = Image.fromarray(pixels)
  factor = _ALONE * drawing.DPI / max(image.size)
  width, height = (max(round(side * factor), 1) for side in image.size)
  if factor > 1:
    # Enlarge a small picture without smoothing, so that its pixels show.
    filter = Image.Resampling.NEAREST
  return np.asarray(image.resize((width, height), filter))


def _alone(
  picture: np.ndarray, legend: Mapping[str, str], title: str
) -> tuple[Figure, Axes]:
  """Draws a sheet of one picture, pixel by pixel, high enough for the legend."""
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
  """Draws rows of pictures of equal size, each row with a legend.

  Args:
    pictures: rows of pictures, each row with one picture a heading: uint8 [H,W,3], or
      floats of 0 to 1.
    legends: legend of each row, name -> colour.
    headings: headings of the columns.
    title: title of the sheet.
    sides: width and height of a picture, inches.

  Returns:
    The figure, and the axes of each row's pictures.
  """
  wide, high = sides
  n_columns = len(headings)
  n_rows = len(pictures)
  growth = max(1.0, (n_columns * wide + _LEGEND) / _SHOWN)
  width = n_columns * wide + growth * _LEGEND
  top = _TITLE + _HEADING if any(headings) else _TITLE
  height = n_rows * high + growth * top
  figure = Figure(figsize=(width, height))
  figure.suptitle(
    drawing.escape(title),
    fontsize=growth * drawing.TITLE,
    x=_MARGIN / width,
    y=1 - 0.1 / height,
    ha="left",
    va="top",
  )
  most_letters = _LETTERS / growth
  headings = drawing.names(headings, max(int(most_letters), _LEAST_LETTERS))
  longest = max(len(heading) for heading in headings)
  shrinking = min(1.0, most_letters / max(longest, 1))
  heading_size = growth * (drawing.TEXT + 1) * shrinking
  axes_of_rows: list[list[Axes]] = []
  for row, pictures_of_row in enumerate(pictures):
    bottom = (n_rows - 1 - row) * high
    axes_of_row = []
    for column, picture in enumerate(pictures_of_row):
      left = column * wide
      place = (
        (left + _MARGIN) / width,
        (bottom + _MARGIN) / height,
        (wide - 2 * _MARGIN) / width,
        (high - 2 * _MARGIN) / height,
      )
      axes = figure.add_axes(place)
      axes.axis("off")
      axes.set_anchor("NW")
      # Enlarge a small picture without smoothing. Reduce a large picture with it.
      is_enlarged = max(picture.shape[:2]) < max(sides) * drawing.DPI
      axes.imshow(picture, interpolation="nearest" if is_enlarged else "antialiased")
      if row == 0:
        axes.set_title(headings[column], fontsize=heading_size)
      axes_of_row.append(axes)
    axes_of_rows.append(axes_of_row)
    legend = legends[row]
    if legend:
      # Reduce the letters if the legend would be higher than the row.
      fitting = _POINTS * (high - 0.2) / (_LINE * len(legend))
      figure.legend(
        handles=[_patch(colour) for colour in legend.values()],
        labels=list(legend),
        loc="upper left",
        bbox_to_anchor=(
          n_columns * wide / width,
          (bottom + high - _MARGIN) / height,
        ),
        fontsize=min(growth * drawing.TEXT, fitting),
        labelspacing=0.3,
        borderaxespad=0.2,
        frameon=False,
      )
  return figure, axes_of_rows


def _patch(colour: str) -> Patch:
  """A legend's patch; a white patch has a grey rim, so that it shows on the page."""
  return Patch(fc=colour, ec=drawing.GREY if colour == "white" else colour)
