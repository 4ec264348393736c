"""Data sets that TFDS lacks, written as ArrayRecord with TFDS's metadata, without TensorFlow."""

from pomp_jax.rooms.prepare.archives import DATASETS, open_input
from pomp_jax.rooms.prepare.build import PrepareError, Selection, build

__all__ = ["DATASETS", "PrepareError", "Selection", "build", "open_input"]
