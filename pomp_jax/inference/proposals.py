"""Regions that a MaskFormer finds, as `segment` and `detect` read them.

Shapes: B images of H x W pixels, Q queries, h x w pixels of a mask, E embedding, N classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8
import numpy as np
from PIL import Image

from pomp_jax.encoder import map_rows
from pomp_jax.masks.inference import MASK_STRIDE, mask_predictor
from pomp_jax.masks.model import LOGIT_SCALE, class_logits
from pomp_jax.masks.weights import MaskFormerFile
from pomp_jax.prompt.mesh import replicate
from pomp_jax.regions.boxes import boxes_of_masks
from pomp_jax.regions.files import RegionHeader, Regions


class Proposer:
  """A network on the devices; every query is a region."""

  def __init__(
    self,
    network: MaskFormerFile,
    mesh: Mesh,
    classes_NxE: Float[Array | np.ndarray, "N E"] | None,
    *,
    dtype: str = "float32",
    size: int = 0,
    threshold: float = 0.5,
    batch_size: int = 8,
  ):
    """Copies the parameters to the devices.

    Args:
      network: the network.
      mesh: devices, which split a batch.
      classes_NxE: classes that it was trained on, for the objectness; None: by the masks alone.
      dtype: compute type, one of `clip.precision.DTYPES`.
      size: shorter side of an image in the network, pixels; 0: as it is.
      threshold: probability above which a pixel is inside a mask, for boxes and objectness.
      batch_size: images of the same size that are computed together.
    """
    self._params = replicate((network.params, classes_NxE), mesh)
    self._size, self._threshold = size, threshold
    self._batch_size = -(-batch_size // mesh.size) * mesh.size
    predict = mask_predictor(network.config, dtype)

    def of_batch(params, images_BxHxWx3):
      params, classes_NxE = params
      n_images, height, width, _ = images_BxHxWx3.shape
      found = predict(params, images_BxHxWx3, jnp.tile(jnp.array([height, width]), (n_images, 1)))
      # Without the padding.
      logits = found.masks_BxQxhxw[:, :, : height // MASK_STRIDE, : width // MASK_STRIDE]
      p = jax.nn.sigmoid(logits.astype(jnp.float32))
      objectness_BxQ = mask_quality(p, threshold)
      if classes_NxE is not None:
        scores = class_logits(found.embeddings_BxQxE, classes_NxE, params["non_object"][0])
        objectness_BxQ *= 1 - jax.nn.softmax(scores)[..., -1]
      masks = jnp.round(255 * p).astype(jnp.uint8)
      return masks, found.embeddings_BxQxE.astype(jnp.float16), objectness_BxQ

    self._of_batch = map_rows(mesh, of_batch, n_replicated=1)

  def regions(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Regions]:
    """Regions of images of any sizes, all queries of each.

    The sides of an image become multiples of 4 pixels before the network, and its masks cover it at
    a stride of 4. Boxes are in pixels of the image as given.
    """
    resized = [np.asarray(_resized(image, self._size)) for image in images]
    found: list[Any] = [None] * len(images)
    for rows in _same_shapes(resized, self._batch_size):
      # The last row fills the batch.
      filled = rows + rows[-1:] * (self._batch_size - len(rows))
      batch = np.stack([resized[row] for row in filled])
      results = jax.device_get(self._of_batch(self._params, batch))
      for number, row in enumerate(rows):
        masks, embeddings, objectness = (part[number] for part in results)
        boxes = mask_boxes(masks, *images[row].shape[:2], self._threshold)
        found[row] = Regions(boxes, objectness, masks, embeddings[:, None])
    return found


def header_of(network: MaskFormerFile, clip_model: str) -> RegionHeader:
  """What a folder of the network's regions says of them."""
  null = tuple(np.asarray(network.params["non_object"][0], np.float64).tolist())
  width = network.config.embedding
  names = tuple(network.trained_classes)
  return RegionHeader("MaskFormer", clip_model, 1, width, "softmax", LOGIT_SCALE, null, names)


def mask_quality(p: Float[Array, "*X h w"], threshold: float) -> Float[Array, "*X"]:
  """Mean probability of the pixels inside a mask; 0 for an empty one."""
  inside = p > threshold
  n_inside = jnp.sum(inside, axis=(-2, -1))
  return jnp.sum(jnp.where(inside, p, 0.0), axis=(-2, -1)) / jnp.maximum(n_inside, 1)


def mask_boxes(
  masks: UInt8[np.ndarray, "R h w"], height: int, width: int, threshold: float
) -> Float[np.ndarray, "R 4"]:
  """Boxes of soft masks in an image of height x width, from the masks at that size."""
  hard = np.zeros((len(masks), height, width), bool)
  for own, mask in zip(hard, masks, strict=True):
    enlarged = Image.fromarray(mask.astype(np.float32))
    enlarged = enlarged.resize((width, height), Image.Resampling.BILINEAR)
    np.greater(np.asarray(enlarged), 255 * threshold, out=own)
  return boxes_of_masks(hard)


def found_objects(
  masks: Bool[np.ndarray, "R H W"], objects: Bool[np.ndarray, "D H W"], least_iou: float = 0.5
) -> Bool[np.ndarray, " D"]:
  """Whether each object has a mask with at least this intersection over union."""
  if not len(masks) or not len(objects):
    return np.zeros(len(objects), bool)
  rows, columns = (x.reshape(len(x), -1).astype(np.float32) for x in (masks, objects))
  both = rows @ columns.T
  union = rows.sum(1)[:, None] + columns.sum(1) - both
  return (both / np.maximum(union, 1)).max(axis=0) >= least_iou


def _resized(image_HxWx3: np.ndarray, size: int) -> Image.Image:
  """The image with a shorter side of about `size`, and sides that are multiples of 4."""
  height, width = image_HxWx3.shape[:2]
  scale = size / min(height, width) if size else 1.0
  sides = [MASK_STRIDE * max(1, round(scale * side / MASK_STRIDE)) for side in (width, height)]
  return Image.fromarray(image_HxWx3).resize(tuple(sides), Image.Resampling.BILINEAR)


def _same_shapes(images: Sequence[np.ndarray], most: int) -> Iterator[list[int]]:
  """Rows of images of one shape, `most` together."""
  rows_of: dict[tuple, list[int]] = {}
  for row, image in enumerate(images):
    rows_of.setdefault(image.shape, []).append(row)
  for rows in rows_of.values():
    for start in range(0, len(rows), most):
      yield rows[start : start + most]
