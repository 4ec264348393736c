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
  """ConvNeXt's (LAION), as timm has the trunk: what the tensors do not tell."""

  prefix: ClassVar[str] = "visual."  # in front of the tensors' names in a checkpoint

  image_size: int = 0  # pixels, from open_clip's configuration
  epsilon: float = 1e-6  # of the layer norms

  def features(
    self, params: Tensors, pixels: Float[Array, "B H W 3"]
  ) -> Float[Array, "B E"]:
    """Features of normalised images, in their float type; errors as the layers'.

    The names of the trunk's tensors start with "trunk.", those of the projection with
    "head.".
    """
    hidden = patches(params, "trunk.stem.0", pixels)
    hidden = layer_norm(params, "trunk.stem.1", hidden, self.epsilon)
    for stage in range(count(params, "trunk.stages.")):
      name = f"trunk.stages.{stage}"
      if f"{name}.downsample.1.weight" in params:
        hidden = layer_norm(params, f"{name}.downsample.0", hidden, self.epsilon)
        hidden = patches(params, f"{name}.downsample.1", hidden)
      for i in range(count(params, f"{name}.blocks.")):
        hidden = _convnext_block(self, params, f"{name}.blocks.{i}", hidden)
    pooled = layer_norm(params, "trunk.head.norm", hidden.mean((1, 2)), self.epsilon)
    if "head.proj.weight" in params:
      return dense(params, "head.proj", pooled, bias=False)
    hidden = gelu(dense(params, "head.mlp.fc1", pooled))
    return dense(params, "head.mlp.fc2", hidden, bias=False)


def _convnext_block(
  config: ConvNextConfig, params: Tensors, name: str, hidden: Array
) -> Array:
  """A depthwise convolution and an MLP, whose result is scaled and added."""
  width = hidden.shape[-1]
  kernel = tensor(params, f"{name}.conv_dw.weight", width, 1, 7, 7)
  rows = convolution(hidden, kernel, (1, 1), "SAME", n_groups=width)
  rows += tensor(params, f"{name}.conv_dw.bias", width).astype(rows.dtype)
  rows = layer_norm(params, f"{name}.norm", rows, config.epsilon)
  inner = gelu(dense(params, f"{name}.mlp.fc1", rows))
  rows = dense(params, f"{name}.mlp.fc2", inner)
  scale = tensor(params, f"{name}.gamma", width).astype(rows.dtype)
  return hidden + rows * scale


# Towers by timm's name.
MODELS: dict[str, Any] = {
  "convnext_tiny": ConvNextConfig(),
  "convnext_small": ConvNextConfig(),
  "convnext_base": ConvNextConfig(),
  "convnext_large": ConvNextConfig(),
  "convnext_xlarge": ConvNextConfig(),
  "convnext_xxlarge": ConvNextConfig(epsilon=1e-5),
}
