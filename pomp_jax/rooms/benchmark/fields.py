"""Fields of the job benchmark."""

import dataclasses
import re

from pomp_jax.clip.precision import DTYPES
from pomp_jax.config.every_job import Config
from pomp_jax.config.group import Group
from pomp_jax.config.rows import (
  Check,
  at_least,
  one_of,
  pair,
  row,
)

_MODELS = (
  *("vit_b_16", "vit_l_14", "tiny", "eva02_b_16", "pe_core_b_16", "convnext_base_w"),
  *("metaclip2_h_14", "siglip_b_16", "siglip2_b_16", "clipa_l_14"),
)
_IMPLEMENTATIONS = ("shared", "reference")


def numbers(text: str) -> list[tuple[int, ...]]:
  """Reads tuples separated by "+", each K, K/N or K/N/renew."""
  return [tuple(map(int, part.split("/"))) for part in text.split("+") if part]


def _sizes(form: str) -> Check:
  """Makes the check of a text of items separated by "+".

  `form` is the form of an item: K, K/N or K/N/renew. An empty text passes. If the form
  has an N, K has to be at least 2 and at most N.
  """
  # "K/N" becomes the pattern of two positive integers with a slash between them.
  pattern = re.sub("[A-Za-z]+", "[1-9][0-9]*", form)

  def accepts(text: str) -> bool:
    parts = [part for part in text.split("+") if part]
    for part in parts:
      if re.fullmatch(pattern, part) is None:
        return False
    for sizes in numbers(text):
      if len(sizes) == 1:
        continue
      k, n_classes, *_ = sizes
      if not 2 <= k <= n_classes:
        return False
    return True

  limits = ", 2 <= K <= N" if "N" in form else ""
  return Check(accepts, f'positive integers {form}{limits}, separated by "+"')


_implementations = Check(
  lambda text: set(text.split("+")) <= set(_IMPLEMENTATIONS),
  f'names separated by "+" of {", ".join(_IMPLEMENTATIONS)}',
)


@dataclasses.dataclass(frozen=True)
class Profile(Group):
  """A profile of a training."""

  profile_steps: tuple[int, ...] = row(
    (), "first and last step of a profile; empty: none", pair
  )


@dataclasses.dataclass(frozen=True)
class Price(Group):
  """The price of a run, for its dry run."""

  dry_run_rate: float = row(
    0.0, "rate an hour of that machine, for a price", at_least(0)
  )


@dataclasses.dataclass(frozen=True)
class Benchmark(Group):
  """The job benchmark: cost of the text tower and of the whole step; see
  docs/reproduce/performance.md."""

  model: str = row("vit_b_16", "published architecture, or tiny", one_of(*_MODELS))
  m: int = row(16, "context vectors M", at_least(1))
  k: str = row("128+256+512+1000+2000+21841", "rows of a step", _sizes("K"))
  baseline_k: str = row(
    "128+1000", "rows that the implementations of 77 tokens run too", _sizes("K")
  )
  implementations: str = row("shared+reference", "implementations", _implementations)
  steps: str = row(
    "128/21841+128/1000000+1000/21841+21841/21841",
    "K/N of whole training steps; K = N: exact",
    _sizes("K/N"),
  )
  bank_steps: str = row(
    "128/21841/64+128/21841/128",
    "K/N/renew of whole steps of `posterior` with its bank",
    _sizes("K/N/renew"),
  )
  dtype: str = row(
    "float32", "compute type, also of the large matrix product", one_of(*DTYPES)
  )
  repeats: int = row(5, "rounds of each K", at_least(1))
  rows_at_a_time: int = row(
    128, "rows in memory of the implementations of 77 tokens", at_least(1)
  )


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(Config):
  """The job benchmark."""

  benchmark: Benchmark = Benchmark()
