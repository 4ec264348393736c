"""Image towers of SigLIP (Zhai et al., 2023) and SigLIP 2 (Tschannen et al., 2025), as in timm.

A ViT without a class token, whose patches are pooled by attention of a learned query.
Shapes: B images, E embedding.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from pomp_jax.array_types import Array, Float
from pomp_jax.clip.layers import (
  Tensors,
  attention,
  count,
  dense,
  gelu,
  latent_pooling,
  layer_norm,
  patches,
  tensor,
)

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
  """What the tensors do not tell."""

  prefix: ClassVar[str] = "visual.trunk."  # in front of the tensors' names in a checkpoint

  image_size: int  # pixels
  num_attention_heads: int
  tanh: bool = False  # whether GELU is the approximate one

  def features(
    self, params: Tensors, pixels_BxHxWx3: Float[Array, "B H W 3"]
  ) -> Float[Array, "B E"]:
    """Features of normalised images, in their float type; errors as `layers`'."""
    heads = self.num_attention_heads
    grid = patches(params, "patch_embed.proj", pixels_BxHxWx3)
    hidden = grid.reshape(grid.shape[0], -1, grid.shape[-1])
    hidden += tensor(params, "pos_embed", 1, *hidden.shape[1:]).astype(hidden.dtype)
    for i in range(count(params, "blocks.")):
      name = f"blocks.{i}"
      rows = layer_norm(params, f"{name}.norm1", hidden, _EPSILON)
      query, key, value = jnp.split(dense(params, f"{name}.attn.qkv", rows), 3, axis=-1)
      hidden += dense(params, f"{name}.attn.proj", attention(heads, query, key, value))
      rows = layer_norm(params, f"{name}.norm2", hidden, _EPSILON)
      inner = gelu(dense(params, f"{name}.mlp.fc1", rows), self.tanh)
      hidden += dense(params, f"{name}.mlp.fc2", inner)
    hidden = layer_norm(params, "norm", hidden, _EPSILON)
    return latent_pooling(params, "attn_pool", heads, hidden, _EPSILON, self.tanh)


# timm's names of the towers.
MODELS = {
  "vit_base_patch32_siglip_256": SiglipConfig(256, 12, tanh=True),
  **{f"vit_base_patch16_siglip_{size}": SiglipConfig(size, 12) for size in (224, 256, 384, 512)},
  **{f"vit_large_patch16_siglip_{size}": SiglipConfig(size, 16) for size in (256, 384)},
  "vit_large_patch16_siglip_512": SiglipConfig(512, 16, tanh=True),
  **{f"vit_so400m_patch14_siglip_{size}": SiglipConfig(size, 16) for size in (224, 378, 384)},
  **{
    f"vit_so400m_patch16_siglip_{size}": SiglipConfig(size, 16, tanh=True)
    for size in (256, 384, 512)
  },
  **{
    f"vit_giantopt_patch16_siglip_{size}": SiglipConfig(size, 16, tanh=True) for size in (256, 384)
  },
}
