"""Crops of regions on the device: a box to a square image by two matrices, equal to torch's resize.

Boxes are x0, y0, x1, y1 in pixels; the ends are exclusive.
Shapes: R regions, H and W of the image with its padding, S side of a crop.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num
import numpy as np

from pomp_jax.clip.torch_bicubic import bicubic_matrix


@dataclasses.dataclass(frozen=True)
class CropSettings:
  """How a region becomes an image.

  Attributes:
    size: S.
    fill: RGB, 0..255, of pixels outside the mask.
    expand: factor on both sides of the box.
    square: whether the shorter side grows to the longer one first. Otherwise the box is stretched.
  """

  size: int
  fill: tuple[float, float, float] = (0.0, 0.0, 0.0)
  expand: float = 1.0
  square: bool = False


def pixel_ranges(
  boxes_Rx4: Float[np.ndarray, "R 4"], height: int, width: int, settings: CropSettings
) -> Int[np.ndarray, "R 4"]:
  """Rows and columns of each crop, x0, y0, x1, y1, at least one pixel each way, inside the image.

  Fractions of pixels are included, except that a square has round(side) pixels each way.
  """
  limits = np.array([width, height])
  low, high = (np.clip(corner, 0, limits) for corner in (boxes_Rx4[:, :2], boxes_Rx4[:, 2:]))
  center, sides = (low + high) / 2, (high - low) * settings.expand
  if settings.square:
    sides = np.maximum(np.rint(sides.max(1, keepdims=True)), 1)
    low = np.rint(center - sides / 2)
    high = low + sides
  else:
    low, high = np.floor(center - sides / 2), np.ceil(center + sides / 2)
  low, high = np.clip(low, 0, limits - 1), np.minimum(high, limits)
  return np.concatenate([low, np.maximum(high, low + 1)], axis=1).astype(np.int32)


def crop_region(
  image_HxWx3: Num[Array, "H W 3"],
  shape_2: Int[Array, "2"],
  range_4: Int[Array, "4"],
  mask_HxW: Bool[Array, "H W"] | None,
  settings: CropSettings,
) -> Float[Array, "S S 3"]:
  """Crops one region and resizes it as torch's bicubic `interpolate` does, values not clipped.

  Args:
    image_HxWx3: image, padded to any size below and to the right.
    shape_2: height and width of the image without its padding.
    range_4: row of `pixel_ranges`.
    mask_HxW: pixels of the region; the others are filled. None for all.
    settings: how to crop.
  """
  n_rows, n_columns, _ = image_HxWx3.shape
  fill = jnp.array(settings.fill)
  inside = (jnp.arange(n_rows) < shape_2[0])[:, None] & (jnp.arange(n_columns) < shape_2[1])
  if mask_HxW is not None:
    inside &= mask_HxW
  # The weights of a new pixel add up to 1: what is zero here becomes the fill.
  image_HxWx3 = jnp.where(inside[..., None], image_HxWx3 - fill, 0)
  x0, y0, x1, y1 = range_4
  rows_SxH = bicubic_matrix(settings.size, n_rows, y0, y1)
  columns_SxW = bicubic_matrix(settings.size, n_columns, x0, x1)
  # TF32 would lose a quarter of a grey value.
  with jax.default_matmul_precision("highest"):
    return jnp.einsum("sh,hwc,tw->stc", rows_SxH, image_HxWx3, columns_SxW) + fill
