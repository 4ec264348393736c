"""Measures the text tower of a step, forward and backward to the context.

Weights are random, and rows have the stored token lengths of names that are drawn from
ImageNet-21K. One process runs our tower, HuggingFace Flax's tower over 77 tokens, and
the whole training step, in turn. Times are compared with this machine's rate at a large
matrix product, which every round measures again.
"""

from typing import Any

import numpy as np

from pomp_jax import hosts
from pomp_jax.clip.text import has_flax_clip
from pomp_jax.config.errors import require
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.benchmark.fields import Benchmark, BenchmarkConfig, numbers
from pomp_jax.rooms.benchmark.measurement import (
  Measurement,
  Step,
  measure_in_turn,
  plot,
)
from pomp_jax.rooms.benchmark.synthetic_clip import token_lengths
from pomp_jax.rooms.benchmark.towers import IMPLEMENTATIONS, MODELS, SEED, whole_step


def check(config: BenchmarkConfig, workdir: str) -> None:
  """Checks that K fits the number of classes, and that the model has whole steps.

  Raises:
    ConfigError: a K is too large, or a bidirectional model has whole steps.
  """
  ks = config.benchmark.k
  n_classes = token_lengths().size
  fits = all(k <= n_classes for (k,) in numbers(ks))
  require(fits, "benchmark.k", ks, f"at most the number of classes, {n_classes}")
  # The whole step packs names, and a bidirectional tower can't read packed names.
  if getattr(MODELS[config.benchmark.model], "bidirectional", False):
    for field in ("steps", "bank_steps"):
      sizes = getattr(config.benchmark, field)
      accepted = "'' for a bidirectional text tower"
      require(not sizes, f"benchmark.{field}", sizes, accepted)


def run(config: BenchmarkConfig, workdir: str) -> dict[str, Any]:
  """Measures, prints tables, writes `results.json` and `plots/text_tower.png`.

  Args:
    config: config of the job.
    workdir: folder of the run.

  Returns:
    Content of `results.json`.
  """
  fields = config.benchmark
  folder = RunFolder(workdir)
  folder.create()
  names = _available(fields.implementations.split("+"))
  rows: list[dict[str, Any]] = []
  results: dict[str, Any] = {
    "job": config.job,
    "settings": fields.flat(),
    "device": hosts.devices()[0].device_kind,
    "rows": rows,
  }

  def measure(steps: list[tuple[Measurement, Step]]) -> None:
    """Measures steps, if there are any, and writes the rows so far."""
    if steps:
      rows.extend(measure_in_turn(steps, fields.dtype, fields.repeats))
    folder.write_results(results)

  # Write after every K; the largest may run out of memory.
  sizes_of_steps = numbers(fields.steps) + numbers(fields.bank_steps)
  if sizes_of_steps:
    measure([whole_step(fields, *sizes) for sizes in sizes_of_steps])
  for (k,) in numbers(fields.k):
    measure(_steps(fields, names, k))
  plot(folder.plots / "text_tower.png", rows)
  return results


def _available(names: list[str]) -> list[str]:
  """Drops HuggingFace Flax's CLIP if transformers has none, and prints that."""
  if "reference" not in names or has_flax_clip():
    return names
  print("reference: skipped, needs transformers<5", flush=True)
  return [name for name in names if name != "reference"]


def _steps(
  fields: Benchmark, names: list[str], k: int
) -> list[tuple[Measurement, Step]]:
  """Builds the steps of the implementations that run K rows.

  Args:
    fields: fields of the job.
    names: implementations; all but `shared` run only if K is one of `baseline_k`.
    k: number of rows K, each the name of a class.
  """
  lengths_N = token_lengths()
  lengths_K = lengths_N
  if k < lengths_N.size:
    rng = np.random.default_rng(SEED)
    lengths_K = rng.choice(lengths_N, k, replace=False)

  is_baseline_k = (k,) in numbers(fields.baseline_k)
  steps = []
  for name in names:
    if name == "shared" or is_baseline_k:
      build = IMPLEMENTATIONS[name]
      steps.append(build(fields, lengths_K))
  return steps
