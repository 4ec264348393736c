"""What a step of the text tower costs: ours, HuggingFace Flax's and HuggingFace torch's.

  python -m pomp_jax.main --config=configs/benchmark_text_tower.py --workdir=runs/benchmark

A variant is a string behind a colon: `configs/benchmark_text_tower.py:model=vit_l_14`. Where only
jax, flax and numpy are at hand, `python -m pomp_jax.jobs.benchmark --workdir=DIR` runs the same.
"""

from ml_collections import ConfigDict

from pomp_jax.config import base, with_argument
from pomp_jax.jobs import benchmark


def get_config(argument: str = ""):
  """The published sizes of ViT-B/16, the paper's M and K, and all classes."""
  config = base()
  with config.unlocked():
    config.job = "benchmark"
    config.benchmark = ConfigDict(benchmark.DEFAULTS)
  short = {name: f"benchmark.{name}" for name in benchmark.DEFAULTS}
  return with_argument(config, argument, **short)
