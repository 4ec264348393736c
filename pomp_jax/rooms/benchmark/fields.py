"""Fields of the job benchmark."""

import dataclasses

from pomp_jax.clip.precision import DTYPES
from pomp_jax.config.declare import MAX_SEED, at_least, between, one_of, row
from pomp_jax.prompt.bank import DTYPES as BANK_DTYPES


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """The job benchmark: cost of the text tower and of the whole step; see docs/performance.md."""

  model: str = row("vit_b_16", "published architecture, or tiny")
  m: int = row(16, "context vectors M", at_least(1))
  k: str = row("128+256+512+1000+2000+21841", 'rows of a step, separated by "+"')
  baseline_k: str = row("128+1000", "rows that the implementations of 77 tokens run too")
  implementations: str = row("shared+reference+torch_77", 'implementations, separated by "+"')
  steps: str = row(
    "128/21841+128/1000000+1000/21841+21841/21841", "K/N of whole training steps; K = N: exact"
  )
  bank_steps: str = row(
    "128/21841/64+128/21841/128", "K/N/renew of whole steps of `posterior` with its bank"
  )
  bank_dtype: str = row("float32", "type of the bank's rows", one_of(*BANK_DTYPES))
  dtype: str = row("float32", "compute type, also of the large matrix product", one_of(*DTYPES))
  repeats: int = row(5, "rounds of each K", at_least(1))
  seconds: int = row(300, "seconds after which no round starts", at_least(0))
  rows_at_a_time: int = row(128, "rows in memory of the implementations of 77 tokens", at_least(1))
  chunk: int = row(2048, "rows per chunk of shared, with remat of layers", at_least(1))
  seed: int = row(0, "random seed of weights and rows", between(0, MAX_SEED))
