"""Runs and cases of the fields of `dry_run` and `benchmark`, see
`tests/rooms/test_each_field.py`."""

from collections.abc import Callable
import pathlib
import types
from typing import Any
import unittest.mock

import jax
import jax.numpy as jnp

from pomp_jax.config import Config
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.benchmark import benchmark, costs, towers
from pomp_jax.rooms.benchmark import dry_run as dry_run_job
from pomp_jax.train import setup
from tests.support.field_cases import TRAINING
from tests.support.recorded_calls import Calls, Case, check_and_run
from tests.support.recorded_runs import open_training_images

TINY = {
  "job": "benchmark",
  "benchmark.model": "tiny",
  "benchmark.k": "12",
  "benchmark.steps": "",
  "benchmark.bank_steps": "",
  "benchmark.baseline_k": "",
}
BFLOAT16 = {
  "text_tower.dtype": "bfloat16",
  "measure_in_turn.dtype": "bfloat16",
}
REFERENCE_ROWS = [("reference", 11, 21841, None)]
STEP_ROWS = [
  ("train_step", 16, 300, None),
  ("train_step", 16, 200, 24),
]


def dry_run(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """A dry run whose parts take a second each."""
  second = costs.Cost(1.0, 10, 10)
  figures = {
    "test_images": second,
    "class_features": second,
    "read": second,
    "step_seconds": 1.0,
    "checkpoint_seconds": 1.0,
    "checkpoint_bytes": 100,
    "prompt_bytes": 7,
  }
  calls.open_encoder()
  calls.note(setup, "prepare")
  calls.note(costs, "measure", lambda run: figures)
  calls.patch.setattr(dry_run_job, "_lines", lambda *args: [])
  calls.seen |= dry_run_job.run(config, str(folder))


def dry_run_elsewhere(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """A dry run for a machine that is not here; nothing is compiled."""
  outcome = types.SimpleNamespace(there=None)

  def run(text, job_of):
    calls.seen["job"] = job_of({})
    return outcome

  calls.patch.setattr(dry_run_job.absent, "run", run)
  calls.note(dry_run_job.forecast, "figures_of", lambda *args: {})
  calls.patch.setattr(dry_run_job.forecast, "lines", lambda *args: [])
  dry_run_job.run(config, str(folder))


def benchmark_nothing(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job benchmark, which measures nothing."""
  seen = calls.seen
  compiled = unittest.mock.Mock(spec=jax.stages.Compiled)
  step = types.SimpleNamespace(compile=lambda: compiled)
  train_step = types.SimpleNamespace(lower=lambda *args: step)

  def measure_in_turn(steps, *args):
    return [name for name, _ in steps]

  def text_tower(kind, config, *args):
    return _tower(config.projection_dim)

  def random_inputs(config, m):
    return {}, jnp.zeros((m + 1, config.hidden_size))

  calls.note(benchmark, "measure_in_turn", measure_in_turn)
  calls.note(towers, "text_tower", text_tower)
  calls.note(towers, "random_inputs", random_inputs)
  calls.note(towers, "plan_memory")
  calls.note(towers, "make_train_step", lambda parts: train_step)
  calls.note(towers, "PromptContext")
  calls.skip(towers, "temporaries_mib")
  calls.skip(benchmark, "plot")
  calls.skip(RunFolder, "write_results")
  calls.patch.setattr(benchmark, "has_flax_clip", lambda: True)
  rows = check_and_run(config, folder)["rows"]
  seen["rows"] = [(row.implementation, row.k, row.n_classes, row.renew) for row in rows]
  seen["tokens"] = [row.tokens for row in rows]
  seen["rows_at_a_time"] = {row.implementation: row.rows_at_a_time for row in rows}


def _tower(width: int) -> Callable[..., Any]:
  """A text tower whose features depend on the prefix alone."""

  def tower(params, prefix, suffix, lengths):
    return jnp.ones((len(lengths), width)) * prefix.mean()

  return tower


CASES = {
  "synthetic images": Case(
    run=open_training_images,
    fields={"data.source": "synthetic", "data.names": "dtd"},
    rows={
      "data.names": ("eurosat", "names", load_class_list("eurosat").names),
      "data.images_per_class": (3, "images", 30),
    },
  ),
  "a dry run of a training": Case(
    run=dry_run,
    fields=TRAINING | {"dry_run": True},
    rows={
      # Ten images take a second, and all classes of one of the six validations.
      "eval.images": (12, "validation_seconds", 1.2 + 6),
      "checkpoint.every": (10, "validation_seconds", 1.2 + 6),
      "checkpoint.keep": (5, "disk_bytes", 7 * 100 + 7),
      "steps": (60, "training_seconds", 60),
    },
  ),
  "a dry run for another machine": Case(
    run=dry_run_elsewhere,
    fields=TRAINING | {"dry_run": "v5e:2x2"},
    rows={
      "dry_run_rate": (2.5, "figures_of.rate"),
      "clip.memory_gib": (3.0, "job.clip.memory_gib"),
    },
  ),
  "a dry run without its images": Case(
    run=dry_run,
    fields={"dry_run": True, "k": 3, "data.source": "tfds", "eval.images": 6},
    rows={
      "data.dataset": ("eurosat", "prepare.config.data.names"),
      "data.shots": (2, "prepare.config.data.images_per_class"),
    },
  ),
  "a benchmark": Case(
    run=benchmark_nothing,
    fields=TINY,
    rows={
      "benchmark.k": ("11+13", "rows", REFERENCE_ROWS),
      "benchmark.baseline_k": ("11", "rows", REFERENCE_ROWS),
      "benchmark.implementations": ("reference", "rows", REFERENCE_ROWS),
      "benchmark.rows_at_a_time": (3, "rows_at_a_time", {"reference": 3}),
      "benchmark.m": (5, "random_inputs.m"),
      "benchmark.repeats": (2, "measure_in_turn.repeats"),
    },
  ),
  "a benchmark of our tower": Case(
    run=benchmark_nothing,
    fields=TINY,
    rows={
      "benchmark.dtype": ("bfloat16", BFLOAT16),
      "benchmark.m": (5, "random_inputs.m"),
    },
  ),
  "whole steps": Case(
    run=benchmark_nothing,
    fields=TINY | {"benchmark.k": ""},
    rows={
      "benchmark.steps": ("16/300", "rows", STEP_ROWS),
      "benchmark.bank_steps": ("16/200/24", "rows", STEP_ROWS),
      "benchmark.dtype": ("bfloat16", BFLOAT16),
      "benchmark.m": (
        5,
        {
          "random_inputs.m": 5,
          "PromptContext.n_vectors": 5,
          "plan_memory.n_prefix": 6,
        },
      ),
      "benchmark.model": ("vit_l_14", "text_tower.config.hidden_size", 768),
    },
  ),
}
