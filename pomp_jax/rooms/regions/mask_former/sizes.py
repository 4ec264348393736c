"""Sizes of MaskFormer: the published network, and a small one for the world."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ResNetSizes:
  """Sizes of a `DeepLabResNet`; the defaults are R101c's."""

  layers: tuple[int, ...] = (3, 4, 23, 3)  # bottlenecks of each stage
  # channels of the first stage's 3x3 convolutions; later stages double them
  width: int = 64
  stem: int = 128  # channels of the stem's output
  # dilation of the 3x3 convolution in each bottleneck of the last stage
  dilations: tuple[int, ...] = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class SmallSizes:
  """Sizes of a `SmallBackbone`."""

  channels: tuple[int, ...] = (32, 48, 64, 80)  # channels of the four maps
  groups: int = 8  # groups of each group norm


@dataclasses.dataclass(frozen=True)
class MaskFormerConfig:
  """Sizes of the network; the defaults are those of ZSSeg's R101c models."""

  embedding: int = 512  # E, width of the class matrices that will be used
  backbone: ResNetSizes | SmallSizes = ResNetSizes()
  width: int = 256  # channels of the feature pyramid, and D of the transformer decoder
  mask_width: int = 256  # channels of pixel and mask embeddings
  groups: int = 32  # groups of the feature pyramid's group norms
  n_queries: int = 100  # Q
  n_layers: int = 6  # J
  n_heads: int = 8
  mlp: int = 2048  # hidden width of the decoder layers
  embedding_mlp: int = 1024  # hidden width of the embedding head
  dropout: float = 0.1  # dropout rate of the decoder in training


# Sizes by name: R101c as published, and a small network that trains on the world in
# minutes.
VARIANTS = {
  "r101c": MaskFormerConfig(),
  "small": MaskFormerConfig(
    backbone=SmallSizes((32, 64, 128, 192)),
    width=48,
    mask_width=32,
    groups=8,
    n_queries=12,
    n_layers=3,
    n_heads=4,
    mlp=256,
    embedding_mlp=256,
    dropout=0.0,
  ),
}
