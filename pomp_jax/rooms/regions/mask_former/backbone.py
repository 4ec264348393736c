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

STRIDE = 32  # stride of the last map; the sides of an image are multiples of it
_EXPANSION = 4  # factor of a bottleneck's last convolution on the number of channels
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
    """Convolves and normalises a map.

    The map is padded with zeros, so that a stride of 1 keeps its height and width.

    Args:
      x: map of D channels.

    Returns:
      Map of `channels` channels, of height H / stride and width W / stride, rounded up.
    """
    # An odd kernel whose taps are `dilation` pixels apart reaches this far from its
    # centre.
    margin = self.dilation * (self.size // 2)
    convolution = nn.Conv(
      features=self.channels,
      kernel_size=(self.size, self.size),
      strides=self.stride,
      padding=[(margin, margin), (margin, margin)],
      kernel_dilation=self.dilation,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      name="conv",
    )
    x = convolution(x)
    if self.groups == 0:
      return FrozenBatchNorm(self.dtype, name="norm")(x)
    # The weights may come from torch, so take the epsilon and variance of its group
    # norm.
    norm = nn.GroupNorm(
      num_groups=self.groups,
      epsilon=1e-5,
      use_fast_variance=False,
      dtype=self.dtype,
      name="norm",
    )
    return norm(x)


class DeepLabResNet(nn.Module):
  """ResNet with DeepLab's stem and multi-grid; parameters stay float32 for any
  compute type."""

  sizes: ResNetSizes
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, pixels_BxHxWx3: Float[Array, "B H W 3"]
  ) -> list[Float[Array, "B _ _ _"]]:
    """Maps of the stages res2 to res5, at strides 4, 8, 16 and 32.

    Args:
      pixels_BxHxWx3: normalised pixels; H and W are multiples of 32.

    Raises:
      ValueError: the last stage has more or fewer blocks than dilations.
    """
    n_blocks_of_stages = self.sizes.layers
    n_stages = len(n_blocks_of_stages)
    n_last = n_blocks_of_stages[-1]
    n_dilations = len(self.sizes.dilations)
    if n_dilations != n_last:
      raise ValueError(f"dilations: got {n_dilations}, expected one a block, {n_last}")

    x = _Stem(self.sizes.stem, self.dtype, name="stem")(pixels_BxHxWx3)
    maps = []
    for i, n_blocks in enumerate(n_blocks_of_stages):
      # The stem has stride 4 already. Each later stage halves the map.
      stride = 1 if i == 0 else 2
      dilations = (1,) * n_blocks
      if i == n_stages - 1:
        dilations = self.sizes.dilations
      stage = _Stage(
        width=self.sizes.width * 2**i,
        stride=stride,
        dilations=dilations,
        dtype=self.dtype,
        name=f"res{i + 2}",
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
  """Bottlenecks named by their number, one for each dilation; only the first has the
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
  """Three convolutions, added to the input, or to a projection of it if the number of
  channels changes."""

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
    """Maps of the four stages, at strides 4, 8, 16 and 32.

    Args:
      pixels_BxHxWx3: normalised pixels; H and W are multiples of 32.
    """
    convolution = functools.partial(
      NormConv, size=3, groups=self.sizes.groups, dtype=self.dtype
    )
    stem = convolution(self.sizes.channels[0], stride=2, name="stem")
    x = nn.relu(stem(pixels_BxHxWx3))

    maps = []
    for stage, n_channels in enumerate(self.sizes.channels, start=2):
      halve = convolution(n_channels, stride=2, name=f"down{stage}")
      x = nn.relu(halve(x))
      residual = convolution(n_channels, name=f"res{stage}")
      x = nn.relu(x + residual(x))
      maps.append(x)
    return maps
