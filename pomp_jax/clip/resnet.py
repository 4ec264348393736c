"""CLIP's ResNet image towers, RN50 and RN101 among them (Radford et al. 2021, section
2.4).

A ResNet-D with three convolutions as stem (He et al. 2019), average pooling instead of
strides (antialiased, Zhang 2019), and attention pooling. Parameters have the names of
OpenAI's modules, with "layer1_0" for "layer1.0". Batch norm is frozen, so its
statistics are parameters. Shapes: B images of height H and width W, D channels, T = 1 +
H W tokens (the mean and all positions), heads of width e, E embedding.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_EPSILON = 1e-5
_EXPANSION = 4  # a bottleneck's last convolution multiplies its channels by this


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """Sizes of the tower."""

  # Bottlenecks in each of the four stages: (3, 4, 6, 3) for RN50, (3, 4, 23, 3) for
  # RN101.
  layers: tuple[int, ...]
  width: int  # channels of the first stage's bottlenecks, 64 for both
  num_attention_heads: int  # heads of the attention pooling
  image_size: int  # height and width of the images, pixels
  projection_dim: int  # E


class ModifiedResNet(nn.Module):
  """The tower: normalised pixels to features. Parameters stay float32 for any compute
  type."""

  config: ResNetConfig
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, pixels_BxHxWx3: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
    """Computes features in the compute type, not normalised.

    Args:
      pixels_BxHxWx3: normalised images, H = W = `config.image_size`.
    """
    width = self.config.width
    # The stem: three convolutions and a pooling. The first convolution and the pooling
    # halve the resolution.
    x = pixels_BxHxWx3
    x = nn.relu(_normed(x, width // 2, self.dtype, "conv1", "bn1", size=3, stride=2))
    x = nn.relu(_normed(x, width // 2, self.dtype, "conv2", "bn2", size=3))
    x = nn.relu(_normed(x, width, self.dtype, "conv3", "bn3", size=3))
    x = _average(x, 2)

    # Each stage but the first halves the resolution, and has twice the channels.
    for stage, n_blocks in enumerate(self.config.layers, start=1):
      channels = width * 2 ** (stage - 1)
      for i in range(n_blocks):
        is_first = i == 0
        block = _Bottleneck(
          channels,
          stride=2 if is_first and stage > 1 else 1,
          shortcut=not is_first,
          dtype=self.dtype,
          name=f"layer{stage}_{i}",
        )
        x = block(x)
    pool = _AttentionPool(
      self.config.num_attention_heads,
      self.config.projection_dim,
      self.dtype,
      name="attnpool",
    )
    return pool(x)


class FrozenBatchNorm(nn.Module):
  """Batch normalisation with fixed statistics, computed in float32; `dtype` is the type
  of the result."""

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Computes (x - mean) / sqrt(var + 1e-5) * scale + bias for each channel."""
    ones = nn.initializers.ones
    zeros = nn.initializers.zeros
    shape = (x.shape[-1],)
    scale_D = self.param("scale", ones, shape)
    bias_D = self.param("bias", zeros, shape)
    mean_D = self.param("mean", zeros, shape)
    var_D = self.param("var", ones, shape)
    factor_D = scale_D * jax.lax.rsqrt(var_D + _EPSILON)
    return (x * factor_D + (bias_D - mean_D * factor_D)).astype(self.dtype)


class _Bottleneck(nn.Module):
  """Adds three convolutions to the input itself (`shortcut`) or to a projection of the
  input."""

  channels: int
  stride: int
  shortcut: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Array) -> Array:
    n_out = self.channels * _EXPANSION
    out = nn.relu(_normed(x, self.channels, self.dtype, "conv1", "bn1", size=1))
    out = nn.relu(_normed(out, self.channels, self.dtype, "conv2", "bn2", size=3))
    out = _average(out, self.stride)
    out = _normed(out, n_out, self.dtype, "conv3", "bn3", size=1)
    if not self.shortcut:
      x = _average(x, self.stride)
      x = _normed(x, n_out, self.dtype, "downsample_0", "downsample_1", size=1)
    return nn.relu(out + x)


class _AttentionPool(nn.Module):
  """Multi-head attention of one query, the mean of all positions, to the mean and to
  all positions."""

  n_heads: int
  projection_dim: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, grid_BxHxWxD: Array) -> Float[Array, "B E"]:
    batch, height, width, channels = grid_BxHxWxD.shape
    grid_BxPxD = grid_BxHxWxD.reshape(batch, height * width, channels)
    mean_Bx1xD = grid_BxPxD.mean(axis=1, keepdims=True)
    tokens_BxTxD = jnp.concatenate([mean_Bx1xD, grid_BxPxD], axis=1)
    n_tokens = 1 + height * width
    position_TxD = self.param(
      "positional_embedding",
      nn.initializers.normal(channels**-0.5),
      (n_tokens, channels),
    )
    tokens_BxTxD = (tokens_BxTxD + position_TxD).astype(self.dtype)

    # Only the mean is a query: what it attends to gives the feature.
    query_Bx1xHxe = self._heads(tokens_BxTxD[:, :1], "q_proj")
    key_BxTxHxe = self._heads(tokens_BxTxD, "k_proj")
    value_BxTxHxe = self._heads(tokens_BxTxD, "v_proj")
    pooled_Bx1xHxe = jax.nn.dot_product_attention(
      query_Bx1xHxe, key_BxTxHxe, value_BxTxHxe
    )
    pooled_BxD = pooled_Bx1xHxe.reshape(batch, channels)
    return nn.Dense(self.projection_dim, dtype=self.dtype, name="c_proj")(pooled_BxD)

  def _heads(self, tokens_BxTxD: Array, name: str) -> Array:
    """Projects tokens, and cuts them into heads [B,T,heads,e]."""
    batch, n_tokens, channels = tokens_BxTxD.shape
    projected = nn.Dense(channels, dtype=self.dtype, name=name)(tokens_BxTxD)
    head_width = channels // self.n_heads
    return projected.reshape(batch, n_tokens, self.n_heads, head_width)


def _normed(
  x: Array,
  channels: int,
  dtype: DTypeLike,
  name: str,
  norm: str,
  *,
  size: int,
  stride: int = 1,
) -> Array:
  """A convolution and its batch norm.

  Args:
    x: input [B,H,W,D].
    channels: channels of the result.
    dtype: compute type.
    name: name of the convolution in the calling module.
    norm: name of the batch norm in the calling module.
    size: side of the kernel; the input is padded by half of it.
    stride: steps between results, in both directions.
  """
  padding = (size // 2, size // 2)
  convolution = nn.Conv(
    channels,
    kernel_size=(size, size),
    strides=stride,
    padding=(padding, padding),
    use_bias=False,
    dtype=dtype,
    name=name,
  )
  return FrozenBatchNorm(dtype, name=norm)(convolution(x))


def _average(x: Array, size: int) -> Array:
  """Averages squares without overlap; incomplete squares at the border are dropped."""
  if size == 1:
    return x
  # Use keyword arguments: jax2onnx's replacement of `avg_pool` requires these names.
  return nn.avg_pool(x, window_shape=(size, size), strides=(size, size))
