"""What the text tower of a step costs: forward and backward to the context, random weights.

Interleaved in one process, over rows drawn from ImageNet-21K's names (their stored token lengths):
ours, HuggingFace Flax and torch over 77 tokens, and the whole training step. The yardstick is this
machine's rate at a large matrix product, measured in every round.
"""

import dataclasses
import importlib.util
from typing import Any

import jax
import numpy as np

from pomp_jax.clip.text import has_flax_clip
from pomp_jax.config import Settings
from pomp_jax.data.class_lists import load_synsets
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.benchmark.fields import Benchmark
from pomp_jax.rooms.benchmark.measurement import (
  BenchmarkError,
  measure_in_turn,
  numbers,
  plot,
  table,
)
from pomp_jax.rooms.benchmark.towers import IMPLEMENTATIONS, MODELS, process_peak_mib
from pomp_jax.rooms.benchmark.whole_step import whole_step


def check(config: Settings, workdir: str) -> None:
  """Refuses an unknown model or implementation, a K that does not fit, and another job's folder."""
  settings = config.benchmark
  if settings.model not in MODELS:
    raise BenchmarkError(f"unknown model {settings.model!r}; accepted: {', '.join(MODELS)}")
  for name in settings.implementations.split("+"):
    if name not in IMPLEMENTATIONS:
      accepted = ", ".join(IMPLEMENTATIONS)
      raise BenchmarkError(f"unknown implementation {name!r}; accepted: {accepted}")
  n_classes = load_synsets().lengths.size
  numbers("baseline_k", settings.baseline_k)
  for (k,) in numbers("k", settings.k):
    if k > n_classes:
      raise BenchmarkError(f"k = {k} is not between 1 and the number of classes, {n_classes}")
  for field, size in (("steps", 2), ("bank_steps", 3)):
    text = getattr(settings, field)
    for k, n, *_ in numbers(field, text, size):
      if not 2 <= k <= n:
        raise BenchmarkError(f"{field} = {text}: K = {k} is not between 2 and N = {n}")
  RunFolder(workdir).check("benchmark")


def run(config: Settings, workdir: str) -> dict[str, Any]:
  """Measures, prints a table, writes `results.json` and `plots/text_tower.png`."""
  settings, folder = config.benchmark, RunFolder(workdir)
  folder.create()
  wanted = _available(settings.implementations.split("+"))
  rows: list[dict[str, Any]] = []
  results: dict[str, Any] = {"job": "benchmark", "settings": dataclasses.asdict(settings)}
  results |= {"device": jax.devices()[0].device_kind, "rows": rows}
  wanted_steps = numbers("steps", settings.steps, 2)
  wanted_steps += numbers("bank_steps", settings.bank_steps, 3)
  # Write after every K; the largest may run out of memory.
  if wanted_steps:
    rows += measure_in_turn([whole_step(settings, *one) for one in wanted_steps], settings)
    folder.write_results(results)
  for (k,) in numbers("k", settings.k):
    rows += _measure(settings, wanted, k)
    folder.write_results(results)
  print(table(rows), flush=True)
  plot(folder.plots / "text_tower.png", rows)
  return results


def _available(names: list[str]) -> list[str]:
  """Drops implementations whose library is not installed, and prints a line for each."""
  missing = {}
  if importlib.util.find_spec("torch") is None:
    missing["torch_77"] = "torch not installed"
  if not has_flax_clip():
    missing["reference"] = "needs transformers<5"
  for name in missing.keys() & set(names):
    print(f"{name}: skipped, {missing[name]}", flush=True)
  return [name for name in names if name not in missing]


def _measure(settings: Benchmark, names: list[str], k: int) -> list[dict[str, Any]]:
  """Measures the implementations at one K, in turn in every round; returns the rows."""
  lengths_N = load_synsets().lengths
  rng = np.random.default_rng(settings.seed)
  lengths_K = lengths_N if k == lengths_N.size else rng.choice(lengths_N, k, replace=False)
  steps = []
  for name in names:
    if name == "shared" or (k,) in numbers("baseline_k", settings.baseline_k):
      measurement, step = IMPLEMENTATIONS[name](settings, lengths_K)
      if measurement.process_peak_mib is None:
        measurement.process_peak_mib = process_peak_mib(name, settings, lengths_K)
      steps.append((measurement, step))
  return measure_in_turn(steps, settings) if steps else []
