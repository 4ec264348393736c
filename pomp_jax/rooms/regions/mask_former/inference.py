"""Masks and embeddings of images by a MaskFormer, compiled once for each size of batch.

Shapes: B images of H x W pixels, Q queries, h x w at stride 4 of the padded sides, E embedding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pomp_jax.clip.precision import precision_of, with_products
from pomp_jax.rooms.regions.mask_former.model import MaskFormer, MaskFormerConfig, normalized_pixels

# Pixels of an image along a side of a pixel of its masks.
MASK_STRIDE = 4


class Predictions(NamedTuple):
  """Masks of a batch, logits over the padded image, and unnormalised vectors for class matrices."""

  masks_BxQxhxw: Float[Array, "B Q h w"]
  embeddings_BxQxE: Float[Array, "B Q E"]


def mask_predictor(config: MaskFormerConfig, dtype: Any = jnp.float32) -> Callable:
  """Builds `(params, images_BxHxWx3, sizes_Bx2) -> Predictions`, pure, for `jax.jit`.

  The images are uint8 and fill their upper left corners. What is beyond an image's size is padding,
  and so are the pixels up to the next multiples of 32. The network sees padding as detectron2's
  does: positions are relative to the padded sides. Results are therefore the published ones if H
  and W are an image's own sides, rounded up to multiples of 32.
  """
  dtype, products = precision_of(dtype)
  model = MaskFormer(config, dtype)

  def predict(params, images_BxHxWx3, sizes_Bx2):
    pixels = normalized_pixels(images_BxHxWx3, sizes_Bx2)
    output = model.apply({"params": params}, pixels)
    return Predictions(output.masks_JxBxQxhxw[-1], output.embeddings_JxBxQxE[-1])

  return with_products(products, predict)


def full_size(masks_BxQxhxw: Float[Array, "B Q h w"]) -> Float[Array, "B Q _ _"]:
  """Logits of the masks at the padded image's size; bilinear, as torch without align_corners."""
  *batch, height, width = masks_BxQxhxw.shape
  shape = (*batch, MASK_STRIDE * height, MASK_STRIDE * width)
  return jax.image.resize(masks_BxQxhxw, shape, "bilinear")
