r"""What a step of the text tower costs: ours and HuggingFace Flax's.

  python -m pomp_jax.main --config=configs/benchmark_text_tower.py --workdir=runs/benchmark

A variant is a string behind a colon: `configs/benchmark_text_tower.py:model=vit_l_14`.
The figures of ViT-B/16 are in docs/reproduce/performance.md. Steps with the bank of
`sampling.name=posterior`, by `sampling.renew` (32 images, K = 128, 6 rounds on 2 shared
cores, 276 MiB of temporaries each):

  python -m pomp_jax.main --config=configs/benchmark_text_tower.py --workdir=runs/bank \
    --config.benchmark.k= --config.benchmark.steps=128/21841+128/1000000 \
    --config.benchmark.bank_steps=128/21841/64+128/21841/128+128/1000000/64 \
    --config.benchmark.repeats=6

    classes    renew              seconds  relative  bank
     21,841    -                     1.38      1     -
     21,841    64 (default)          1.62      1.17  43 MiB
     21,841    128                   1.86      1.34  43 MiB
  1,000,000    -                     1.39      1     -
  1,000,000    64                    3.48      2.50  1,953 MiB
"""

import dataclasses

from pomp_jax.config import base, with_argument
from pomp_jax.rooms.benchmark.fields import Benchmark

ROOMS = ("benchmark",)


def get_config(argument: str = ""):
  """The published sizes of ViT-B/16, the paper's M and K, and all classes."""
  config = base("benchmark")
  short = {
    field.name: f"benchmark.{field.name}" for field in dataclasses.fields(Benchmark)
  }
  return with_argument(config, argument, **short)
