"""CLIP's ResNet image towers, RN50 and RN101 among them (Radford et al. 2021, section
2.4).

A ResNet-D with three convolutions as stem (He et al. 2019), strides by average pooling
(antialiased, Zhang 2019), and attention pooling. Parameters have the names of OpenAI's
modules, with "layer1_0" for "layer1.0". Batch norm is frozen, so its statistics are
parameters. Shapes: B images of height H and width W, D channels, T positions and their
mean, E embedding.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_EPSILON = 1e-5
_EXPANSION = 4  # of a bottleneck's channels by its last convolution


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
  """The tower: normalised pixels to features; parameters stay float32 for any
  compute type."""

  config: ResNetConfig
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, pixels_BxHxWx3: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
    """Features in the compute type, not normalised; H = W = `config.image_size`."""
    width = self.config.width
    x = pixels_BxHxWx3
    for i, (channels, stride) in enumerate(
      [(width // 2, 2), (width // 2, 1), (width, 1)], 1
    ):
      x = nn.relu(_normed(x, channels, 3, stride, self.dtype, f"conv{i}", f"bn{i}"))
    x = _average(x, 2)
    for stage, n_blocks in enumerate(self.config.layers, 1):
      for i in range(n_blocks):
        stride = 2 if stage > 1 and i == 0 else 1
        block = _Bottleneck(
          width * 2 ** (stage - 1), stride, i > 0, self.dtype, name=f"layer{stage}_{i}"
        )
        x = block(x)
    return _AttentionPool(
      self.config.num_attention_heads,
      self.config.projection_dim,
      self.dtype,
      name="attnpool",
    )(x)


class FrozenBatchNorm(nn.Module):
  """Batch normalisation with fixed statistics, computed in float32, with a result of
  any type."""

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """(x - mean) / sqrt(var + 1e-5) * scale + bias, for each channel."""
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    shape = (x.shape[-1],)
    scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
    mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
    factor = scale * jax.lax.rsqrt(var + _EPSILON)
    return (x * factor + (bias - mean * factor)).astype(self.dtype)


class _Bottleneck(nn.Module):
  """Three convolutions beside the identity (`shortcut`) or a projection of the
  input."""

  channels: int
  stride: int
  shortcut: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Array) -> Array:
    out = nn.relu(_normed(x, self.channels, 1, 1, self.dtype, "conv1", "bn1"))
    out = nn.relu(_normed(out, self.channels, 3, 1, self.dtype, "conv2", "bn2"))
    n_out, out = self.channels * _EXPANSION, _average(out, self.stride)
    out = _normed(out, n_out, 1, 1, self.dtype, "conv3", "bn3")
    if not self.shortcut:
      x = _average(x, self.stride)
      x = _normed(x, n_out, 1, 1, self.dtype, "downsample_0", "downsample_1")
    return nn.relu(out + x)


class _AttentionPool(nn.Module):
  """Multi-head attention of the mean of all positions to itself and to them."""

  n_heads: int
  projection_dim: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x_BxHxWxD: Array) -> Array:
    batch, height, width, channels = x_BxHxWxD.shape
    positions_BxTxD = x_BxHxWxD.reshape(batch, height * width, channels)
    mean_Bx1xD = positions_BxTxD.mean(axis=1, keepdims=True)
    tokens_BxTxD = jnp.concatenate([mean_Bx1xD, positions_BxTxD], axis=1)
    position_TxD = self.param(
      "positional_embedding",
      nn.initializers.normal(channels**-0.5),
      tokens_BxTxD.shape[1:],
    )
    tokens_BxTxD = (tokens_BxTxD + position_TxD).astype(self.dtype)

    def heads(rows: Array, name: str) -> Array:
      projected = nn.Dense(channels, dtype=self.dtype, name=name)(rows)
      return projected.reshape(*rows.shape[:2], self.n_heads, channels // self.n_heads)

    pooled_Bx1xHxe = jax.nn.dot_product_attention(
      heads(tokens_BxTxD[:, :1], "q_proj"),
      heads(tokens_BxTxD, "k_proj"),
      heads(tokens_BxTxD, "v_proj"),
    )
    pooled_BxD = pooled_Bx1xHxe.reshape(batch, channels)
    return nn.Dense(self.projection_dim, dtype=self.dtype, name="c_proj")(pooled_BxD)


def _normed(
  x: Array,
  channels: int,
  size: int,
  stride: int,
  dtype: DTypeLike,
  name: str,
  norm: str,
) -> Array:
  """A convolution and its batch norm, by their names in the module that calls."""
  kernel, padding = (size, size), [(size // 2, size // 2)] * 2
  convolution = nn.Conv(
    channels, kernel, stride, padding=padding, use_bias=False, dtype=dtype, name=name
  )
  return FrozenBatchNorm(dtype, name=norm)(convolution(x))


def _average(x: Array, size: int) -> Array:
  """Means of squares without overlap; incomplete ones at the border are dropped."""
  if size == 1:
    return x
  # By their names, as jax2onnx's own function takes them.
  return nn.avg_pool(x, window_shape=(size, size), strides=(size, size))
