"""What configs name, opened: the CLIP, images, evaluation sets."""

from pomp_jax.inputs.named import (
  TEST_SPLITS,
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
  "TEST_SPLITS",
  "clip_config",
  "evaluation_splits",
  "has_validation",
  "n_training_classes",
  "open_clip",
  "open_encoder",
  "open_source",
  "open_training_source",
]
