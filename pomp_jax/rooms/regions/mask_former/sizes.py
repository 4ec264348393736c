"""Sizes of MaskFormer, as published and for the world."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ResNetSizes:
  """Sizes of a `DeepLabResNet`; the defaults are R101c's."""

  layers: tuple[int, ...] = (3, 4, 23, 3)  # bottlenecks of each stage
  # channels of the first stage's 3x3 convolutions; later stages double them
  width: int = 64
  stem: int = 128  # channels of the stem's output
  # of the last stage's 3x3 convolutions, one a bottleneck
  dilations: tuple[int, ...] = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class SmallSizes:
  """Sizes of a `SmallBackbone`."""

  channels: tuple[int, ...] = (32, 48, 64, 80)  # of each of the four maps
  groups: int = 8  # of the norms


@dataclasses.dataclass(frozen=True)
class MaskFormerConfig:
  """Sizes of the network; the defaults are those of ZSSeg's R101c models."""

  embedding: int = 512  # E, of the CLIP whose class matrices will be used
  backbone: ResNetSizes | SmallSizes = ResNetSizes()
  width: int = 256  # channels of the feature pyramid, and D of the transformer decoder
  mask_width: int = 256  # channels of pixel and mask embeddings
  groups: int = 32  # of the feature pyramid's norms
  n_queries: int = 100  # Q
  n_layers: int = 6  # J
  n_heads: int = 8
  mlp: int = 2048  # hidden width of the decoder layers
  embedding_mlp: int = 1024  # hidden width of the embedding head
  dropout: float = 0.1  # of the decoder in training


# Sizes by name: R101c as published, and a network that is trained on the world in
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
