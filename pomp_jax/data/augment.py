"""The published recipe's augmentations, as a function of the seed and of what is shown.

A view is drawn first (`draw_view`: numbers alone) and then made (`make_view`: Pillow). Every view
has random numbers of its own, a function of (seed, image, epoch, view) and of nothing else, so
that worker processes, restarts and a cache of features all see the same pixels.

Shapes: S side of a view, pixels.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pomp_jax.data.resize import resized_crop

# What `augment` takes: CLIP's test preprocessing; random crop and flip; these and RandAugment2.
AUGMENTS = ("none", "crop_flip", "recipe")

CROP_AREA = 0.08  # the crop's area to the image's: from this, or what is asked for, to 1
RATIO = (3 / 4, 4 / 3)  # of the crop's width to its height
_CROP_TRIES = 10
N_OPERATIONS = 2
PROBABILITY = 0.6  # of each operation that was drawn

# One stream of the Philox generator; a seed has others elsewhere.
_STREAM = 0x706F6D70
_N_UNIFORMS = 4 * _CROP_TRIES + 1 + 3 * N_OPERATIONS


class View(NamedTuple):
  """One view of an image, drawn but not made.

  Attributes:
    crop: left, top, width and height in pixels of the whole image.
    flip: left becomes right.
    operations: names among OPERATIONS, each with its magnitude, in order.
  """

  crop: tuple[int, int, int, int]
  flip: bool
  operations: tuple[tuple[str, float], ...]


class Operation(NamedTuple):
  """One of RandAugment2's: what it does, and its magnitudes, drawn uniformly in [low, high)."""

  apply: Callable[[Image.Image, float], Image.Image]
  low: float
  high: float


def draw_view(
  width: int,
  height: int,
  *,
  augment: str,
  seed: int,
  index: int,
  epoch: int,
  view: int,
  crop_area: float = CROP_AREA,
) -> View:
  """Draws what to show of an image.

  Args:
    width: of the whole image, pixels.
    height: of it, pixels.
    augment: `crop_flip` or `recipe`.
    seed: of all augmentations, 0 to 2^64 - 1.
    index: of the image in its source.
    epoch: in which it is shown.
    view: number of the view, 0, 1, ..
    crop_area: least share of the image's area that a crop shows, above 0, at most 1.
  """
  uniforms = _uniforms(seed, index, epoch, view)
  of_crops = uniforms[: 4 * _CROP_TRIES].reshape(_CROP_TRIES, 4)
  crop = _crop(width, height, of_crops, crop_area)
  flip, *rest = uniforms[4 * _CROP_TRIES :].tolist()
  operations = []
  if augment == "recipe":
    for which, chance, magnitude in zip(rest[0::3], rest[1::3], rest[2::3], strict=True):
      if chance < PROBABILITY:
        name = _NAMES[int(which * len(_NAMES))]
        _, low, high = OPERATIONS[name]
        operations.append((name, low + (high - low) * magnitude))
  return View(crop, flip < 0.5, tuple(operations))


def make_view(image: Image.Image, view: View, size: int, shrink: int = 1) -> Image.Image:
  """Cuts a view out of an image, resizes it (bicubic) and changes it.

  Args:
    image: RGB, the whole image, its sides divided by `shrink`.
    view: what to show, in pixels of the image before it was shrunk.
    size: S.
    shrink: by how much the image was decoded smaller.

  Returns:
    RGB, S x S.
  """
  left, top, width, height = (edge / shrink for edge in view.crop)
  result = resized_crop(image, (left, top, left + width, top + height), size)
  if view.flip:
    result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  for name, magnitude in view.operations:
    result = OPERATIONS[name].apply(result, magnitude)
  return result


def _uniforms(seed: int, index: int, epoch: int, view: int) -> np.ndarray:
  """_N_UNIFORMS numbers in [0, 1).

  From the generator's raw output, which NumPy keeps the same for ever, unlike what its
  distributions make of it.
  """
  # The lowest word counts the draws.
  bits = np.random.Philox(key=[seed, _STREAM], counter=[0, view, epoch, index])
  return (bits.random_raw(_N_UNIFORMS) >> 11) * 2.0**-53


def _crop(
  width: int, height: int, uniforms_Tx4: np.ndarray, least_area: float
) -> tuple[int, int, int, int]:
  """A random part of the image, as torchvision's RandomResizedCrop draws it.

  The area is uniform, the ratio of the sides log-uniform; a crop that does not fit is drawn again,
  ten times, then the largest central one with a ratio in range is taken.
  """
  low, high = math.log(RATIO[0]), math.log(RATIO[1])
  for of_area, of_ratio, of_left, of_top in uniforms_Tx4.tolist():
    area = width * height * (least_area + (1 - least_area) * of_area)
    ratio = math.exp(low + (high - low) * of_ratio)
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      return int(of_left * (width - w + 1)), int(of_top * (height - h + 1)), w, h
  w, h = width, height
  if width / height < RATIO[0]:
    h = round(width / RATIO[0])
  elif width / height > RATIO[1]:
    w = round(height * RATIO[1])
  return (width - w) // 2, (height - h) // 2, w, h


def _affine(image: Image.Image, *matrix: float | int) -> Image.Image:
  """Output (x, y) takes the nearest pixel at (a x + b y + c, d x + e y + f); black outside."""
  return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _sharpness(image: Image.Image, magnitude: float) -> Image.Image:
  """Pillow's ImageEnhance.Sharpness, to the bit; its filter takes five times as long."""
  pixels_SxSx3 = np.asarray(image).astype(np.uint16)
  # Each pixel five times and its eight neighbours once, over 13; the border stays.
  rows = pixels_SxSx3[:-2] + pixels_SxSx3[1:-1]
  rows += pixels_SxSx3[2:]
  total = rows[:, :-2] + rows[:, 1:-1]
  total += rows[:, 2:]
  total += 4 * pixels_SxSx3[1:-1, 1:-1]
  smooth_SxSx3 = np.array(image)
  # Rounded: x / 13 + 1 / 2.
  smooth_SxSx3[1:-1, 1:-1] = (2 * total + 13) // 26
  return Image.blend(Image.fromarray(smooth_SxSx3), image, magnitude)


OPERATIONS = {
  "autocontrast": Operation(lambda image, _: ImageOps.autocontrast(image), 0, 1),
  "brightness": Operation(lambda image, m: ImageEnhance.Brightness(image).enhance(m), 0.1, 1.9),
  "color": Operation(lambda image, m: ImageEnhance.Color(image).enhance(m), 0.1, 1.9),
  "contrast": Operation(lambda image, m: ImageEnhance.Contrast(image).enhance(m), 0.1, 1.9),
  "equalize": Operation(lambda image, _: ImageOps.equalize(image), 0, 1),
  "identity": Operation(lambda image, _: image, 0, 1),
  "invert": Operation(lambda image, _: ImageOps.invert(image), 0, 1),
  # Whole bits: 4 to 7.
  "posterize": Operation(lambda image, m: ImageOps.posterize(image, int(m)), 4, 8),
  # Degrees, counter-clockwise.
  "rotate": Operation(lambda image, m: image.rotate(m), -30, 30),
  "sharpness": Operation(_sharpness, 0.1, 1.9),
  # About the top left corner.
  "shear_x": Operation(lambda image, m: _affine(image, 1, m, 0, 0, 1, 0), -0.3, 0.3),
  "shear_y": Operation(lambda image, m: _affine(image, 1, 0, 0, m, 1, 0), -0.3, 0.3),
  # Levels from the magnitude on are inverted.
  "solarize": Operation(lambda image, m: ImageOps.solarize(image, m), 0, 256),
  # Shares of the side.
  "translate_x": Operation(
    lambda image, m: _affine(image, 1, 0, m * image.width, 0, 1, 0), -0.3, 0.3
  ),
  "translate_y": Operation(
    lambda image, m: _affine(image, 1, 0, 0, 0, 1, m * image.height), -0.3, 0.3
  ),
}
_NAMES = tuple(OPERATIONS)
