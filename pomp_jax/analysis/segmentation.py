"""Pictures with the label map under each prompt."""

from collections.abc import Sequence
import os

from jaxtyping import Int, UInt8
from matplotlib.colors import to_rgb
import numpy as np

from pomp_jax.analysis import drawing, sheets


def segmentation_sheet(
  path: str | os.PathLike,
  images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
  maps: Sequence[Sequence[Int[np.ndarray, "_ _"]]],
  titles: Sequence[str],
  names: Sequence[str],
  title: str = "",
) -> None:
  """Draws a row for each image, with a legend of its largest classes; the rest is grey.

  Args:
    path: PNG file to write.
    images: one or more images.
    maps: of each image, label maps of its size; negative: no class, shown as the image.
    titles: of each label map.
    names: class names.
    title: title of the sheet, with the numbers of images and classes.
  """
  legends = [_colours_of(of_image) for of_image in maps]
  pictures = [
    [image, *(_coloured(image, labels, colours) for labels in of_image)]
    for image, of_image, colours in zip(images, maps, legends, strict=True)
  ]
  figure, _ = sheets.picture_rows(pictures, legends, ("image", *titles), names, title)
  drawing.save(path, figure)


def _colours_of(maps: Sequence[np.ndarray]) -> dict[int, str]:
  """Colours of the classes with most pixels, those of the first map before others."""
  order: dict[int, None] = {}
  for labels_HxW in maps:
    classes, counts = np.unique(labels_HxW[labels_HxW >= 0], return_counts=True)
    order |= dict.fromkeys(classes[np.argsort(-counts, kind="stable")].tolist())
  return sheets.colours_of(order)


def _coloured(image: np.ndarray, labels_HxW: np.ndarray, colours: dict[int, str]) -> np.ndarray:
  faded = 0.5 + image / 255 / 2
  picture = np.where(labels_HxW[..., None] < 0, faded, to_rgb(sheets.OTHER))
  for label, colour in colours.items():
    picture[labels_HxW == label] = to_rgb(colour)
  return picture
