"""Backbones of MaskFormer: DeepLab's ResNet (R101c), and a small network to train from
scratch.

R101c is ResNet-101 with a stem of three convolutions, strides in the 3x3 convolutions,
frozen batch norm, and dilations 1, 2, 4 in the last stage (arXiv:1706.05587). Modules
have detectron2's names. Shapes: B images of H x W pixels, D channels. A backbone
returns four maps at strides 4, 8, 16, 32.
"""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pomp_jax.clip.resnet import FrozenBatchNorm
from pomp_jax.rooms.regions.mask_former.sizes import ResNetSizes, SmallSizes

STRIDE = 32  # of the last map; sides of images are multiples of it
_EXPANSION = 4  # of a bottleneck's channels by its last convolution
_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class NormConv(nn.Module):
  """Convolution without bias, and group norm, or frozen batch norm if `groups` is 0."""

  channels: int
  size: int
  stride: int = 1
  dilation: int = 1
  groups: int = 0
  dtype: DTypeLike = jnp.float32
  kernel_init: Callable[..., Any] = _he_normal

  @nn.compact
  def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B _ _ _"]:
    """Pads with zeros, so that a stride of 1 keeps the sides."""
    margin = self.dilation * (self.size // 2)
    x = nn.Conv(
      self.channels,
      (self.size, self.size),
      self.stride,
      padding=[(margin, margin)] * 2,
      kernel_dilation=self.dilation,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      name="conv",
    )(x)
    if not self.groups:
      return FrozenBatchNorm(self.dtype, name="norm")(x)
    # As torch's.
    return nn.GroupNorm(
      self.groups, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name="norm"
    )(x)


class DeepLabResNet(nn.Module):
  """ResNet with DeepLab's stem and multi-grid; parameters stay float32 for any
  compute type."""

  sizes: ResNetSizes
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, pixels_BxHxWx3: Float[Array, "B H W 3"]
  ) -> list[Float[Array, "B _ _ _"]]:
    """Maps of the four stages; H and W are multiples of 32."""
    width, layers, dilations = self.sizes.width, self.sizes.layers, self.sizes.dilations
    if len(dilations) != layers[-1]:
      raise ValueError(
        f"dilations: got {len(dilations)}, expected one a block, {layers[-1]}"
      )
    x = _Stem(self.sizes.stem, self.dtype, name="stem")(pixels_BxHxWx3)
    maps = []
    for i, n_blocks in enumerate(layers):
      of_blocks = dilations if i == len(layers) - 1 else (1,) * n_blocks
      stage = _Stage(
        width * 2**i, 1 if i == 0 else 2, of_blocks, self.dtype, name=f"res{i + 2}"
      )
      x = stage(x)
      maps.append(x)
    return maps


class _Stem(nn.Module):
  """Three 3x3 convolutions and max pooling, stride 4."""

  channels: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B _ _ _"]:
    half = self.channels // 2
    for i, (channels, stride) in enumerate(
      [(half, 2), (half, 1), (self.channels, 1)], 1
    ):
      x = nn.relu(NormConv(channels, 3, stride, dtype=self.dtype, name=f"conv{i}")(x))
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class _Stage(nn.Module):
  """Bottlenecks named by their number, one for each dilation; the first may have a
  stride."""

  width: int
  stride: int
  dilations: tuple[int, ...]
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B _ _ _"]:
    for i, dilation in enumerate(self.dilations):
      stride = self.stride if i == 0 else 1
      x = _Bottleneck(self.width, stride, dilation, self.dtype, name=str(i))(x)
    return x


class _Bottleneck(nn.Module):
  """Three convolutions beside the identity, or beside a projection where channels
  change."""

  width: int
  stride: int
  dilation: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B _ _ _"]:
    channels = self.width * _EXPANSION
    out = nn.relu(NormConv(self.width, 1, dtype=self.dtype, name="conv1")(x))
    middle = NormConv(
      self.width, 3, self.stride, self.dilation, dtype=self.dtype, name="conv2"
    )
    out = NormConv(channels, 1, dtype=self.dtype, name="conv3")(nn.relu(middle(out)))
    if x.shape[-1] != channels:
      x = NormConv(channels, 1, self.stride, dtype=self.dtype, name="shortcut")(x)
    return nn.relu(out + x)


class SmallBackbone(nn.Module):
  """A convolution of stride 2, then four stages of two convolutions with group norm."""

  sizes: SmallSizes
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, pixels_BxHxWx3: Float[Array, "B H W 3"]
  ) -> list[Float[Array, "B _ _ _"]]:
    """Maps of the four stages; H and W are multiples of 32."""
    channels = self.sizes.channels
    convolution = functools.partial(
      NormConv, size=3, groups=self.sizes.groups, dtype=self.dtype
    )
    x = nn.relu(convolution(channels[0], stride=2, name="stem")(pixels_BxHxWx3))
    maps = []
    for i, n_channels in enumerate(channels):
      x = nn.relu(convolution(n_channels, stride=2, name=f"down{i + 2}")(x))
      x = nn.relu(x + convolution(n_channels, name=f"res{i + 2}")(x))
      maps.append(x)
    return maps
