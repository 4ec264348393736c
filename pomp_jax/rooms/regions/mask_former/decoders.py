"""MaskFormer's pixel decoder and transformer decoder (Cheng et al., 2021,
arXiv:2107.06278).

The pixel decoder is a feature pyramid with group norm. The transformer decoder has
DETR's post-norm layers: learned queries attend to each other and to the backbone's last
map. Modules have the published names. Shapes: B images, h x w the pixels of a map, C
its channels, Q queries, J decoder layers, D width, T source tokens, n heads of e
channels.
"""

from collections.abc import Sequence
import functools
import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float
import numpy as np

from pomp_jax.rooms.regions.mask_former.backbone import NormConv
from pomp_jax.rooms.regions.mask_former.sizes import MaskFormerConfig

_TEMPERATURE = 10_000  # base of the frequencies of the sine positions, as in DETR
_LAYER_NORM_EPSILON = 1e-5  # torch's default
_lecun_uniform = nn.initializers.lecun_uniform()
# torch initialises query, key and value as one matrix [3D,D]. Its fan_avg is twice that
# of a matrix [D,D], hence the scale 0.5.
_stacked_xavier = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
_xavier = nn.initializers.xavier_uniform()
# torch's default for a linear layer.
_torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class PixelDecoder(nn.Module):
  """Feature pyramid over a backbone's maps; its finest level becomes the pixels'
  embeddings."""

  config: MaskFormerConfig
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, maps: Sequence[Float[Array, "B _ _ _"]]
  ) -> Float[Array, "B h w D"]:
    """Embeds the pixels of the finest map, level by level from the coarsest map.

    At each level the coarser result is doubled in height and width, added to a
    projection of the level's own map, and convolved (Lin et al., 2017,
    arXiv:1612.03144).

    Args:
      maps: maps of a backbone, from fine to coarse. Each has half the height and half
        the width of the one before.

    Returns:
      Embeddings [B,h,w,mask_width] of the pixels of the first map.
    """
    convolution = functools.partial(
      NormConv,
      self.config.width,
      groups=self.config.groups,
      dtype=self.dtype,
      kernel_init=_lecun_uniform,
    )
    # Levels are numbered from 1, the finest, as in detectron2.
    n_levels = len(maps)
    x = nn.relu(convolution(3, name=f"layer_{n_levels}")(maps[-1]))
    for level in range(n_levels - 1, 0, -1):
      # Enlarge by the nearest neighbour, as feature pyramids do.
      x = jnp.repeat(x, 2, axis=1)
      x = jnp.repeat(x, 2, axis=2)
      adapter = convolution(1, name=f"adapter_{level}")
      x = x + adapter(maps[level - 1])
      x = nn.relu(convolution(3, name=f"layer_{level}")(x))

    to_embeddings = nn.Conv(
      features=self.config.mask_width,
      kernel_size=(3, 3),
      padding=[(1, 1), (1, 1)],
      dtype=self.dtype,
      kernel_init=_lecun_uniform,
      name="mask_features",
    )
    return to_embeddings(x)


class TransformerDecoder(nn.Module):
  """Learned queries, which attend to each other and to a map with sine positions."""

  config: MaskFormerConfig
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, map_BxhxwxC: Float[Array, "B h w C"], train: bool = False
  ) -> Float[Array, "J B Q D"]:
    """Lets the queries attend to a map.

    Args:
      map_BxhxwxC: the backbone's last map.
      train: whether to apply dropout, from the random stream "dropout".

    Returns:
      The queries after each of the J layers, normalised.
    """
    n_images, height, width, _ = map_BxhxwxC.shape
    n_channels = self.config.width

    # The pixels of the map become the source tokens, row by row.
    project = nn.Conv(
      features=n_channels,
      kernel_size=(1, 1),
      dtype=self.dtype,
      kernel_init=_lecun_uniform,
      name="input_proj",
    )
    memory_BxhxwxD = project(map_BxhxwxC)
    memory_BxTxD = memory_BxhxwxD.reshape(n_images, height * width, n_channels)
    positions_TxD = jnp.asarray(sine_positions(height, width, n_channels), self.dtype)

    queries_QxD = self.param(
      "query_embed", nn.initializers.normal(1.0), (self.config.n_queries, n_channels)
    )
    queries_QxD = jnp.asarray(queries_QxD, self.dtype)

    layers = _Layers(self.config, self.dtype, name="layers")
    states = layers(memory_BxTxD, positions_TxD, queries_QxD, train)
    # One norm is shared by all layers, as in DETR.
    norm = nn.LayerNorm(epsilon=_LAYER_NORM_EPSILON, dtype=self.dtype, name="norm")
    return norm(jnp.stack(states))


class _Layers(nn.Module):
  """Decoder layers, named by their number; returns the queries after each layer."""

  config: MaskFormerConfig
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    memory_BxTxD: Float[Array, "B T D"],
    positions_TxD: Float[Array, "T D"],
    queries_QxD: Float[Array, "Q D"],
    train: bool,
  ) -> list[Float[Array, "B Q D"]]:
    # As in DETR, the learned queries are added as positions, and the states start at
    # zero.
    n_images = memory_BxTxD.shape[0]
    n_queries, width = queries_QxD.shape
    state_BxQxD = jnp.zeros((n_images, n_queries, width), self.dtype)
    states = []
    for j in range(self.config.n_layers):
      layer = _Layer(self.config, self.dtype, name=str(j))
      state_BxQxD = layer(state_BxQxD, memory_BxTxD, positions_TxD, queries_QxD, train)
      states.append(state_BxQxD)
    return states


class _Layer(nn.Module):
  """Self-attention, cross-attention and an MLP, each added to its input and
  normalised."""

  config: MaskFormerConfig
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B Q D"],
    memory_BxTxD: Float[Array, "B T D"],
    positions_TxD: Float[Array, "T D"],
    queries_QxD: Float[Array, "Q D"],
    train: bool,
  ) -> Float[Array, "B Q D"]:
    norm = functools.partial(
      nn.LayerNorm, epsilon=_LAYER_NORM_EPSILON, dtype=self.dtype
    )
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_xavier)
    attention = functools.partial(_Attention, self.config, self.dtype)

    def drop(values: Float[Array, "B Q _"]) -> Float[Array, "B Q _"]:
      return nn.Dropout(self.config.dropout, deterministic=not train)(values)

    placed = x + queries_QxD
    attended = attention(name="self_attn")(placed, placed, x, train)
    x = norm(name="norm1")(x + drop(attended))

    keys = memory_BxTxD + positions_TxD
    placed = x + queries_QxD
    attended = attention(name="multihead_attn")(placed, keys, memory_BxTxD, train)
    x = norm(name="norm2")(x + drop(attended))

    inner = drop(nn.relu(dense(self.config.mlp, name="linear1")(x)))
    outer = dense(x.shape[-1], name="linear2")(inner)
    return norm(name="norm3")(x + drop(outer))


class _Attention(nn.Module):
  """Multi-head attention with dropout of its weights."""

  config: MaskFormerConfig
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    queries_BxQxD: Float[Array, "B Q D"],
    keys_BxTxD: Float[Array, "B T D"],
    values_BxTxD: Float[Array, "B T D"],
    train: bool,
  ) -> Float[Array, "B Q D"]:
    width = queries_BxQxD.shape[-1]
    n_heads = self.config.n_heads

    def heads(rows: Float[Array, "B T D"], name: str) -> Float[Array, "B T n e"]:
      dense = nn.Dense(width, dtype=self.dtype, kernel_init=_stacked_xavier, name=name)
      n_images, n_tokens, _ = rows.shape
      return dense(rows).reshape(n_images, n_tokens, n_heads, width // n_heads)

    dropout_key = None
    if train and self.config.dropout:
      dropout_key = self.make_rng("dropout")
    attended_BxQxnxe = nn.dot_product_attention(
      heads(queries_BxQxD, "q_proj"),
      heads(keys_BxTxD, "k_proj"),
      heads(values_BxTxD, "v_proj"),
      broadcast_dropout=False,
      dropout_rng=dropout_key,
      dropout_rate=self.config.dropout,
      deterministic=not train,
    )
    out = nn.Dense(width, dtype=self.dtype, kernel_init=_xavier, name="out_proj")
    return out(attended_BxQxnxe.reshape(queries_BxQxD.shape))


class Mlp(nn.Module):
  """Dense layers named by their number, with ReLU between them."""

  widths: tuple[int, ...]
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... _"]:
    """Applies the layers to the last axis."""
    for i, width in enumerate(self.widths):
      dense = nn.Dense(width, dtype=self.dtype, kernel_init=_torch_uniform, name=str(i))
      x = dense(x if i == 0 else nn.relu(x))
    return x


def sine_positions(height: int, width: int, channels: int) -> Float[np.ndarray, "T D"]:
  """Sines and cosines of the positions of a map, row by row (DETR, Carion et al., 2020).

  Rows and columns are numbered from 1 and scaled to (0, 2 pi]. The first half of the
  channels encodes the row, the second half the column. Even channels are sines, odd
  channels cosines.

  Args:
    height: rows of the map.
    width: columns of the map.
    channels: channels of a position, D; even.
  """
  n_channels = channels // 2  # half are of the row, half of the column
  channel = np.arange(n_channels)
  # A sine and the cosine after it have the same frequency.
  frequencies = _TEMPERATURE ** (-2 * (channel // 2) / n_channels)

  def waves(n: int) -> Float[np.ndarray, "n channels"]:
    """Channels of n rows, or of n columns."""
    phases = (np.arange(n) + 1) / (n + 1e-6) * 2 * math.pi
    angles = phases[:, None] * frequencies
    return np.where(channel % 2 == 0, np.sin(angles), np.cos(angles))

  rows = waves(height)[:, None]
  columns = waves(width)[None]
  rows, columns = np.broadcast_arrays(rows, columns)
  both_hxwxD = np.concatenate([rows, columns], axis=-1)
  return both_hxwxD.reshape(height * width, channels).astype(np.float32)
