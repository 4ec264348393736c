"""The base config: every field there is, its default, and what it takes.

A file in `configs/` starts from `base()` and changes a few fields; the command line overrides any
(`--config.optim.lr=0.01`). `validate` runs before anything heavy starts.
"""

from pomp_jax.config.accepted import (
  EXPORT_FORMATS,
  FEATURE_FORMATS,
  FEATURE_METHODS,
  FEATURES,
  JOBS,
  MADE_UP_CLIP,
  MADE_UP_DATA,
  METHODS,
  PIXEL_METHODS,
  STEP_METHODS,
  WORLD,
)
from pomp_jax.config.checks import LOCAL_PATH, is_url, validate
from pomp_jax.config.defaults import base
from pomp_jax.config.named_fields import ConfigError, check_field, fields, set_field, with_argument

__all__ = [
  "ConfigError",
  "EXPORT_FORMATS",
  "FEATURES",
  "FEATURE_FORMATS",
  "FEATURE_METHODS",
  "JOBS",
  "LOCAL_PATH",
  "MADE_UP_CLIP",
  "MADE_UP_DATA",
  "METHODS",
  "PIXEL_METHODS",
  "STEP_METHODS",
  "WORLD",
  "base",
  "check_field",
  "fields",
  "is_url",
  "set_field",
  "validate",
  "with_argument",
]
