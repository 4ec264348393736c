"""Runs several trainings in one compiled program, each a lane of a vmap.

It also times steps of trainings that run alone. Lanes of a program differ only in
arrays: the seed, and numbers of the loss and of the optimizer. Cells that need another
program, such as cells with another K, are lanes of another program.

Shapes: S lanes, T steps, G rows of a batch on this process, E embedding, M context
vectors, D width.
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
from pomp_jax.prompt.learner import Frozen
from pomp_jax.prompt.loss import CORRECTIONS
from pomp_jax.prompt.mesh import DATA, replicate
from pomp_jax.prompt.step import Batch, TrainState, repeated
from pomp_jax.rooms.ablation.grid import Cell
from pomp_jax.train.resume import first_state
from pomp_jax.train.setup import optimizer_of
from pomp_jax.train.training import PromptRun

# Fields of `optim`, and of the whole config, in which lanes of a program may differ.
_NUMBERS = ("lr", "momentum", "weight_decay", "warmup_lr")
_LANE_FIELDS = ("seed", "correction", *(f"optim.{name}" for name in _NUMBERS))
_ROUNDS = 5  # rounds of timing
_STEPS = 3  # timed steps of a round, after one for warmup


class Stream(NamedTuple):
  """Batches that a run is trained on: the rows for this process's devices."""

  features: Float[np.ndarray, "T G E"]  # of the image tower, in a memory-mapped file
  labels: Int[np.ndarray, "T G"]


class Trained(NamedTuple):
  """Result of a lane, with its share of the program's time and memory."""

  context: Float[np.ndarray, "... M D"]
  losses: Float[np.ndarray, " T"]
  seconds: float  # of all steps, without compilation
  memory_mib: float  # of temporaries on a device
  # Context by step: every `ablate.curve_every` steps, and after the last.
  curve: Mapping[int, Float[np.ndarray, "... M D"]] = types.MappingProxyType({})


def program_groups(cells: Sequence[Cell]) -> list[list[Cell]]:
  """Groups the cells that can be lanes of one program."""
  groups: dict[str, list[Cell]] = {}
  for cell in cells:
    fixed = {
      field: value
      for field, value in cell.overrides.items()
      if field not in _LANE_FIELDS
    }
    # Corrections that scale the logits differ only in a number, so they share a
    # program. A correction with a loss of its own needs another program.
    correction = cell.overrides.get("correction")
    if correction is not None and CORRECTIONS[correction].loss is None:
      correction = "scaled"
    program = repr((sorted(fixed.items()), correction))
    groups.setdefault(program, []).append(cell)
  return list(groups.values())


def lanes_of_program(n_cells: int, most: int) -> int:
  """Returns the largest divisor of `n_cells` up to `most`.

  Each call of the program then trains equally many cells: it is compiled only once.
  """
  lanes = max(min(most, n_cells), 1)
  while n_cells % lanes:
    lanes -= 1
  return lanes


def curve_steps(every: int, total: int) -> list[int]:
  """Lists the steps after which prompts are validated.

  They are the multiples of `every`, and the last step. Returns [] if `every` is 0.
  """
  if not every:
    return []
  return sorted({*range(every, total, every), total})


def train_lanes(
  runs: Sequence[PromptRun], streams: Sequence[Stream], size: int, curve_every: int
) -> Iterator[Trained]:
  """Trains runs that can be lanes of one program, in order.

  The program is compiled once, and called for `size` runs at a time.

  Args:
    runs: runs of the cells of one group of `program_groups`.
    streams: batches of each run.
    size: number of lanes S; it divides the number of runs.
    curve_every: steps between the contexts of a curve; 0 for none.
  """
  program = None
  for first in range(0, len(runs), size):
    chunk = slice(first, first + size)
    lanes = _Lanes(runs[chunk], streams[chunk])
    state = _first_states(runs[chunk])
    if program is None:
      program = _step(runs[0]).lower(*lanes.arguments(state, 1)).compile()
    yield from _train_together(program, lanes, state, curve_every)


class _Lanes:
  """Runs that are trained together, and the arguments of their program at each step."""

  def __init__(self, runs: Sequence[PromptRun], streams: Sequence[Stream]):
    self.run = runs[0]  # the other runs differ from it only in numbers and batches
    self.size = len(runs)
    self._streams = streams
    self._numbers = _numbers(runs)
    self._rows = NamedSharding(self.run.encoder.mesh, P(None, DATA))

  def arguments(self, state: Any, step: int) -> tuple[Any, ...]:
    """Returns state, numbers, frozen arrays and the batch of a step (1, 2, ..)."""
    features = np.stack([stream.features[step - 1] for stream in self._streams])
    labels = np.stack([stream.labels[step - 1] for stream in self._streams])
    batch = _batch(self._rows, features, labels)
    return state, self._numbers, self.run.frozen, batch


def _train_together(
  program: jax.stages.Compiled, lanes: _Lanes, state: Any, curve_every: int
) -> Iterator[Trained]:
  """Trains the lanes from their first states to the last step; yields each result."""
  run = lanes.run
  size = lanes.size
  validated_steps = curve_steps(curve_every, run.total_steps)
  losses = []
  curve = {}
  start = time.monotonic()
  steps = range(1, run.total_steps + 1)
  for step in steps_of(steps, f"{size} cells together, step", "steps"):
    state, metrics = program(*lanes.arguments(state, step))
    losses.append(metrics["loss"])
    if step in validated_steps:
      curve[step] = np.asarray(run.result(state)["context"])
  contexts = np.asarray(run.result(state)["context"])
  del state  # free its bank, which is large, before the cells are evaluated
  seconds = (time.monotonic() - start) / size
  memory_mib = math.nan
  if memory := program.memory_analysis():
    memory_mib = memory.temp_size_in_bytes / 2**20 / size
  losses_SxT = np.asarray(jax.device_get(losses)).T
  for lane in range(size):
    yield Trained(
      context=contexts[lane],
      losses=losses_SxT[lane],
      seconds=seconds,
      memory_mib=memory_mib,
      curve={step: contexts_S[lane] for step, contexts_S in curve.items()},
    )


def _first_states(runs: Sequence[PromptRun]) -> Any:
  """The state of each run, stacked along a new first axis that no device splits."""
  # Runs with the same seed have equal first states. Compute each state once: with a
  # bank it takes a pass over all classes.
  state_of_seed = {}
  for seed, run in {run.seed: run for run in runs}.items():
    state_of_seed[seed] = first_state(run)

  def stacked(*leaves: jax.Array) -> jax.Array:
    sharding: Any = leaves[0].sharding
    of_lanes = NamedSharding(sharding.mesh, P(None, *sharding.spec))
    return jax.jit(lambda *leaves: jnp.stack(leaves), out_shardings=of_lanes)(*leaves)

  states = [state_of_seed[run.seed] for run in runs]
  return jax.tree.map(stacked, *states)


def _numbers(runs: Sequence[PromptRun]) -> dict[str, jax.Array]:
  """The numbers in which the runs differ, by name, a value for each lane."""
  numbers = {}
  for name in _NUMBERS:
    numbers[name] = np.array([run.config["optim"][name] for run in runs], np.float32)
  scales = [CORRECTIONS[run.contrast.correction].scale for run in runs]
  numbers["correction"] = np.array(scales, np.float32)
  return replicate(numbers, runs[0].encoder.mesh)


def _batch(
  rows: NamedSharding, features: np.ndarray, labels: np.ndarray
) -> dict[str, jax.Array]:
  """Places the rows of this process on its devices."""
  build = jax.make_array_from_process_local_data
  return {"image": build(rows, features), "label": build(rows, labels)}


def _step(run: PromptRun) -> jax.stages.Wrapped:
  """Compiles the pretrain job's step over all lanes.

  Lanes differ only in numbers, which are arguments of the step, and in their batches.
  The lanes' states are stacked along a new first axis and donated. Frozen arrays are
  shared.

  Args:
    run: training of any of the lanes.
  """
  run_on_features = _on_features(run)
  has_own_loss = CORRECTIONS[run.contrast.correction].loss is not None

  # JAX shows the name of this function while it compiles the program.
  def step_of_cells(
    state: TrainState,
    numbers: Mapping[str, jax.Array],
    frozen: Frozen,
    batch: Batch,
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """One lane's step; under `vmap` its numbers are scalars."""
    optimizer_numbers = {name: numbers[name] for name in _NUMBERS}
    optimizer, _ = optimizer_of(
      run.optim, run.steps_per_epoch, run.total_steps, optimizer_numbers
    )
    # A correction with a loss of its own is part of the program, not a number.
    correction_scale = None
    if not has_own_loss:
      correction_scale = numbers["correction"]
    lane = dataclasses.replace(run_on_features, optimizer=optimizer)
    step = lane.build_step(correction_scale)
    return step(state, frozen, batch)

  step_of_lanes = jax.vmap(step_of_cells, in_axes=(0, 0, None, 0))
  return jax.jit(step_of_lanes, donate_argnums=0)


def _on_features(run: PromptRun) -> PromptRun:
  """Copies a run to read image features, which the streams hold, instead of pixels."""
  return dataclasses.replace(run, data=dataclasses.replace(run.data, features="stored"))


def step_times(
  runs: Sequence[PromptRun], streams: Sequence[Stream]
) -> list[dict[str, float]]:
  """Times a step of each kind of cells, by one run a kind that is trained alone.

  The time of a lane is not enough: it is only a share of a program's time. Each kind
  takes steps of the job pretrain instead. The kinds take turns in several rounds, so
  that a machine that is slow for a while slows all kinds. Returns, for each run, the
  median and least seconds of a step, and the median seconds to compute the first bank
  (features of all classes); 0 without a bank.
  """
  parts = list(zip(runs, streams, strict=True))
  steps = []
  for run, stream in steps_of(parts, "compiling steps to time", "kinds"):
    steps.append(_step_of(run, stream))
  step_seconds: list[list[float]] = [[] for _ in runs]
  bank_seconds: list[list[float]] = [[] for _ in runs]
  for _ in steps_of(range(_ROUNDS), "timing steps", "rounds"):
    for kind, run in enumerate(runs):
      steps[kind]()
      step_seconds[kind] += timeit.repeat(steps[kind], number=1, repeat=_STEPS)
      if run.needs_bank:
        fill_bank = functools.partial(first_state, run)
        bank_seconds[kind].append(timeit.timeit(fill_bank, number=1))
  return [
    {
      "step_seconds": float(np.median(seconds)),
      "least_seconds": min(seconds),
      "first_bank_seconds": float(np.median(banks)) if banks else 0.0,
    }
    for seconds, banks in zip(step_seconds, bank_seconds, strict=True)
  ]


def _step_of(run: PromptRun, stream: Stream) -> Callable[[], None]:
  """Compiles the pretrain job's step; each call repeats it on the run's first batch."""
  run = _on_features(run)
  rows = NamedSharding(run.encoder.mesh, P(DATA))
  batch = _batch(rows, stream.features[0], stream.labels[0])
  state = first_state(run)
  program = run.build_step().lower(state, run.frozen, batch).compile()
  return repeated(program, state, run.frozen, batch)
