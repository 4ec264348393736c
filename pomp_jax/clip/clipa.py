"""CLIPA's image tower (Li et al., 2023), as in open_clip.

Shapes: as in `clip.layers`; E embedding.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from pomp_jax.array_types import Array, Float
from pomp_jax.clip.attention import attention
from pomp_jax.clip.layers import (
  Tensors,
  count,
  dense,
  gelu,
  layer_norm,
  patches,
  tensor,
)

_EPSILON = 1e-5  # of the layer norms' variances


@dataclasses.dataclass(frozen=True)
class ClipaConfig:
  """CLIPA's image tower: OpenAI's ViT without the norm in front of the layers.

  The feature is the mean of the patch tokens, normed and projected.
  """

  prefix: ClassVar[str] = "visual."  # start of the tensors' names in a checkpoint

  image_size: int  # height and width of the images, pixels
  num_attention_heads: int

  def features(
    self, params: Tensors, pixels: Float[Array, "B H W 3"]
  ) -> Float[Array, "B E"]:
    """Computes features of normalised images, in the images' float type.

    A class token and the patches, with positions, pass through the layers. The class
    token is not part of the mean that gives the feature.

    Args:
      params: tensors by name, as in `clip.layers`.
      pixels: normalised images.

    Raises:
      KeyError: a tensor is missing.
      ValueError: the shape of a tensor does not fit the others.
    """
    patches_BxGxGxD = patches(params, "conv1", pixels, bias=False)
    batch, _, _, width = patches_BxGxGxD.shape
    class_D = tensor(params, "class_embedding", width).astype(patches_BxGxGxD.dtype)
    class_Bx1xD = jnp.broadcast_to(class_D, (batch, 1, width))
    patches_BxPxD = patches_BxGxGxD.reshape(batch, -1, width)
    hidden_BxTxD = jnp.concatenate([class_Bx1xD, patches_BxPxD], axis=1)

    n_tokens = hidden_BxTxD.shape[1]
    position_TxD = tensor(params, "positional_embedding", n_tokens, width)
    hidden_BxTxD += position_TxD.astype(hidden_BxTxD.dtype)
    for i in range(count(params, "transformer.resblocks.")):
      hidden_BxTxD = self._layer(params, f"transformer.resblocks.{i}", hidden_BxTxD)

    mean_BxD = hidden_BxTxD[:, 1:].mean(axis=1)
    pooled_BxD = layer_norm(params, "ln_post", mean_BxD, _EPSILON)
    embedding = params["proj"].shape[-1]
    kernel_DxE = tensor(params, "proj", width, embedding)
    return pooled_BxD @ kernel_DxE.astype(pooled_BxD.dtype)

  def _layer(self, params: Tensors, name: str, hidden: Array) -> Array:
    """Computes one layer: attention and an MLP, each after a norm.

    Args:
      params: tensors by name.
      name: name of the layer.
      hidden: input [B,T,D].
    """
    width = hidden.shape[-1]
    normed = layer_norm(params, f"{name}.ln_1", hidden, _EPSILON)
    # torch stacks the kernels of queries, keys and values into one tensor.
    kernel_3DxD = tensor(params, f"{name}.attn.in_proj_weight", 3 * width, width)
    kernel_3DxD = kernel_3DxD.astype(normed.dtype)
    bias_3D = tensor(params, f"{name}.attn.in_proj_bias", 3 * width)
    bias_3D = bias_3D.astype(normed.dtype)
    stacked_BxTx3D = normed @ kernel_3DxD.T + bias_3D
    query, key, value = jnp.split(stacked_BxTx3D, 3, axis=-1)
    attended = attention(self.num_attention_heads, query, key, value)
    hidden += dense(params, f"{name}.attn.out_proj", attended)

    normed = layer_norm(params, f"{name}.ln_2", hidden, _EPSILON)
    inner = gelu(dense(params, f"{name}.mlp.c_fc", normed))
    return hidden + dense(params, f"{name}.mlp.c_proj", inner)
