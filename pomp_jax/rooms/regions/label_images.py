"""Images with a label for each pixel: a folder of images and a folder of label images.

A label image is a one-channel PNG (or TIFF) of 8 or 16 bits with the stem of its image;
a palette is ignored. Images without a label image are skipped, since some data sets
keep all images together. Shapes: H, W sides of an image in pixels, C classes.
"""

from collections.abc import Sequence
import io
import os

from jaxtyping import Int32, UInt8
import numpy as np
from PIL import Image

from pomp_jax.data.folder import find_images
from pomp_jax.data.images import ImageError, load_rgb, open_image, sides
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import Path
from pomp_jax.rooms.regions.class_splits import ClassSplit
from pomp_jax.rooms.regions.region_errors import RegionError

IGNORED = -1  # label of a pixel that is not evaluated
# Meanings of the values in a label image; see `open_pixels`.
VALUES = ("index", "reduce_zero_label", "listed")
_MODES = ("L", "P", "I", "I;16", "I;16B")
_UNKNOWN = -2  # a value that is no class
_N_VALUES = 2**16


class PixelFolder:
  """Images and labels of a folder pair.

  `keys` are the stems of the images, sorted. `files` has the image file and the label
  file of each, or None for an image without a label file.
  """

  def __init__(self, pairs: Sequence[tuple[Path, Path | None]], table: np.ndarray):
    """Takes pairs of files, and the class of each value in a label image.

    Args:
      pairs: files of each image and of its label image; None: it has no label image.
      table: int32 [2^16], indexed by value: the class, IGNORED, or -2 for a value that
        is no class.
    """
    self.keys = tuple(image.stem for image, _ in pairs)
    self.files = pairs
    self._table = table

  def __len__(self) -> int:
    return len(self.files)

  def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image; ImageError if it can't be decoded."""
    return read_rgb(self.files[index][0])

  def shape(self, index: int) -> tuple[int, int]:
    """Height and width of an image, by its header; ImageError if it can't be read."""
    return image_size(self.files[index][0])

  def labels(self, index: int) -> Int32[np.ndarray, "H W"]:
    """Decodes a label image: class of each pixel, or IGNORED.

    Raises:
      ImageError: the file can't be decoded.
      RegionError: the label image differs in size from its image, or has a value that
        is neither a class nor ignored.
    """
    image, path = self.files[index]
    height, width = self.shape(index)
    if path is None:
      return np.full((height, width), IGNORED, np.int32)
    values_HxW = read_values(path)
    labels_HxW = self._table[values_HxW]
    is_unknown_HxW = labels_HxW == _UNKNOWN
    if is_unknown_HxW.any():
      value = values_HxW[is_unknown_HxW][0]
      n_classes = self._table.max() + 1
      raise RegionError(
        f"{path}: value {value} is none of the {n_classes} classes' nor ignored"
      )
    if labels_HxW.shape != (height, width):
      found = f"{labels_HxW.shape[1]} x {labels_HxW.shape[0]}"
      raise RegionError(f"{path}: {found} pixels, but {image} has {width} x {height}")
    return labels_HxW


def open_pixels(
  images: str | os.PathLike,
  labels: str | os.PathLike,
  classes: ClassSplit,
  values: str = "index",
  ignore: int = 255,
  n_images: int = 0,
) -> PixelFolder:
  """Pairs the images of a folder with label images.

  Args:
    images: folder of images.
    labels: folder of label images; empty: all images are taken, without labels.
    classes: classes of the labels.
    values: meaning of a label image's values. `index`: class 0, 1, ..;
      `reduce_zero_label`: 0 is ignored, and class c has the value c + 1 (ADE20K, and
      VOC and PASCAL Context with background); `listed`: the values that the class list
      gives (COCO-Stuff's own label images).
    ignore: value of pixels that are not evaluated; no class may have this value.
    n_images: number of pairs to keep, spread evenly over all; 0: all.

  Raises:
    RegionError: two images have the same stem, a label image has no image, the class
      list gives no values for `listed`, or `ignore` is the value of a class.
  """
  table = _table(classes, values, ignore)
  image_of_stem: dict[str, Path] = {}
  for path in find_images(images, nested=False).values():
    if path.stem in image_of_stem:
      raise RegionError(
        f"{path}: has the stem of {image_of_stem[path.stem].name}, expected one image"
      )
    image_of_stem[path.stem] = path
  pairs: list[tuple[Path, Path | None]] = []
  if not labels:
    pairs += [(path, None) for path in image_of_stem.values()]
  else:
    for path in find_images(labels, nested=False).values():
      if path.stem not in image_of_stem:
        raise RegionError(f"{path}: no image named {path.stem} in {images}")
      pairs.append((image_of_stem[path.stem], path))
  kept = [pairs[row] for row in spread_evenly(n_images, len(pairs))]
  return PixelFolder(kept, table)


def _table(classes: ClassSplit, values: str, ignore: int) -> np.ndarray:
  """Builds the table that maps a label image's values to classes.

  Args:
    classes: the classes; for `listed` with the values of each class.
    values: meaning of the values, one of `VALUES`; see `open_pixels`.
    ignore: value of pixels without a class.

  Returns:
    int32 [2^16]: the class, IGNORED, or _UNKNOWN for a value that is no class.

  Raises:
    RegionError: the class list gives no values for `listed`, or `ignore` is the value
      of a class or beyond 16 bits.
  """
  class_of_value = np.full(_N_VALUES, _UNKNOWN, np.int32)
  if values == "listed":
    if classes.values is None:
      raise RegionError(
        "the class list has no values of label images, expected a third column"
      )
    for label, values_of_class in enumerate(classes.values):
      class_of_value[list(values_of_class)] = label
  else:
    # With reduce_zero_label 0 is ignored, and class 0 has the value 1.
    first = 1 if values == "reduce_zero_label" else 0
    class_of_value[:first] = IGNORED
    class_of_value[first : first + len(classes)] = np.arange(len(classes))
  if not 0 <= ignore < _N_VALUES or class_of_value[ignore] >= 0:
    raise RegionError(
      f"the ignored value {ignore} is a class or not in [0, {_N_VALUES})"
    )
  class_of_value[ignore] = IGNORED
  return class_of_value


def read_rgb(
  path: str | os.PathLike, upright: bool = False
) -> UInt8[np.ndarray, "H W 3"]:
  """Reads the pixels of one image file; ImageError if it can't be decoded."""
  with open_image(path) as image:
    rgb, *_ = load_rgb(image, str(path), upright=upright)
    return np.asarray(rgb)


def image_size(path: str | os.PathLike, upright: bool = False) -> tuple[int, int]:
  """Height and width of an image file, by its header; raises what `open_image` does."""
  with open_image(path) as image:
    return sides(image, upright)[::-1]


def read_values(path: Path) -> np.ndarray:
  """Reads the pixels of a label image as they are stored.

  Returns:
    Values [H,W] between 0 and 2^16 - 1. The file's mode decides the type: uint8, uint16
    or int32.

  Raises:
    ImageError: the file can't be decoded.
    RegionError: the file has several channels, or values beyond 16 bits.
  """
  image = open_image(path)
  if image.mode not in _MODES:
    raise RegionError(
      f"{path}: pixels of mode {image.mode}, expected one channel of class numbers"
    )

  try:
    values_HxW = np.asarray(image)
  except Exception as error:  # PIL's decoders raise many classes of errors
    raise ImageError(f"{path}: not a readable image ({error})") from error

  # Check the range, since pixels of mode I are signed and have 32 bits.
  lowest = values_HxW.min()
  highest = values_HxW.max()
  if lowest < 0 or highest >= _N_VALUES:
    raise RegionError(f"{path}: values beyond 16 bits, expected class numbers")
  return values_HxW


def write_labels(
  path: str | os.PathLike,
  labels_HxW: Int32[np.ndarray, "H W"],
  n_classes: int,
  colours: UInt8[np.ndarray, "256 3"] | None = None,
) -> str:
  """Writes a label image as a PNG with one channel.

  Args:
    path: file to write.
    labels_HxW: class of each pixel, or IGNORED, which becomes 255 or 65,535.
    n_classes: number of classes. Up to 255 classes take 8 bits a pixel, more take 16.
    colours: sRGB of each value, the palette that viewers show. A file of 16 bits has
      none.

  Returns:
    Checksum of the file.

  Raises:
    OSError: the file can't be written.
  """
  fits_8_bits = n_classes <= 255
  dtype = np.uint8 if fits_8_bits else np.uint16
  # The cast wraps IGNORED, which is -1, to the largest value of the type.
  image = Image.fromarray(labels_HxW.astype(dtype))
  # PNG has palettes for 8 bits only.
  if colours is not None and fits_8_bits:
    image.putpalette(colours.tobytes())
  png = io.BytesIO()
  image.save(png, "PNG")
  return write_file(path, png.getvalue())
