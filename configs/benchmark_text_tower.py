"""What a step of the text tower costs: ours, HuggingFace Flax's and HuggingFace torch's.

  python -m pomp_jax.main --config=configs/benchmark_text_tower.py --workdir=runs/benchmark

A variant is a string behind a colon: `configs/benchmark_text_tower.py:model=vit_l_14`.
"""

import dataclasses

from pomp_jax.config import base, with_argument
from pomp_jax.config.fields import Benchmark


def get_config(argument: str = ""):
  """The published sizes of ViT-B/16, the paper's M and K, and all classes."""
  config = base()
  config.job = "benchmark"
  short = {field.name: f"benchmark.{field.name}" for field in dataclasses.fields(Benchmark)}
  return with_argument(config, argument, **short)
