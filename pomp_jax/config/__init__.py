"""The config: a table of fields, registries, checks.

A file in `configs/` starts from `base(job)`, the fields that the job reads, and changes a few; the
command line overrides them (`--config.optim.lr=0.01`). `main` unpacks it into frozen `Settings`.
"""

from pomp_jax.config.checks import (
  SYNTHETIC_CLIP,
  base,
  has_folder,
  unpack,
  validate,
  with_argument,
  with_jobs,
)
from pomp_jax.config.declare import ConfigError, near_match
from pomp_jax.config.settings import HERE, Settings, defaults, fields_of, value_of_text
from pomp_jax.registry import JOBS, METHODS, READERS, SOURCES, WORLD, load_job
