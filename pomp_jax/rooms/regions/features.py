"""CLIP features of regions: crops and image tower in chunks of static shape over the mesh.

Shapes: R regions of an image, H and W its size, E embedding, S side of a crop.
"""

from collections.abc import Iterator, Sequence
import functools
from typing import NamedTuple

import jax
from jaxtyping import Bool, Float, UInt8
import numpy as np

from pomp_jax.encoder import Encoder, fetched, map_rows
from pomp_jax.prompt.mesh import replicate, split_rows
from pomp_jax.rooms.regions.crops import CropSettings, crop_region, pixel_ranges

# Crops that a device makes together; more would hold more copies of an image.
_CROPS_AT_A_TIME = 8


class RegionEncoder:
  """Image features of regions, of images of any size.

  Attributes:
    encoder: the CLIP.
    settings: how a region becomes an image; its size is `encoder.clip.image_size`.
  """

  def __init__(
    self,
    encoder: Encoder,
    settings: CropSettings,
    *,
    chunk: int = 64,
    n_images: int = 16,
    bucket: int = 128,
  ):
    """Takes a CLIP and compiles on first use, once per bucket of image sizes.

    Args:
      encoder: the CLIP.
      settings: how to crop.
      chunk: regions computed at a time, over all devices. The last chunk of a call is padded.
      n_images: maximum number of images of a chunk.
      bucket: images are padded to multiples of this number of pixels.
    """
    self.encoder, self.settings = encoder, settings
    self._chunk = -(-chunk // encoder.mesh.size) * encoder.mesh.size
    self._n_images, self._bucket = n_images, bucket
    self._crops = map_rows(
      encoder.mesh, functools.partial(_crops, settings=settings), 2, gather=False
    )

  def features(
    self,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    boxes: Sequence[Float[np.ndarray, "_ 4"]],
    masks: Sequence[Bool[np.ndarray, "_ _ _"]] | None = None,
  ) -> list[Float[np.ndarray, "_ E"]]:
    """Unit features of the regions of each image; zeros for a region without a pixel in it.

    Args:
      images: images, the same on all hosts.
      boxes: boxes of each image, x0, y0, x1, y1.
      masks: mask of each box, [R,H,W]; None for crops without masks.
    """
    width = self.encoder.clip.config.projection_dim
    results = [np.zeros((len(boxes_Rx4), width), np.float32) for boxes_Rx4 in boxes]

    def computed():
      for shape, rows in self._rows_of_chunks(images, boxes, masks):
        crops = self._crops(*self._inputs(shape, rows, images, boxes, masks))
        yield rows, self.encoder.features_of_images(crops)

    for rows, features in fetched(computed()):
      for (image, region), feature in zip(rows, features, strict=False):
        results[image][region] = feature
    return results

  def _rows_of_chunks(self, images, boxes, masks) -> Iterator[tuple[tuple, list[tuple[int, int]]]]:
    """Bucket and (image, region) of the regions of a chunk; those without a pixel are left out."""
    rows_of: dict[tuple, list[tuple[int, int]]] = {}
    for index, image in enumerate(images):
      shape = tuple(self._bucket * -(-side // self._bucket) for side in image.shape[:2])
      valid = _has_pixels(boxes[index], None if masks is None else masks[index], image.shape)
      rows_of.setdefault(shape, []).extend((index, int(r)) for r in np.flatnonzero(valid))
    for shape, rows in rows_of.items():
      while rows:
        part = rows[: self._chunk]
        kept = list(dict.fromkeys(image for image, _ in part))[: self._n_images]
        part = [row for row in part if row[0] in kept]
        yield shape, part
        rows = rows[len(part) :]

  def _inputs(self, shape, rows, images, boxes, masks):
    """Arguments of `_crops` on the devices."""
    slots = {image: slot for slot, image in enumerate(dict.fromkeys(image for image, _ in rows))}
    pixels = np.zeros((self._n_images, *shape, 3), np.uint8)
    sizes = np.ones((self._n_images, 2), np.int32)
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
      ranges_Rx4[number] = pixel_ranges(box, height, width, self.settings)[0]
      if mask_RxHxW is not None:
        mask_RxHxW[number, :height, :width] = masks[image][region]
    mesh = self.encoder.mesh
    regions = _Rows(slot_R, ranges_Rx4, mask_RxHxW)
    return *replicate((pixels, sizes), mesh), split_rows(regions, mesh)


class _Rows(NamedTuple):
  """Rows of a chunk: number of the image, pixel range, mask or None."""

  slot_R: np.ndarray | jax.Array
  ranges_Rx4: np.ndarray | jax.Array
  mask_RxHxW: np.ndarray | jax.Array | None


def _crops(images_NxHxWx3, sizes_Nx2, regions: _Rows, settings: CropSettings):
  """Crops of a device's rows [R,S,S,3]."""

  def crop(row):
    slot, range_4, mask_HxW = row
    return crop_region(images_NxHxWx3[slot], sizes_Nx2[slot], range_4, mask_HxW, settings)

  return jax.lax.map(crop, regions, batch_size=_CROPS_AT_A_TIME)


def _has_pixels(boxes_Rx4, masks_RxHxW, shape) -> np.ndarray:
  """Whether box and mask have a pixel in the image."""
  height, width, _ = shape
  low = np.maximum(boxes_Rx4[:, :2], 0)
  high = np.minimum(boxes_Rx4[:, 2:], [width, height])
  valid = (low < high).all(axis=1)
  return valid if masks_RxHxW is None else valid & masks_RxHxW.any(axis=(1, 2))
