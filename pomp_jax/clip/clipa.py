"""CLIPA's image tower (Li et al., 2023), as open_clip has it; shapes as in
`clip.layers`."""

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


@dataclasses.dataclass(frozen=True)
class ClipaConfig:
  """CLIPA's tower: OpenAI's without the norm in front.

  The mean of the patches is normed and projected.
  """

  prefix: ClassVar[str] = "visual."  # in front of the tensors' names in a checkpoint

  image_size: int  # pixels
  num_attention_heads: int

  def features(
    self, params: Tensors, pixels: Float[Array, "B H W 3"]
  ) -> Float[Array, "B E"]:
    """Features of normalised images, in their float type; errors as the layers'."""
    grid = patches(params, "conv1", pixels, bias=False)
    batch = grid.shape[0]
    width = grid.shape[-1]
    first = tensor(params, "class_embedding", width).astype(grid.dtype)
    first = jnp.broadcast_to(first, (batch, 1, width))
    hidden = jnp.concatenate([first, grid.reshape(batch, -1, width)], axis=1)
    positions = tensor(params, "positional_embedding", *hidden.shape[1:])
    hidden += positions.astype(hidden.dtype)
    for i in range(count(params, "transformer.resblocks.")):
      hidden = self._layer(params, f"transformer.resblocks.{i}", hidden)
    pooled = layer_norm(params, "ln_post", hidden[:, 1:].mean(1), 1e-5)
    kernel = tensor(params, "proj", width, params["proj"].shape[-1])
    return pooled @ kernel.astype(pooled.dtype)

  def _layer(self, params: Tensors, name: str, hidden: Array) -> Array:
    """Attention and an MLP, each after a norm."""
    width = hidden.shape[-1]
    rows = layer_norm(params, f"{name}.ln_1", hidden, 1e-5)
    kernel = tensor(params, f"{name}.attn.in_proj_weight", 3 * width, width)
    kernel = kernel.astype(rows.dtype)
    bias = tensor(params, f"{name}.attn.in_proj_bias", 3 * width).astype(rows.dtype)
    query, key, value = jnp.split(rows @ kernel.T + bias, 3, axis=-1)
    attended = attention(self.num_attention_heads, query, key, value)
    hidden += dense(params, f"{name}.attn.out_proj", attended)
    rows = layer_norm(params, f"{name}.ln_2", hidden, 1e-5)
    inner = gelu(dense(params, f"{name}.mlp.c_fc", rows))
    return hidden + dense(params, f"{name}.mlp.c_proj", inner)
