"""One picture with what was found in it: colours of its pixels, or boxes, and a legend.

Shapes: H, W sides of a picture in pixels, D boxes.
"""

from collections.abc import Mapping, Sequence
import os

from jaxtyping import Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
import numpy as np
from PIL import Image

from pomp_jax.analysis import drawing, sheets
from pomp_jax.analysis.detection import Boxes, draw_frame, strongest

# Longer side of the picture, width of the legend and height of the title, inches.
_PICTURE, _LEGEND, _TITLE = 5.0, 3.4, 0.3
_MARGIN = 0.05
# Share of a class's colour in a pixel; the rest is the picture's.
_COLOUR = 0.6
# Boxes of a picture at most: fewer classes than the sheets have colours.
_BOXES = 12
_NAME = 40  # letters of a name in the legend


def label_colours(labels_HxW: Int[np.ndarray, "H W"]) -> dict[int, str]:
  """Colours of the classes with most pixels, the largest first, as many as can be told apart."""
  classes, counts = np.unique(labels_HxW[labels_HxW >= 0], return_counts=True)
  return sheets.colours_of(classes[np.argsort(-counts, kind="stable")].tolist())


def overlay(
  path: str | os.PathLike,
  image: UInt8[np.ndarray, "H W 3"],
  labels_HxW: Int[np.ndarray, "H W"],
  names: Sequence[str],
  title: str,
) -> None:
  """Draws a picture under the colours of its classes, and a legend with their shares of pixels.

  Args:
    path: PNG file to write.
    image: the picture.
    labels_HxW: class of each pixel; negative: no class, shown as the picture.
    names: class names.
    title: title, such as the picture's file.
  """
  colours = label_colours(labels_HxW)
  others = set(np.unique(labels_HxW[labels_HxW >= 0]).tolist()) - set(colours)
  share = lambda classes: f"  {100 * np.isin(labels_HxW, classes).mean():.1f}%"
  shown = drawing.names([names[label] for label in colours], _NAME)
  entries = {
    Patch(color=colour): name + share([label])
    for (label, colour), name in zip(colours.items(), shown, strict=True)
  }
  if others:
    entries[Patch(color=sheets.OTHER)] = f"{len(others)} other names" + share(list(others))
  if (labels_HxW < 0).any():
    entries[Patch(facecolor="white", edgecolor=drawing.GREY)] = "no region" + share([-1])
  figure, axes = _framed(_coloured(image, labels_HxW, colours), title)
  _legend(axes, entries)
  drawing.save(path, figure)


def boxes_picture(
  path: str | os.PathLike,
  image: UInt8[np.ndarray, "H W 3"],
  boxes: Boxes,
  names: Sequence[str],
  title: str,
) -> None:
  """Draws the strongest boxes on a picture with numbers, and a legend with names and scores.

  Of boxes that overlap by more than half only the one of the highest score is drawn, and twelve in
  all.

  Args:
    path: PNG file to write.
    image: the picture.
    boxes: boxes in its pixels.
    names: class names.
    title: title, such as the picture's file.
  """
  drawn = strongest(boxes, _BOXES)
  colours = sheets.colours_of(drawn.classes.tolist())
  shown = dict(zip(colours, drawing.names([names[c] for c in colours], _NAME), strict=True))
  figure, axes = _framed(_resized(image, Image.Resampling.BICUBIC), title)
  factor = max(axes.get_images()[0].get_array().shape[:2]) / max(image.shape[:2])
  entries = {}
  for number, (box, label, score) in enumerate(
    zip(drawn.boxes * factor, drawn.classes.tolist(), drawn.scores, strict=True), 1
  ):
    draw_frame(axes, box.tolist(), colours[label])
    axes.text(
      box[0], box[1], str(number), fontsize=drawing.TEXT, va="top", color="white",
      bbox={"facecolor": "black", "edgecolor": colours[label], "pad": 1.5},
    )  # fmt: skip
    entries[Patch(color=colours[label])] = f"{number}  {shown[label]}  {score:.2f}"
  _legend(axes, entries)
  drawing.save(path, figure)


def _coloured(image: np.ndarray, labels_HxW: np.ndarray, colours: Mapping[int, str]) -> np.ndarray:
  """The picture at its size on the page, with light lines between classes."""
  image = _resized(image, Image.Resampling.BICUBIC)
  labels = _resized(labels_HxW, Image.Resampling.NEAREST)
  tint = np.broadcast_to(to_rgb(sheets.OTHER), image.shape).copy()
  for label, colour in colours.items():
    tint[labels == label] = to_rgb(colour)
  tint = np.where(labels[..., None] < 0, image / 255, tint)
  picture = (1 - _COLOUR) * image / 255 + _COLOUR * tint
  edge = np.zeros(labels.shape, bool)
  for own, changes in (
    (edge, labels[1:] != labels[:-1]),
    (edge.T, (labels[:, 1:] != labels[:, :-1]).T),
  ):
    own[1:] |= changes
    own[:-1] |= changes
  picture[edge] = 1
  return picture


def _resized(pixels: np.ndarray, filter: Image.Resampling) -> np.ndarray:
  """A picture, or labels, with a longer side of the pixels that it has on the page."""
  height, width = pixels.shape[:2]
  factor = _PICTURE * drawing.DPI / max(height, width)
  sides = [max(round(side * factor), 1) for side in (width, height)]
  # Few pixels stay pixels.
  filter = Image.Resampling.NEAREST if factor > 1 else filter
  return np.asarray(Image.fromarray(pixels).resize(tuple(sides), filter))


def _framed(picture: np.ndarray, title: str) -> tuple[Figure, Axes]:
  """A figure with the picture pixel by pixel, its title, and room for the legend at the right."""
  high, wide = (side / drawing.DPI for side in picture.shape[:2])
  height = max(high, _PICTURE / 2)
  figure = Figure(figsize=(wide + _LEGEND + 2 * _MARGIN, height + _TITLE + 2 * _MARGIN))
  sides = figure.get_size_inches()
  figure.suptitle(
    drawing.name(title, 80), fontsize=drawing.HEADING, x=_MARGIN / sides[0],
    y=1 - _MARGIN / sides[1], ha="left", va="top",
  )  # fmt: skip
  box = (_MARGIN, _MARGIN + height - high, wide, high)
  axes = figure.add_axes([v / s for v, s in zip(box, (*sides, *sides), strict=True)])
  axes.axis("off")
  axes.imshow(picture, interpolation="nearest")
  return figure, axes


def _legend(axes: Axes, entries: Mapping[Patch, str]) -> None:
  """Adds a legend at the right of the picture, unless it is empty."""
  if not entries:
    return
  axes.legend(
    handles=list(entries), labels=list(entries.values()), loc="upper left", borderaxespad=0,
    bbox_to_anchor=(1.02, 1.0), fontsize=drawing.TEXT, frameon=False,
  )  # fmt: skip
