"""ConvNeXt (Liu et al., 2022) as LAION's image tower; shapes as in `clip.layers`."""

import dataclasses
from typing import Any, ClassVar

from pomp_jax.array_types import Array, Float
from pomp_jax.clip.layers import (
  Tensors,
  convolution,
  count,
  dense,
  gelu,
  layer_norm,
  patches,
  tensor,
)


@dataclasses.dataclass(frozen=True)
class ConvNextConfig:
  """LAION's ConvNeXt on timm's trunk: settings that the tensors do not tell."""

  prefix: ClassVar[str] = "visual."  # start of the tensors' names in a checkpoint

  image_size: int = 0  # height and width, pixels, from open_clip's config
  epsilon: float = 1e-6  # of the layer norms' variances

  def features(
    self, params: Tensors, pixels: Float[Array, "B H W 3"]
  ) -> Float[Array, "B E"]:
    """Computes features of normalised images, in the images' float type.

    Names of the trunk's tensors start with "trunk.", and names of the projection's
    tensors with "head.". The projection is a dense layer, or an MLP (ConvNeXt-XXL).

    Args:
      params: tensors by name, as in `clip.layers`.
      pixels: normalised images.

    Raises:
      KeyError: a tensor is missing.
      ValueError: the shape of a tensor does not fit the others.
    """
    grid_BxGxGxD = patches(params, "trunk.stem.0", pixels)
    grid_BxGxGxD = layer_norm(params, "trunk.stem.1", grid_BxGxGxD, self.epsilon)
    for stage in range(count(params, "trunk.stages.")):
      grid_BxGxGxD = self._stage(params, f"trunk.stages.{stage}", grid_BxGxGxD)

    mean_BxD = grid_BxGxGxD.mean(axis=(1, 2))
    pooled_BxD = layer_norm(params, "trunk.head.norm", mean_BxD, self.epsilon)
    if "head.proj.weight" in params:
      return dense(params, "head.proj", pooled_BxD, bias=False)
    inner_BxF = gelu(dense(params, "head.mlp.fc1", pooled_BxD))
    return dense(params, "head.mlp.fc2", inner_BxF, bias=False)

  def _stage(self, params: Tensors, name: str, grid: Array) -> Array:
    """Computes one stage: halves the resolution (not in the first stage), then blocks.

    Args:
      params: tensors by name.
      name: name of the stage.
      grid: input [B,G,G,D].
    """
    if f"{name}.downsample.1.weight" in params:
      grid = layer_norm(params, f"{name}.downsample.0", grid, self.epsilon)
      grid = patches(params, f"{name}.downsample.1", grid)
    for i in range(count(params, f"{name}.blocks.")):
      grid = _convnext_block(self, params, f"{name}.blocks.{i}", grid)
    return grid


def _convnext_block(
  config: ConvNextConfig, params: Tensors, name: str, hidden: Array
) -> Array:
  """Adds to the input a depthwise convolution with a norm and an MLP, scaled."""
  width = hidden.shape[-1]
  kernel = tensor(params, f"{name}.conv_dw.weight", width, 1, 7, 7)
  rows = convolution(hidden, kernel, (1, 1), "SAME", n_groups=width)
  rows += tensor(params, f"{name}.conv_dw.bias", width).astype(rows.dtype)
  rows = layer_norm(params, f"{name}.norm", rows, config.epsilon)
  inner = gelu(dense(params, f"{name}.mlp.fc1", rows))
  rows = dense(params, f"{name}.mlp.fc2", inner)
  scale = tensor(params, f"{name}.gamma", width).astype(rows.dtype)
  return hidden + rows * scale


# Towers by timm's names.
MODELS: dict[str, Any] = {
  "convnext_tiny": ConvNextConfig(),
  "convnext_small": ConvNextConfig(),
  "convnext_base": ConvNextConfig(),
  "convnext_large": ConvNextConfig(),
  "convnext_xlarge": ConvNextConfig(),
  "convnext_xxlarge": ConvNextConfig(epsilon=1e-5),
}
