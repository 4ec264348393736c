"""Seconds a step of each cell trained alone, measured in turn.

A lane's time is only its share of a program of several cells. So that kinds of cells can be
compared, each takes steps of the job pretrain from stored image features, in several rounds, one
kind after another: a machine that is slow for a while slows all of them.
"""

from collections.abc import Callable, Sequence
import dataclasses
import time
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.mesh import DATA
from pomp_jax.rooms.ablation.lanes import Stream
from pomp_jax.train import setup

_ROUNDS = 5
_STEPS = 3  # timed steps of a round, after one that is not


class StepTime(NamedTuple):
  """Cost of a kind of cell, trained alone.

  Attributes:
    step_seconds: median time of a step; image features are given.
    least_seconds: least time of a step.
    first_bank_seconds: median time of the first bank, features of all classes; 0 without a bank.
  """

  step_seconds: float
  least_seconds: float
  first_bank_seconds: float


def measure_step_times(runs: Sequence[setup.Run], streams: Sequence[Stream]) -> list[StepTime]:
  """Measures kinds of cells in turn.

  Args:
    runs: one run a kind.
    streams: what each run is trained on.
  """
  parts = zip(runs, streams, strict=True)
  steps = [_step_of(*one) for one in steps_of(list(parts), "compiling steps to time", "kinds")]
  times: list[list[float]] = [[] for _ in runs]
  banks: list[list[float]] = [[] for _ in runs]
  for _ in steps_of(range(_ROUNDS), "timing steps", "rounds"):
    for run, step, own, bank in zip(runs, steps, times, banks, strict=True):
      step()
      own += [_seconds(step) for _ in range(_STEPS)]
      if run.needs_bank:
        bank.append(_seconds(lambda run=run: setup.first_state(run)))
  return [
    StepTime(float(np.median(own)), min(own), float(np.median(bank)) if bank else 0.0)
    for own, bank in zip(times, banks, strict=True)
  ]


def _step_of(run: setup.Run, stream: Stream) -> Callable[[], None]:
  """The step of the pretrain job on the run's first batch, repeated; compiled."""
  # Batches bring features.
  run = dataclasses.replace(run, config=run.config.replace({"data.features": "stored"}))
  rows = NamedSharding(run.encoder.mesh, P(DATA))
  batch = {
    name: jax.make_array_from_process_local_data(rows, array)
    for name, array in (("image", stream.features[0]), ("label", stream.labels[0]))
  }
  state = setup.first_state(run)
  program = run.build_step().lower(state, run.frozen, batch).compile()

  def step():
    nonlocal state
    state, metrics = program(state, run.frozen, batch)
    jax.block_until_ready((state, metrics))

  return step


def _seconds(call: Callable[[], object]) -> float:
  start = time.monotonic()
  call()
  return time.monotonic() - start
