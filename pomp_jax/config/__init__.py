"""The config: a table of fields, registries, checks.

A file in `configs/` starts from `base(job)`, the fields that the job reads, and changes
a few; the command line overrides them (`--config.optim.lr=0.01`). The command line
unpacks it into a frozen `Config`.
"""

from pomp_jax.config.errors import ConfigError, near_match
from pomp_jax.config.every_job import HERE, Config, defaults, fields_of, value_of_text
from pomp_jax.config.fields import SYNTHETIC_CLIP
from pomp_jax.config.from_file import (
  base,
  unpack,
  validate,
  with_argument,
  with_jobs,
)
from pomp_jax.registry import JOBS, METHODS, READERS, SOURCES, WORLD, load_job
