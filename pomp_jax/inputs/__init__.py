"""Opens what a config names: the CLIP, images, evaluation sets."""

from pomp_jax.inputs.named import (
  clip_config,
  evaluation_splits,
  has_validation,
  n_training_classes,
  open_clip,
  open_encoder,
  open_source,
  open_training_source,
)

__all__ = [
  "clip_config",
  "evaluation_splits",
  "has_validation",
  "n_training_classes",
  "open_clip",
  "open_encoder",
  "open_source",
  "open_training_source",
]
