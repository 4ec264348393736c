"""Crops of regions and their CLIP features, in chunks of static shape over the mesh.

Two matrix products turn a box into a square image, equal to torch's resize. Boxes are
x0, y0, x1, y1 in pixels; the ends are exclusive. Shapes: N images of a chunk, R
regions, H and W sides of an image with its padding, S side of a crop, E embedding.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, UInt8
import numpy as np

from pomp_jax.encoder import Encoder, fetched, map_rows
from pomp_jax.prompt.mesh import replicate, split_rows
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.torch_bicubic import bicubic_matrix

# Crops that a device makes at a time: each needs a copy of its image in memory.
_CROPS_AT_A_TIME = 8
_CHUNK = 64  # regions that all devices compute at a time
_IMAGES = 16  # images of a chunk of regions, N
_BUCKET = 128  # images are padded to multiples of this many pixels

# For each crop: the number of its image in the chunk, its pixel range, and its mask if
# there are masks.
_Rows = tuple[Int[Array, " R"], Int[Array, "R 4"], Bool[Array, "R H W"] | None]


@dataclasses.dataclass(frozen=True)
class Cropping:
  """How a region becomes an image."""

  size: int  # S
  # RGB, 0..255, of pixels outside the mask.
  fill: tuple[float, float, float] = (0.0, 0.0, 0.0)
  expand: float = 1.0  # factor on both sides of the box
  # Whether the shorter side grows to the longer one; otherwise the crop is stretched.
  square: bool = False


def pixel_ranges(
  boxes_Rx4: Float[np.ndarray, "R 4"], height: int, width: int, cropping: Cropping
) -> Int[np.ndarray, "R 4"]:
  """Computes rows and columns of each crop inside the image, at least one of each.

  A crop includes the pixels that its box covers in part. A square crop instead has
  round(side) rows and columns before the image's border cuts it.

  Args:
    boxes_Rx4: boxes in pixels, which may leave the image.
    height: height of the image in pixels.
    width: width of the image in pixels.
    cropping: factor by which the sides grow, and whether the crop becomes a square.

  Returns:
    x0, y0, x1, y1 of each crop.
  """
  limits = np.array([width, height])
  low = np.clip(boxes_Rx4[:, :2], 0, limits)
  high = np.clip(boxes_Rx4[:, 2:], 0, limits)
  center = (low + high) / 2
  sides = (high - low) * cropping.expand
  if cropping.square:
    longer_Rx1 = sides.max(axis=1, keepdims=True)
    side_Rx1 = np.maximum(np.rint(longer_Rx1), 1)
    low = np.rint(center - side_Rx1 / 2)
    high = low + side_Rx1
  else:
    low = np.floor(center - sides / 2)
    high = np.ceil(center + sides / 2)
  low = np.clip(low, 0, limits - 1)
  high = np.maximum(np.minimum(high, limits), low + 1)
  return np.concatenate([low, high], axis=1).astype(np.int32)


def crop_region(
  image_HxWx3: Num[Array, "H W 3"],
  shape_2: Int[Array, "2"],
  range_4: Int[Array, "4"],
  mask_HxW: Bool[Array, "H W"] | None,
  cropping: Cropping,
) -> Float[Array, "S S 3"]:
  """Crops one region and resizes it as torch's bicubic `interpolate` does.

  Args:
    image_HxWx3: image with padding below and to the right.
    shape_2: height and width of the image without its padding.
    range_4: a row of `pixel_ranges`.
    mask_HxW: pixels of the region; all others get the fill. None: the whole crop.
    cropping: size and fill of the crop.

  Returns:
    Square image. Values may exceed those of the image a little, since bicubic weights
    may be negative; they are not clipped.
  """
  height, width, _ = image_HxWx3.shape
  is_row_H = jnp.arange(height) < shape_2[0]
  is_column_W = jnp.arange(width) < shape_2[1]
  is_inside_HxW = is_row_H[:, None] & is_column_W
  if mask_HxW is not None:
    is_inside_HxW &= mask_HxW
  # Subtract the fill here and add it to the crop. The weights of a new pixel add up to
  # 1, so a pixel that is zero in between becomes the fill.
  fill_3 = jnp.array(cropping.fill)
  shifted_HxWx3 = jnp.where(is_inside_HxW[..., None], image_HxWx3 - fill_3, 0)

  x0, y0, x1, y1 = range_4
  rows_SxH = bicubic_matrix(cropping.size, height, y0, y1)
  columns_SxW = bicubic_matrix(cropping.size, width, x0, x1)
  # TF32 would lose a quarter of a grey value.
  with jax.default_matmul_precision("highest"):
    crop_SxSx3 = jnp.einsum("sh,hwc,tw->stc", rows_SxH, shifted_HxWx3, columns_SxW)
  return crop_SxSx3 + fill_3


class _Chunk(NamedTuple):
  """Regions that all devices compute together."""

  sides: tuple[int, ...]  # height and width of the images with the padding
  # of each region: number of its image, and number among the image's regions
  rows: list[tuple[int, int]]


class RegionEncoder:
  """Computes image features of regions in images of any size."""

  def __init__(self, encoder: Encoder, regions: fields.Regions):
    """Takes a CLIP and compiles on first use, once per padded size of images.

    As in ZSSeg, a masked crop is stretched to a square, and pixels outside the mask get
    CLIP's mean colour, which is 0 after normalisation. A crop with context is cut as a
    square.

    Args:
      encoder: the CLIP.
      regions: kind and size of the crops.
    """
    red, green, blue = (255 * float(value) for value in encoder.clip.mean)
    self._cropping = Cropping(
      size=encoder.clip.image_size,
      fill=(red, green, blue),
      expand=regions.expand,
      square=regions.crop == "context",
    )
    self._encoder = encoder
    n_devices = encoder.mesh.size
    # Round up to a multiple of the devices, which share the regions of a chunk.
    self._chunk = -(-_CHUNK // n_devices) * n_devices
    crops = functools.partial(_crops, cropping=self._cropping)
    self._crops = map_rows(encoder.mesh, crops, 2, gather=False)

  def features(
    self,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    boxes: Sequence[Float[np.ndarray, "_ 4"]],
    masks: Sequence[Bool[np.ndarray, "_ _ _"]] | None = None,
  ) -> list[Float[np.ndarray, "_ E"]]:
    """Computes unit features of the regions of each image; all hosts get all of them.

    Args:
      images: images [H,W,3] of any size.
      boxes: boxes of each image [R,4].
      masks: masks of each image's boxes [R,H,W]; None for crops without masks.

    Returns:
      Features of each image's regions [R,E]; zeros for a region without a pixel.
    """
    width = self._encoder.clip.config.projection_dim
    results = [np.zeros((len(boxes_Rx4), width), np.float32) for boxes_Rx4 in boxes]

    def computed() -> Iterator[tuple[list[tuple[int, int]], jax.Array]]:
      for chunk in self._chunks(images, boxes, masks):
        crops = self._crops(*self._inputs(chunk, images, boxes, masks))
        yield chunk.rows, self._encoder.features_of_images(crops)

    for rows, features in fetched(computed()):
      # The last features of a chunk are padding, which `zip` drops.
      for (image, region), feature in zip(rows, features, strict=False):
        results[image][region] = feature
    return results

  def _chunks(
    self,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    boxes: Sequence[Float[np.ndarray, "_ 4"]],
    masks: Sequence[Bool[np.ndarray, "_ _ _"]] | None,
  ) -> Iterator[_Chunk]:
    """Yields the regions that have a pixel, in chunks of one padded size of images.

    Args:
      images: images [H,W,3] of any size.
      boxes: boxes of each image [R,4].
      masks: masks of each image's boxes [R,H,W], or None.
    """
    rows_of_sides: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for index, (image, boxes_Rx4) in enumerate(zip(images, boxes, strict=True)):
      height, width, _ = image.shape
      has_pixels_R = _has_pixels(boxes_Rx4, height, width)
      if masks is not None:
        has_pixels_R &= masks[index].any(axis=(1, 2))
      # Round up to multiples of _BUCKET, for fewer compilations.
      sides = tuple(_BUCKET * -(-side // _BUCKET) for side in (height, width))
      rows = rows_of_sides.setdefault(sides, [])
      for region in np.flatnonzero(has_pixels_R).tolist():
        rows.append((index, region))

    for sides, rows in rows_of_sides.items():
      while rows:
        chunk = rows[: self._chunk]
        # A chunk has _IMAGES images at most: leave the regions of more images to the
        # next chunk. Rows are in the order of the images, so the first rows are kept.
        distinct = list(dict.fromkeys(image for image, _ in chunk))
        images_of_chunk = distinct[:_IMAGES]
        chunk = [row for row in chunk if row[0] in images_of_chunk]
        yield _Chunk(sides, chunk)
        rows = rows[len(chunk) :]

  def _inputs(
    self,
    chunk: _Chunk,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    boxes: Sequence[Float[np.ndarray, "_ 4"]],
    masks: Sequence[Bool[np.ndarray, "_ _ _"]] | None,
  ) -> tuple[UInt8[Array, "N H W 3"], Int[Array, "N 2"], _Rows]:
    """Places a chunk on the devices, padded to its static shape.

    Args:
      chunk: regions to crop.
      images: all images [H,W,3].
      boxes: boxes of each image [R,4].
      masks: masks of each image's boxes [R,H,W], or None.

    Returns:
      Arguments of `_crops`.
    """
    # Each image is sent once for all its regions; its slot is its place in the chunk.
    distinct = dict.fromkeys(image for image, _ in chunk.rows)
    slot_of = {image: slot for slot, image in enumerate(distinct)}
    pixels_NxHxWx3 = np.zeros((_IMAGES, *chunk.sides, 3), np.uint8)
    sizes_Nx2 = np.ones((_IMAGES, 2), np.int32)
    for image, slot in slot_of.items():
      height, width, _ = images[image].shape
      sizes_Nx2[slot] = (height, width)
      pixels_NxHxWx3[slot, :height, :width] = images[image]

    # Rows of padding crop one pixel of the first image.
    slot_R = np.zeros(self._chunk, np.int32)
    ranges_Rx4 = np.tile(np.array([0, 0, 1, 1], np.int32), (self._chunk, 1))
    for number, (image, region) in enumerate(chunk.rows):
      height, width, _ = images[image].shape
      box_1x4 = boxes[image][region : region + 1]
      slot_R[number] = slot_of[image]
      ranges_Rx4[number] = pixel_ranges(box_1x4, height, width, self._cropping)[0]

    masks_RxHxW = None
    if masks is not None:
      masks_RxHxW = np.zeros((self._chunk, *chunk.sides), bool)
      for number, (image, region) in enumerate(chunk.rows):
        mask_HxW = masks[image][region]
        height, width = mask_HxW.shape
        masks_RxHxW[number, :height, :width] = mask_HxW

    mesh = self._encoder.mesh
    images_of_chunk, sizes_of_chunk = replicate((pixels_NxHxWx3, sizes_Nx2), mesh)
    rows = split_rows((slot_R, ranges_Rx4, masks_RxHxW), mesh)
    return images_of_chunk, sizes_of_chunk, rows


def _has_pixels(
  boxes_Rx4: Float[np.ndarray, "R 4"], height: int, width: int
) -> Bool[np.ndarray, " R"]:
  """Whether each box has an area inside the image."""
  low_Rx2 = np.maximum(boxes_Rx4[:, :2], 0)
  high_Rx2 = np.minimum(boxes_Rx4[:, 2:], [width, height])
  return (low_Rx2 < high_Rx2).all(axis=1)


def _crops(
  images_NxHxWx3: UInt8[Array, "N H W 3"],
  sizes_Nx2: Int[Array, "N 2"],
  rows: _Rows,
  cropping: Cropping,
) -> Float[Array, "R S S 3"]:
  """Crops the regions of one device."""

  def crop(
    row: tuple[Int[Array, ""], Int[Array, "4"], Bool[Array, "H W"] | None],
  ) -> Float[Array, "S S 3"]:
    slot, range_4, mask_HxW = row
    return crop_region(
      images_NxHxWx3[slot], sizes_Nx2[slot], range_4, mask_HxW, cropping
    )

  return jax.lax.map(crop, rows, batch_size=_CROPS_AT_A_TIME)
