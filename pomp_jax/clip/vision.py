"""The frozen vision tower: uint8 images to features.

Shapes: B images of height H and width W, E embedding.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8
from transformers.models.clip.modeling_flax_clip import FlaxCLIPVisionTransformer

from pomp_jax.clip.load import Clip, Params

ImageTower = Callable[[Params, UInt8[Array, "B H W 3"]], Float[Array, "B E"]]


def image_tower(clip: Clip, dtype: DTypeLike = jnp.float32) -> ImageTower:
  """`(clip.vision_params, images) -> features`, features float32 and not normalised.

  The images are resized and cropped already; channel statistics are applied here, on the
  device, so that bytes and not floats travel to it.

  Args:
    clip: whose vision tower.
    dtype: compute type of the layers; parameters stay float32.
  """
  module = FlaxCLIPVisionTransformer(clip.config.vision_config, dtype=dtype)
  mean, std = jnp.array(clip.mean), jnp.array(clip.std)

  def features(params, images_BxHxWx3):
    pixels = (images_BxHxWx3.astype(jnp.float32) / 255 - mean) / std
    pooled_BxD = module.apply({"params": params["vision_model"]}, pixels, return_dict=False)[1]
    kernel_DxE = params["visual_projection"]["kernel"].astype(dtype)
    return (pooled_BxD.astype(dtype) @ kernel_DxE).astype(jnp.float32)

  return features
