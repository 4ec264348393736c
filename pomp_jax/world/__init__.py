"""A procedural world of named things, and a small CLIP trained on pictures of it.

The embedded default of the project stands in for ImageNet-21K where there is no data set and no
network. Names are compositions (`names`), and images are rendered from a seed (`render`). The CLIP
in `CLIP_PATH` was trained on web-like captions (`captions`, `train_clip`).
"""

from pomp_jax.world.names import class_names
from pomp_jax.world.render import IMAGE_SIZE
from pomp_jax.world.splits import (
  CLIP_PATH,
  WorldSource,
  evaluation_splits,
  has_validation,
  n_training_classes,
  open_source,
  source,
)

__all__ = [
  "CLIP_PATH",
  "IMAGE_SIZE",
  "WorldSource",
  "class_names",
  "evaluation_splits",
  "has_validation",
  "n_training_classes",
  "open_source",
  "source",
]
