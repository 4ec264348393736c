"""Crops of regions and their CLIP features, on the device in chunks of static shape
over the mesh.

A box becomes a square image by two matrices, equal to torch's resize. Boxes are x0, y0,
x1, y1 in pixels; the ends are exclusive. Shapes: R regions, H and W of the image with
its padding, S side of a crop, E embedding.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, UInt8
import numpy as np

from pomp_jax.encoder import Encoder, fetched, map_rows
from pomp_jax.prompt.mesh import replicate, split_rows
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.torch_bicubic import bicubic_matrix

# Crops that a device makes together; more would hold more copies of an image.
_CROPS_AT_A_TIME = 8
# Regions, and their images, that all devices compute at a time; the last ones of a call
# are padded.
_CHUNK, _IMAGES = 64, 16
_BUCKET = 128  # images are padded to multiples of this many pixels


@dataclasses.dataclass(frozen=True)
class Cropping:
  """How a region becomes an image."""

  size: int  # S
  # RGB, 0..255, of pixels outside the mask
  fill: tuple[float, float, float] = (0.0, 0.0, 0.0)
  expand: float = 1.0  # factor on both sides of the box
  # whether the shorter side grows to the longer one; else it is stretched
  square: bool = False


def pixel_ranges(
  boxes_Rx4: Float[np.ndarray, "R 4"], height: int, width: int, cropping: Cropping
) -> Int[np.ndarray, "R 4"]:
  """Rows and columns of each crop, x0, y0, x1, y1, at least one pixel each way, inside
  the image.

  Fractions of pixels are included, except that a square has round(side) pixels each
  way.
  """
  limits = np.array([width, height])
  low, high = (
    np.clip(corner, 0, limits) for corner in (boxes_Rx4[:, :2], boxes_Rx4[:, 2:])
  )
  center, sides = (low + high) / 2, (high - low) * cropping.expand
  if cropping.square:
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
  cropping: Cropping,
) -> Float[Array, "S S 3"]:
  """Crops one region and resizes it as torch's bicubic `interpolate` does, values not
  clipped.

  `shape_2` has height and width of the image without its padding, which is below and to
  the right; `range_4` is a row of `pixel_ranges`. Pixels outside the mask, if there is
  one, are filled.
  """
  n_rows, n_columns, _ = image_HxWx3.shape
  fill = jnp.array(cropping.fill)
  inside = (jnp.arange(n_rows) < shape_2[0])[:, None] & (
    jnp.arange(n_columns) < shape_2[1]
  )
  if mask_HxW is not None:
    inside &= mask_HxW
  # The weights of a new pixel add up to 1: what is zero here becomes the fill.
  image_HxWx3 = jnp.where(inside[..., None], image_HxWx3 - fill, 0)
  x0, y0, x1, y1 = range_4
  rows_SxH = bicubic_matrix(cropping.size, n_rows, y0, y1)
  columns_SxW = bicubic_matrix(cropping.size, n_columns, x0, x1)
  # TF32 would lose a quarter of a grey value.
  with jax.default_matmul_precision("highest"):
    return jnp.einsum("sh,hwc,tw->stc", rows_SxH, image_HxWx3, columns_SxW) + fill


class RegionEncoder:
  """Image features of regions, of images of any size."""

  def __init__(self, encoder: Encoder, regions: fields.Regions):
    """Takes a CLIP and compiles on first use, once per padded size of images.

    As in ZSSeg, a masked crop is stretched to a square, and pixels outside the mask get
    CLIP's mean colour, which becomes 0. A crop with context is cut as a square.
    """
    red, green, blue = (255 * float(value) for value in encoder.clip.mean)
    square, fill = regions.crop == "context", (red, green, blue)
    cropping = Cropping(encoder.clip.image_size, fill, regions.expand, square)
    self._encoder, self._cropping = encoder, cropping
    self._chunk = -(-_CHUNK // encoder.mesh.size) * encoder.mesh.size
    self._crops = map_rows(
      encoder.mesh, functools.partial(_crops, cropping=cropping), 2, gather=False
    )

  def features(
    self,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    boxes: Sequence[Float[np.ndarray, "_ 4"]],
    masks: Sequence[Bool[np.ndarray, "_ _ _"]] | None = None,
  ) -> list[Float[np.ndarray, "_ E"]]:
    """Unit features of the regions of each image, on all hosts; zeros for a region
    without a pixel.

    `masks` has the mask of each box, [R,H,W]; None: crops without masks.
    """
    width = self._encoder.clip.config.projection_dim
    results = [np.zeros((len(boxes_Rx4), width), np.float32) for boxes_Rx4 in boxes]

    def computed():
      for shape, rows in self._rows_of_chunks(images, boxes, masks):
        crops = self._crops(*self._inputs(shape, rows, images, boxes, masks))
        yield rows, self._encoder.features_of_images(crops)

    for rows, features in fetched(computed()):
      for (image, region), feature in zip(rows, features, strict=False):
        results[image][region] = feature
    return results

  def _rows_of_chunks(
    self, images, boxes, masks
  ) -> Iterator[tuple[tuple, list[tuple[int, int]]]]:
    """Bucket and (image, region) of the regions of a chunk; those without a pixel
    are left out."""
    rows_of: dict[tuple, list[tuple[int, int]]] = {}
    for index, (image, boxes_Rx4) in enumerate(zip(images, boxes, strict=True)):
      shape = tuple(_BUCKET * -(-side // _BUCKET) for side in image.shape[:2])
      height, width, _ = image.shape
      low, high = (
        np.maximum(boxes_Rx4[:, :2], 0),
        np.minimum(boxes_Rx4[:, 2:], [width, height]),
      )
      valid = (low < high).all(axis=1)
      if masks is not None:
        valid &= masks[index].any(axis=(1, 2))
      rows_of.setdefault(shape, []).extend(
        (index, int(r)) for r in np.flatnonzero(valid)
      )
    for shape, rows in rows_of.items():
      while rows:
        part = rows[: self._chunk]
        kept = list(dict.fromkeys(image for image, _ in part))[:_IMAGES]
        part = [row for row in part if row[0] in kept]
        yield shape, part
        rows = rows[len(part) :]

  def _inputs(self, shape, rows, images, boxes, masks):
    """Arguments of `_crops` on the devices."""
    slots = {
      image: slot
      for slot, image in enumerate(dict.fromkeys(image for image, _ in rows))
    }
    pixels = np.zeros((_IMAGES, *shape, 3), np.uint8)
    sizes = np.ones((_IMAGES, 2), np.int32)
    for image, slot in slots.items():
      height, width = sizes[slot] = images[image].shape[:2]
      pixels[slot, :height, :width] = images[image]
    slot_R = np.zeros(self._chunk, np.int32)
    ranges_Rx4 = np.tile(np.array([0, 0, 1, 1], np.int32), (self._chunk, 1))
    mask_RxHxW = None if masks is None else np.zeros((self._chunk, *shape), bool)
    for number, (image, region) in enumerate(rows):
      height, width = images[image].shape[:2]
      slot_R[number] = slots[image]
      box = boxes[image][region : region + 1]
      ranges_Rx4[number] = pixel_ranges(box, height, width, self._cropping)[0]
      if mask_RxHxW is not None:
        mask_RxHxW[number, :height, :width] = masks[image][region]
    mesh = self._encoder.mesh
    rows = slot_R, ranges_Rx4, mask_RxHxW
    return *replicate((pixels, sizes), mesh), split_rows(rows, mesh)


def _crops(images_NxHxWx3, sizes_Nx2, rows, cropping: Cropping):
  """Crops of a device's rows [R,S,S,3]; a row is number of the image, pixel range,
  mask or None."""

  def crop(row):
    slot, range_4, mask_HxW = row
    return crop_region(
      images_NxHxWx3[slot], sizes_Nx2[slot], range_4, mask_HxW, cropping
    )

  return jax.lax.map(crop, rows, batch_size=_CROPS_AT_A_TIME)
