"""Image towers on EVA's transformer, as in timm.

- EVA-CLIP (Sun et al., 2023). EVA01-g: pre-norm, absolute positions. EVA02-B and L:
  rotary positions, SwiGLU, sub-LayerNorm in attention and MLP. EVA02-E: norms after
  attention and MLP instead of before.
- PE-Core (Bolya et al., 2025): rotary positions, a norm in front, attention pooling.
- SigLIP (Zhai et al., 2023) and SigLIP 2 (Tschannen et al., 2025): no class token,
  attention pooling, and no projection.

Shapes: as in `clip.layers`; E embedding.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.array_types import Array, Float
from pomp_jax.clip.attention import attention
from pomp_jax.clip.layers import Tensors, count, dense, layer_norm, patches, tensor


@dataclasses.dataclass(frozen=True)
class EvaConfig:
  """Settings of a tower that its tensors do not tell."""

  # start of the tensors' names in a checkpoint
  prefix: ClassVar[str] = "visual.trunk."

  image_size: int  # height and width of the images, pixels
  num_attention_heads: int
  rope_grid: int = 0  # side of the grid that rotary positions were trained on; 0: none
  rope_offset: float = 0.0  # coordinate of the first row and column of patches
  rope_x_first: bool = False  # whether the first half of a head turns with the column
  post_norm: bool = False  # whether norms come after attention and MLP, not before
  epsilon: float = 1e-6  # of the layer norms' variances
  pooling_heads: int = 0  # heads of the attention pooling; 0: the class token is read
  projects: bool = True  # whether a dense layer projects the pooled token
  tanh: bool = False  # whether GELU is the tanh approximation

  def features(
    self, params: Tensors, pixels: Float[Array, "B H W 3"]
  ) -> Float[Array, "B E"]:
    """Computes features of normalised images, in the images' float type.

    Raises:
      KeyError: a tensor is missing.
      ValueError: the shape of a tensor does not fit the others.
    """
    norm_first = "norm_pre.weight" in params
    grid = patches(params, "patch_embed.proj", pixels, bias=not norm_first)
    batch, side, _, width = grid.shape
    hidden = grid.reshape(batch, side * side, width)
    n_before = 0
    if "cls_token" in params:
      n_before = 1
      first = tensor(params, "cls_token", 1, 1, width).astype(hidden.dtype)
      first = jnp.broadcast_to(first, (batch, 1, width))
      hidden = jnp.concatenate([first, hidden], axis=1)
    positions = tensor(params, "pos_embed", 1, n_before + side * side, width)
    hidden += positions.astype(hidden.dtype)
    if norm_first:
      hidden = layer_norm(params, "norm_pre", hidden, self.epsilon)
    turn = _rotation(self, side, width // self.num_attention_heads, n_before)
    for i in range(count(params, "blocks.")):
      hidden = _block(self, params, f"blocks.{i}", turn, hidden)
    if self.pooling_heads:
      hidden = layer_norm(params, "norm", hidden, self.epsilon)
      pooled = _pooled(self, params, "attn_pool", hidden)
    else:
      pooled = layer_norm(params, "norm", hidden[:, 0], self.epsilon)
    if not self.projects:
      return pooled
    return dense(params, "head", pooled)


class SiglipConfig(EvaConfig):
  """A tower of SigLIP, with the fields of EVA's; only the class tells them apart."""


def _pe_core(size: int, heads: int, grid: int, offset: float = 1.0) -> EvaConfig:
  return EvaConfig(size, heads, grid, offset, True, epsilon=1e-5, pooling_heads=8)


def _siglip(size: int, heads: int, tanh: bool = False) -> SiglipConfig:
  return SiglipConfig(size, heads, pooling_heads=heads, projects=False, tanh=tanh)


def _block(
  config: EvaConfig, params: Tensors, name: str, turn: Any, hidden: Array
) -> Array:
  """Computes one layer: attention and an MLP, with a norm before or after each."""
  attend = functools.partial(_attention, turn=turn)
  for part, norm in ((attend, f"{name}.norm1"), (_mlp, f"{name}.norm2")):
    if config.post_norm:
      rows = part(config, params, name, hidden)
      hidden += layer_norm(params, norm, rows, config.epsilon)
    else:
      rows = layer_norm(params, norm, hidden, config.epsilon)
      hidden += part(config, params, name, rows)
  return hidden


def _pooled(config: EvaConfig, params: Tensors, name: str, hidden: Array) -> Array:
  """Pools all tokens by attention of a learned query, and an MLP (SigLIP, PE-Core)."""
  batch, _, width = hidden.shape
  latent = tensor(params, f"{name}.latent", 1, 1, width).astype(hidden.dtype)
  query = dense(params, f"{name}.q", jnp.broadcast_to(latent, (batch, 1, width)))
  key, value = jnp.split(dense(params, f"{name}.kv", hidden), 2, axis=-1)
  attended = attention(config.pooling_heads, query, key, value)
  pooled = dense(params, f"{name}.proj", attended)
  normed = layer_norm(params, f"{name}.norm", pooled, config.epsilon)
  return (pooled + _mlp(config, params, name, normed))[:, 0]


def _attention(
  config: EvaConfig, params: Tensors, name: str, rows: Array, turn: Any
) -> Array:
  """Self-attention; `turn` rotates queries and keys by position, unless it is None."""
  name = f"{name}.attn"
  # Keys have no bias in the first two layouts. It would shift all scores of a query
  # equally, which does not change the softmax.
  if f"{name}.q_proj.weight" in params:
    query = dense(params, f"{name}.q_proj", rows)
    key = dense(params, f"{name}.k_proj", rows, bias=False)
    value = dense(params, f"{name}.v_proj", rows)
  elif f"{name}.q_bias" in params:
    stacked = dense(params, f"{name}.qkv", rows, bias=False)
    query, key, value = jnp.split(stacked, 3, axis=-1)
    query += tensor(params, f"{name}.q_bias", query.shape[-1]).astype(query.dtype)
    value += tensor(params, f"{name}.v_bias", value.shape[-1]).astype(value.dtype)
  else:
    query, key, value = jnp.split(dense(params, f"{name}.qkv", rows), 3, axis=-1)
  if turn is not None:
    query = turn(query)
    key = turn(key)
  attended = attention(config.num_attention_heads, query, key, value)
  if f"{name}.norm.weight" in params:
    attended = layer_norm(params, f"{name}.norm", attended, config.epsilon)
  return dense(params, f"{name}.proj", attended)


def _mlp(config: EvaConfig, params: Tensors, name: str, rows: Array) -> Array:
  """An MLP, with a gate (SwiGLU) if the tensors have one, otherwise with GELU."""
  name = f"{name}.mlp"
  if f"{name}.fc1_g.weight" in params:
    gate = jax.nn.silu(dense(params, f"{name}.fc1_g", rows))
    inner = gate * dense(params, f"{name}.fc1_x", rows)
  else:
    inner = jax.nn.gelu(dense(params, f"{name}.fc1", rows), config.tanh)
  if f"{name}.norm.weight" in params:
    inner = layer_norm(params, f"{name}.norm", inner, config.epsilon)
  return dense(params, f"{name}.fc2", inner)


def _rotation(config: EvaConfig, side: int, head_width: int, n_before: int) -> Any:
  """Returns a function that rotates queries or keys [B,T,D], or None without a grid.

  The e numbers of a head are e/2 neighbouring pairs. Pair i of each half, i < e/4,
  turns by the angle coordinate / 10000^(i / (e/4)). The first half uses one coordinate
  of the patch, the second half the other. Tokens before the patches do not turn.

  Args:
    config: grid, offset and order of the coordinates.
    side: number of patches in a row, and in a column.
    head_width: e, width of a head.
    n_before: number of tokens before the patches.
  """
  if not config.rope_grid:
    return None
  scale = config.rope_grid / side
  places_G = (np.arange(side, dtype=np.float32) + config.rope_offset) * scale
  rows_GxG, columns_GxG = np.meshgrid(places_G, places_G, indexing="ij")
  coordinates = [rows_GxG, columns_GxG]
  if config.rope_x_first:
    coordinates.reverse()
  n_bands = head_width // 4
  bands = 10000.0 ** (-np.arange(n_bands, dtype=np.float32) / n_bands)
  angles = np.concatenate(
    [place.reshape(-1, 1) * bands for place in coordinates], axis=1
  )
  angles = np.pad(angles, ((n_before, 0), (0, 0)))
  sin = jnp.asarray(np.sin(angles))
  cos = jnp.asarray(np.cos(angles))

  def turn(rows: Array) -> Array:
    batch, n_tokens, width = rows.shape
    n_heads = config.num_attention_heads
    pairs = rows.reshape(batch, n_tokens, n_heads, head_width // 2, 2)
    x = pairs[..., 0]
    y = pairs[..., 1]
    sines = sin[:, None]
    cosines = cos[:, None]
    turned = jnp.stack([x * cosines - y * sines, y * cosines + x * sines], axis=-1)
    return turned.reshape(batch, n_tokens, width).astype(rows.dtype)

  return turn


# Towers by timm's names, as in open_clip_config.json.
MODELS: dict[str, Any] = {
  "eva_giant_patch14_224": EvaConfig(224, 16),
  "eva_giant_patch14_clip_224": EvaConfig(224, 16),
  "eva02_base_patch16_clip_224": EvaConfig(224, 12, 16),
  "eva02_large_patch14_clip_224": EvaConfig(224, 16, 16),
  "eva02_large_patch14_clip_336": EvaConfig(336, 16, 16),
  "eva02_enormous_patch14_clip_224": EvaConfig(224, 16, post_norm=True),
  "vit_pe_core_tiny_patch16_384": _pe_core(384, 3, 24),
  "vit_pe_core_small_patch16_384": _pe_core(384, 6, 24),
  "vit_pe_core_base_patch16_224": _pe_core(224, 12, 14),
  "vit_pe_core_large_patch14_336": _pe_core(336, 16, 24),
  "vit_pe_core_gigantic_patch14_448": _pe_core(448, 16, 32, 0.0),
  "vit_base_patch32_siglip_256": _siglip(256, 12, tanh=True),
  **{
    f"vit_base_patch16_siglip_{size}": _siglip(size, 12)
    for size in (224, 256, 384, 512)
  },
  **{
    f"vit_large_patch16_siglip_{size}": _siglip(size, 16, size == 512)
    for size in (256, 384, 512)
  },
  **{
    f"vit_so400m_patch14_siglip_{size}": _siglip(size, 16) for size in (224, 378, 384)
  },
  **{
    f"vit_so400m_patch16_siglip_{size}": _siglip(size, 16, True)
    for size in (256, 384, 512)
  },
  **{
    f"vit_giantopt_patch16_siglip_{size}": _siglip(size, 16, True)
    for size in (256, 384)
  },
}
