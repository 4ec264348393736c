"""Views of training images: the published augmentations, decoded or stored as features.

`draw_view` draws the numbers of a view, which depend only on seed, image, epoch and
view; `make_view` then makes its pixels. Worker processes, restarts and stored features
therefore see the same pixels. Shapes: B images, V views an image, S side of a view in
pixels, E embedding, T tries of a crop.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import math
from typing import NamedTuple

from jaxtyping import Bool, Float, Int, UInt8
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pomp_jax.data.images import ImageError, load_rgb, open_image, resized_crop, sides
from pomp_jax.data.source import Source, StoredImages, readable_images
from pomp_jax.files.features import Features

# Augmentations: `none` is CLIP's test preprocessing, `crop_flip` a random crop and
# flip, `recipe` a random crop, a flip and RandAugment2.
AUGMENTS = ("none", "crop_flip", "recipe")

CROP_AREA = 0.08  # least area of a crop, as a share of the image's
RATIO = (3 / 4, 4 / 3)  # width of a crop over its height
_CROP_TRIES = 10
N_OPERATIONS = 2  # operations that are drawn for a view
PROBABILITY = 0.6  # of applying each drawn operation

# Philox key word of this stream; other streams of a seed have other words.
_STREAM = 0x706F6D70
# Numbers of a view: 4 for each try of a crop, 1 for the flip, 3 for each operation.
_N_UNIFORMS = 4 * _CROP_TRIES + 1 + 3 * N_OPERATIONS


# Worker processes of `train.fill_features` make the two types below. They are in this
# file because a worker then imports few modules.


class Part(NamedTuple):
  """Images of a block of stored features that are decoded together."""

  block: int
  epoch: int
  indices_B: np.ndarray


class DecodedPart(NamedTuple):
  """Views of a part's images."""

  part: Part
  versions_BxV: np.ndarray  # column of each view in the block
  pixels_BxVxSxSx3: np.ndarray
  readable_B: np.ndarray


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Augmentation of the training images."""

  kind: str = "none"  # one of AUGMENTS
  n_views: int = 1  # V; 1 under `none`, where all views are equal
  seed: int = 0  # random seed of all augmentations, 0 to 2^64 - 1
  # Epochs after which views repeat, so that they can be stored; 0 for never.
  view_epochs: int = 0
  crop_area: float = CROP_AREA  # least area of a random crop, as a share of the image's

  @property
  def n_epochs(self) -> int:
    """Epochs whose views differ; 1 under `none`, 0 if the views never repeat."""
    return 1 if self.kind == "none" else self.view_epochs

  def versions(self, epochs: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B V"]:
    """Numbers, below n_epochs * V, of the views that an epoch shows."""
    return (epochs % self.n_epochs)[:, None] * self.n_views + np.arange(self.n_views)


def stored_views(
  features: Features,
  augmentation: Augmentation,
  indices: Int[np.ndarray, " B"],
  epochs: Int[np.ndarray, " B"],
) -> tuple[Float[np.ndarray, "B V E"], Bool[np.ndarray, " B"]]:
  """Stored features of the images' views, and which images were readable.

  Args:
    features: stored features of all versions.
    augmentation: augmentation with which the features were made.
    indices: numbers of the images.
    epochs: epoch of each image.
  """
  features_BxVxE = features.read(indices, augmentation.versions(epochs))
  return features_BxVxE, ~np.isnan(features_BxVxE[:, 0, 0])


def views(
  source: Source,
  indices: Int[np.ndarray, " B"],
  epochs: Int[np.ndarray, " B"],
  augmentation: Augmentation,
  size: int,
) -> tuple[UInt8[np.ndarray, "B V S S 3"], Bool[np.ndarray, " B"]]:
  """Makes the views of images, black for unreadable ones, and says which were readable.

  Under `none` the views are the source's images, in the source's own size. Otherwise
  stored images are decoded and augmented here, and the images of another source are
  augmented as its `images` returns them.

  Args:
    source: images.
    indices: numbers of the images.
    epochs: epoch of each image.
    augmentation: how views differ.
    size: side of a view in pixels, S.
  """
  if augmentation.kind == "none":
    images, unreadable = readable_images(source, indices)
    return images[:, None], ~np.isin(indices, list(unreadable))
  result = np.zeros((len(indices), augmentation.n_views, size, size, 3), np.uint8)
  readable = np.zeros(len(indices), bool)
  stored = source if isinstance(source, StoredImages) else None
  # Images of another source need no decoding.
  pixels = source.images(indices) if stored is None else np.zeros(0)
  pairs = zip(indices.tolist(), epochs.tolist(), strict=True)
  for row, (index, epoch) in enumerate(pairs):
    # An image that can't be read stays black, and its `readable` False.
    with contextlib.suppress(ImageError):
      if stored is not None:
        where = stored.where(index)
        image = open_image(stored.encoded(index), where)
        upright = stored.upright
      else:
        where = f"image {index}"
        image = Image.fromarray(pixels[row])
        upright = False
      width, height = sides(image, upright)
      drawn = [
        draw_view(width, height, augmentation, index=index, epoch=epoch, view=view)
        for view in range(augmentation.n_views)
      ]
      decoded, shrink = load_rgb(image, where, _largest_shrink(drawn, size), upright)
      for number, view in enumerate(drawn):
        result[row, number] = np.asarray(make_view(decoded, view, size, shrink))
      readable[row] = True
  return result, readable


def _largest_shrink(drawn: Sequence["View"], size: int) -> int:
  """Largest factor by which a JPEG may be shrunk so that no crop is below S x S."""
  smallest = min(min(view.crop[2:]) for view in drawn)
  return max((s for s in (2, 4, 8) if smallest >= s * size), default=1)


class View(NamedTuple):
  """One view of an image, drawn but not made."""

  # Left, top, width and height in pixels of the whole image.
  crop: tuple[int, int, int, int]
  flip: bool  # whether left and right are exchanged
  # Names in OPERATIONS with magnitudes, in order.
  operations: tuple[tuple[str, float], ...]


def draw_view(
  width: int, height: int, augmentation: Augmentation, index: int, epoch: int, view: int
) -> View:
  """Draws one view of an image under `crop_flip` or `recipe`.

  The view depends on the arguments alone, and not on the augmentation's `n_views`.

  Args:
    width: width of the image in pixels.
    height: height of the image in pixels.
    augmentation: kind, seed and limits.
    index: number of the image.
    epoch: number of the pass over the images.
    view: number of the view, below V.
  """
  if augmentation.view_epochs:
    epoch %= augmentation.view_epochs
  # Use the generator's raw output: NumPy guarantees that this output never changes, but
  # not that of distributions. The lowest word of the counter counts the draws.
  bits = np.random.Philox(
    key=[augmentation.seed, _STREAM], counter=[0, view, epoch, index]
  )
  # The upper 53 bits as a fraction in [0, 1).
  uniforms = (bits.random_raw(_N_UNIFORMS) >> 11) * 2.0**-53
  of_crops, (of_flip, *of_operations) = np.split(uniforms, [4 * _CROP_TRIES])
  operations = []
  if augmentation.kind == "recipe":
    for of_name, of_chance, of_magnitude in np.reshape(of_operations, (-1, 3)).tolist():
      if of_chance < PROBABILITY:
        name = _NAMES[int(of_name * len(_NAMES))]
        _, low, high = OPERATIONS[name]
        operations.append((name, low + (high - low) * of_magnitude))
  crop = _crop(width, height, of_crops.reshape(-1, 4), augmentation.crop_area)
  return View(crop, bool(of_flip < 0.5), tuple(operations))


def make_view(
  image: Image.Image, view: View, size: int, shrink: int = 1
) -> Image.Image:
  """Crops a view out of an image, resizes it (bicubic) and applies its operations.

  Args:
    image: RGB image.
    view: drawn view.
    size: side of the view in pixels, S.
    shrink: factor by which `image` is smaller than the image for which `view` was
      drawn.
  """
  left, top, width, height = (edge / shrink for edge in view.crop)
  result = resized_crop(image, (left, top, left + width, top + height), size)
  if view.flip:
    result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  for name, magnitude in view.operations:
    operation, _, _ = OPERATIONS[name]
    result = operation(result, magnitude)
  return result


def _crop(
  width: int, height: int, uniforms_Tx4: np.ndarray, least_area: float
) -> tuple[int, int, int, int]:
  """Random crop with the distribution of torchvision's RandomResizedCrop.

  The area is uniform, the ratio of the sides log-uniform. A crop that does not fit is
  redrawn. After ten tries the crop is the largest central one whose ratio is in RATIO.

  Args:
    width: width of the image in pixels.
    height: height of the image in pixels.
    uniforms_Tx4: numbers in [0, 1) of each try: for area, ratio, left and top.
    least_area: least area of the crop, as a share of the image's.

  Returns:
    Left, top, width and height in pixels.
  """
  narrowest, widest = RATIO
  for of_area, of_ratio, of_left, of_top in uniforms_Tx4.tolist():
    area = width * height * (least_area + (1 - least_area) * of_area)
    low = math.log(narrowest)
    high = math.log(widest)
    ratio = math.exp(low + (high - low) * of_ratio)
    crop_width = round(math.sqrt(area * ratio))
    crop_height = round(math.sqrt(area / ratio))
    if 0 < crop_width <= width and 0 < crop_height <= height:
      left = int(of_left * (width - crop_width + 1))
      top = int(of_top * (height - crop_height + 1))
      return left, top, crop_width, crop_height
  crop_width = width
  crop_height = height
  if width / height < narrowest:
    crop_height = round(width / narrowest)
  elif width / height > widest:
    crop_width = round(height * widest)
  left = (width - crop_width) // 2
  top = (height - crop_height) // 2
  return left, top, crop_width, crop_height


def _affine(image: Image.Image, *matrix: float | int) -> Image.Image:
  """Moves pixels by a matrix a, b, c, d, e, f.

  Output pixel (x, y) is the input pixel nearest to (a x + b y + c, d x + e y + f), or
  black outside the image.
  """
  return image.transform(image.size, Image.Transform.AFFINE, matrix)


# Operations of RandAugment2, and the range [low, high) of their uniform magnitudes.
OPERATIONS: dict[
  str, tuple[Callable[[Image.Image, float], Image.Image], float, float]
] = {
  "autocontrast": (lambda image, _: ImageOps.autocontrast(image), 0, 1),
  "brightness": (lambda image, m: ImageEnhance.Brightness(image).enhance(m), 0.1, 1.9),
  "color": (lambda image, m: ImageEnhance.Color(image).enhance(m), 0.1, 1.9),
  "contrast": (lambda image, m: ImageEnhance.Contrast(image).enhance(m), 0.1, 1.9),
  "equalize": (lambda image, _: ImageOps.equalize(image), 0, 1),
  "identity": (lambda image, _: image, 0, 1),
  "invert": (lambda image, _: ImageOps.invert(image), 0, 1),
  # Number of bits to keep: 4 to 7.
  "posterize": (lambda image, m: ImageOps.posterize(image, int(m)), 4, 8),
  # Degrees, counter-clockwise.
  "rotate": (lambda image, m: image.rotate(m), -30, 30),
  "sharpness": (lambda image, m: ImageEnhance.Sharpness(image).enhance(m), 0.1, 1.9),
  # Both shears keep the top left corner in its place.
  "shear_x": (lambda image, m: _affine(image, 1, m, 0, 0, 1, 0), -0.3, 0.3),
  "shear_y": (lambda image, m: _affine(image, 1, 0, 0, m, 1, 0), -0.3, 0.3),
  # Inverts levels at or above the magnitude.
  "solarize": (lambda image, m: ImageOps.solarize(image, math.ceil(m)), 0, 256),
  # Magnitudes are shares of the width or height.
  "translate_x": (lambda i, m: _affine(i, 1, 0, m * i.width, 0, 1, 0), -0.3, 0.3),
  "translate_y": (lambda i, m: _affine(i, 1, 0, 0, 0, 1, m * i.height), -0.3, 0.3),
}
_NAMES = tuple(OPERATIONS)
