"""Trainings that one compiled program runs together, each a lane of a vmap; and single
ones, timed.

Lanes of a program differ only in arrays: the seed, and numbers of the loss and of the
optimizer. Cells that need another program, such as those of another K, are lanes of
another program. Shapes: S lanes, T steps, G rows of a batch that are this process's, E
embedding, M context vectors, D width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import time
import timeit
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int
import numpy as np

from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.loss import CORRECTIONS
from pomp_jax.prompt.mesh import DATA, replicate
from pomp_jax.prompt.step import repeated
from pomp_jax.rooms.ablation.grid import Cell
from pomp_jax.train.resume import first_state
from pomp_jax.train.setup import PromptRun, optimizer_of

# Fields of `optim`, and of a training, in which lanes of a program may differ.
_NUMBERS = ("lr", "momentum", "weight_decay", "warmup_lr")
_LANE_FIELDS = ("seed", "correction", *(f"optim.{name}" for name in _NUMBERS))
_ROUNDS = 5
_STEPS = 3  # timed steps of a round, after one that is not


class Stream(NamedTuple):
  """What a run is trained on, step by step: the rows of each batch for this
  process's devices."""

  # output of the image tower, in a memory-mapped file
  features: Float[np.ndarray, "T G E"]
  labels: Int[np.ndarray, "T G"]


class Trained(NamedTuple):
  """Result of a lane. Seconds and memory are its share of the program's, without
  compilation."""

  context: Float[np.ndarray, "... M D"]
  losses: Float[np.ndarray, " T"]
  seconds: float  # of all steps
  memory_mib: float  # of temporaries on a device
  # Step -> context after it, every `ablate.curve_every` steps and after the last.
  curve: Mapping[int, Float[np.ndarray, "... M D"]] = types.MappingProxyType({})


def program_groups(cells: Sequence[Cell]) -> list[list[Cell]]:
  """Groups the cells that can be lanes of one program."""
  groups: dict[str, list[Cell]] = {}
  for cell in cells:
    same = sorted((f, v) for f, v in cell.overrides.items() if f not in _LANE_FIELDS)
    correction = cell.overrides.get("correction")
    has_own_loss = correction is not None and CORRECTIONS[correction].loss is not None
    kind = correction if has_own_loss or correction is None else "scaled"
    groups.setdefault(repr((same, kind)), []).append(cell)
  return list(groups.values())


def lanes_of_program(n_cells: int, most: int) -> int:
  """The largest divisor of the cells up to `most`, so that one program serves them
  all."""
  return max(d for d in range(1, n_cells + 1) if n_cells % d == 0 and d <= max(most, 1))


def curve_steps(every: int, total: int) -> list[int]:
  """Steps whose prompts are validated: each multiple of `every`, and the last; none
  if 0."""
  return sorted({*range(every, total, every), total}) if every else []


def train_lanes(
  runs: Sequence[PromptRun], streams: Sequence[Stream], size: int, curve_every: int
) -> Iterator[Trained]:
  """Trains the runs of a `program_groups` group, in order, by one program that is
  compiled once.

  `size`, the lanes of the program, divides the number of runs.
  """
  run, program = runs[0], None
  total, rows = run.total_steps, NamedSharding(run.encoder.mesh, P(None, DATA))
  shown = curve_steps(curve_every, total)
  for first in range(0, len(runs), size):
    some = slice(first, first + size)
    state, numbers = _first_states(runs[some]), _numbers(runs[some])

    def arguments(state, step, numbers=numbers, own=streams[some]):
      features = np.stack([stream.features[step - 1] for stream in own])
      labels = np.stack([stream.labels[step - 1] for stream in own])
      return state, numbers, run.frozen, _batch(rows, features, labels)

    if program is None:
      program = _step(run).lower(*arguments(state, 1)).compile()
    start, losses, curve = time.monotonic(), [], {}
    for step in steps_of(range(1, total + 1), f"{size} cells together, step", "steps"):
      state, metrics = program(*arguments(state, step))
      losses.append(metrics["loss"])
      if step in shown:
        curve[step] = np.asarray(run.result(state)["context"])
    contexts = np.asarray(run.result(state)["context"])
    del state  # banks are large, and the cells are evaluated next
    seconds, memory = (time.monotonic() - start) / size, program.memory_analysis()
    mib = memory.temp_size_in_bytes / 2**20 / size if memory is not None else math.nan
    losses_SxT = np.asarray(jax.device_get(losses)).T
    for i in range(size):
      own = {step: of_lanes[i] for step, of_lanes in curve.items()}
      yield Trained(contexts[i], losses_SxT[i], seconds, mib, own)


def _first_states(runs: Sequence[PromptRun]) -> Any:
  """The state of each run, stacked along a new first axis that no device splits."""
  # It depends on the seed alone. With a bank it takes a pass over all classes.
  first = {
    seed: first_state(run) for seed, run in {run.seed: run for run in runs}.items()
  }

  def stacked(*leaves: jax.Array) -> jax.Array:
    own: Any = leaves[0].sharding
    sharding = NamedSharding(own.mesh, P(None, *own.spec))
    return jax.jit(lambda *leaves: jnp.stack(leaves), out_shardings=sharding)(*leaves)

  return jax.tree.map(stacked, *(first[run.seed] for run in runs))


def _numbers(runs: Sequence[PromptRun]) -> dict[str, jax.Array]:
  numbers = {name: [run.config["optim"][name] for run in runs] for name in _NUMBERS}
  numbers["correction"] = [CORRECTIONS[run.contrast.correction].scale for run in runs]
  arrays = {name: np.array(of_runs, np.float32) for name, of_runs in numbers.items()}
  return replicate(arrays, runs[0].encoder.mesh)


def _batch(
  rows: NamedSharding, features: np.ndarray, labels: np.ndarray
) -> dict[str, jax.Array]:
  build = jax.make_array_from_process_local_data
  return {"image": build(rows, features), "label": build(rows, labels)}


def _step(run: PromptRun):
  on_features = _on_features(run)

  def step_of_cells(state, numbers, frozen, batch):
    traced = {name: numbers[name] for name in _NUMBERS}
    optimizer, _ = optimizer_of(run.optim, run.steps_per_epoch, run.total_steps, traced)
    own = dataclasses.replace(on_features, optimizer=optimizer)
    has_own_loss = CORRECTIONS[run.contrast.correction].loss is not None
    return own.build_step(None if has_own_loss else numbers["correction"])(
      state, frozen, batch
    )

  return jax.jit(jax.vmap(step_of_cells, in_axes=(0, 0, None, 0)), donate_argnums=0)


def _on_features(run: PromptRun) -> PromptRun:
  return dataclasses.replace(run, data=dataclasses.replace(run.data, features="stored"))


def step_times(
  runs: Sequence[PromptRun], streams: Sequence[Stream]
) -> list[dict[str, float]]:
  """Measures kinds of cells, trained alone, by one run of each and what it is trained
  on.

  A lane's time is only its share of a program. So that kinds can be compared, each
  takes steps of the job pretrain in several rounds, in turn: a machine that is slow for
  a while slows all of them. Returns the median and the least of a step, and the median
  of the first bank, features of all classes; 0 without a bank.
  """
  parts = zip(runs, streams, strict=True)
  steps = [
    _step_of(*one) for one in steps_of(list(parts), "compiling steps to time", "kinds")
  ]
  times: list[list[float]] = [[] for _ in runs]
  banks: list[list[float]] = [[] for _ in runs]
  for _ in steps_of(range(_ROUNDS), "timing steps", "rounds"):
    for run, step, own, bank in zip(runs, steps, times, banks, strict=True):
      step()
      own += timeit.repeat(step, number=1, repeat=_STEPS)
      if run.needs_bank:
        bank += timeit.repeat(functools.partial(first_state, run), number=1, repeat=1)
  return [
    {
      "step_seconds": float(np.median(own)),
      "least_seconds": min(own),
      "first_bank_seconds": float(np.median(bank)) if bank else 0.0,
    }
    for own, bank in zip(times, banks, strict=True)
  ]


def _step_of(run: PromptRun, stream: Stream) -> Callable[[], None]:
  """The step of the pretrain job on the run's first batch, repeated; compiled."""
  run = _on_features(run)
  rows = NamedSharding(run.encoder.mesh, P(DATA))
  batch = _batch(rows, stream.features[0], stream.labels[0])
  state = first_state(run)
  program = run.build_step().lower(state, run.frozen, batch).compile()
  return repeated(program, state, run.frozen, batch)
