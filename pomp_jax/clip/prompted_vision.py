"""The frozen vision tower of a ViT with learned tokens among an image's own.

Shapes: B images of height H and width W, T tokens of an image (class and patches), J layers that
have learned tokens of their own, V of these in each, D width, E embedding.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8
from transformers.models.clip.modeling_flax_clip import (
  FlaxCLIPEncoderLayer,
  FlaxCLIPVisionEmbeddings,
)

from pomp_jax.clip.load import Clip, Params
from pomp_jax.clip.precision import precision_of, with_products
from pomp_jax.clip.vision import in_parts, normalized

PromptedImageTower = Callable[
  [Params, UInt8[Array, "B H W 3"], Float[Array, "J V D"]], Float[Array, "B E"]
]


def prompted_image_tower(
  clip: Clip, dtype: DTypeLike = jnp.float32, at_a_time: int = 0
) -> PromptedImageTower:
  """`(clip.vision_params, images, tokens) -> features`, features float32 and not normalised.

  Layer j < J sees the V tokens tokens[j], and what the layer before made of its own is dropped
  (Jia et al., 2022: J = 1 is VPT-shallow, J = all layers VPT-deep). The first enter before the
  tower's first layer norm; learned tokens have no positions.

  Args:
    clip: whose vision tower, a ViT.
    dtype: compute type of the layers, see `clip.precision`; parameters stay float32.
    at_a_time: the most images in memory together, in the backward pass too; 0: all.
  """
  dtype, products = precision_of(dtype)
  config = clip.config.vision_config
  embeddings = FlaxCLIPVisionEmbeddings(config, dtype=dtype)
  layer = FlaxCLIPEncoderLayer(config, dtype=dtype)
  norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype)

  def features(params, images_BxHxWx3, tokens_JxVxD):
    model, pixels = params["vision_model"], normalized(clip, images_BxHxWx3)
    own_BxTxD = embeddings.apply({"params": model["embeddings"]}, pixels)
    n_images, n_own, _ = own_BxTxD.shape

    def with_tokens(hidden, j):
      tokens_BxVxD = jnp.broadcast_to(tokens_JxVxD[j], (n_images, *tokens_JxVxD.shape[1:]))
      return jnp.concatenate([hidden[:, :n_own], tokens_BxVxD.astype(hidden.dtype)], axis=1)

    hidden = norm.apply({"params": model["pre_layrnorm"]}, with_tokens(own_BxTxD, 0))
    for j in range(config.num_hidden_layers):
      if 0 < j < tokens_JxVxD.shape[0]:
        hidden = with_tokens(hidden, j)
      hidden = layer.apply({"params": model["encoder"]["layers"][str(j)]}, hidden, None)[0]
    pooled_BxD = norm.apply({"params": model["post_layernorm"]}, hidden[:, 0])
    kernel_DxE = params["visual_projection"]["kernel"].astype(dtype)
    return (pooled_BxD.astype(dtype) @ kernel_DxE).astype(jnp.float32)

  # A part's activations are computed again in the backward pass, where they are needed.
  precise = with_products(products, features)
  return in_parts(jax.checkpoint(precise) if at_a_time else precise, at_a_time)
