"""Data sets that TFDS lacks, written as ArrayRecord with TFDS's metadata, without TensorFlow."""

from pomp_jax.data.prepare.inputs import BUILDERS, open_input
from pomp_jax.data.prepare.store import BuildError, Settings, build

__all__ = ["BUILDERS", "BuildError", "Settings", "build", "open_input"]
