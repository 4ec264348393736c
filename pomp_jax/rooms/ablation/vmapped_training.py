"""Trainings that one compiled program runs together, each a lane of a vmap.

Lanes of a program differ only in arrays: the seed, and numbers of the loss and of the
optimizer. Cells that need another program, such as those of another K, are lanes of
another program. `step_times` measures single trainings. Shapes: S lanes, T steps, G
rows of a batch that are this process's, E embedding, M context vectors, D width.
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
  """What a run is trained on, step by step: its rows on this process's devices."""

  # Output of the image tower, in a memory-mapped file.
  features: Float[np.ndarray, "T G E"]
  labels: Int[np.ndarray, "T G"]


class Trained(NamedTuple):
  """Result of a lane.

  Seconds and memory are its share of the program's, without compilation.
  """

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
    shared = sorted(
      (field, value)
      for field, value in cell.overrides.items()
      if field not in _LANE_FIELDS
    )
    # Corrections that only scale logits are numbers of one program.
    kind = cell.overrides.get("correction")
    if kind is not None and CORRECTIONS[kind].loss is None:
      kind = "scaled"
    groups.setdefault(repr((shared, kind)), []).append(cell)
  return list(groups.values())


def lanes_of_program(n_cells: int, most: int) -> int:
  """The largest divisor of the cells up to `most`, so that one program serves all."""
  for n_lanes in range(min(most, n_cells), 1, -1):
    if n_cells % n_lanes == 0:
      return n_lanes
  return 1


def curve_steps(every: int, total: int) -> list[int]:
  """Steps whose prompts are validated: each multiple of `every`, and the last.

  None of them if `every` is 0.
  """
  if not every:
    return []
  return sorted({*range(every, total, every), total})


def train_lanes(
  runs: Sequence[PromptRun], streams: Sequence[Stream], size: int, curve_every: int
) -> Iterator[Trained]:
  """Trains the runs of a group by one program that is compiled once.

  Args:
    runs: trainings of one of `program_groups`.
    streams: what each is trained on.
    size: lanes of the program, S; a divisor of the number of runs.
    curve_every: steps between two contexts of a lane's curve; 0 for no curve.

  Yields:
    The result of each run, in order.
  """
  program = None
  for first in range(0, len(runs), size):
    lanes = slice(first, first + size)
    group = _Lanes(runs[lanes], streams[lanes])
    if program is None:
      program = group.compile()
    yield from group.train(program, curve_steps(curve_every, runs[0].total_steps))


class _Lanes:
  """The runs that a program trains together."""

  def __init__(self, runs: Sequence[PromptRun], streams: Sequence[Stream]):
    self._run = runs[0]  # what all lanes share
    self._n_lanes = len(runs)
    self._streams = streams
    self._state = _first_states(runs)
    self._numbers = _numbers(runs)

  def compile(self) -> Any:
    """Compiles a step of all lanes."""
    return _step(self._run).lower(*self._arguments(1)).compile()

  def train(self, program: Any, shown_steps: Sequence[int]) -> Iterator[Trained]:
    """Runs all steps, and yields the result of each lane."""
    start = time.monotonic()
    losses = []
    curve = {}
    steps = range(1, self._run.total_steps + 1)
    for step in steps_of(steps, f"{self._n_lanes} cells together, step", "steps"):
      self._state, metrics = program(*self._arguments(step))
      losses.append(metrics["loss"])
      if step in shown_steps:
        curve[step] = self._contexts()
    contexts = self._contexts()
    del self._state  # banks are large, and the cells are evaluated next
    seconds = (time.monotonic() - start) / self._n_lanes
    memory = program.memory_analysis()
    memory_mib = math.nan
    if memory is not None:
      memory_mib = memory.temp_size_in_bytes / 2**20 / self._n_lanes
    losses_SxT = np.asarray(jax.device_get(losses)).T
    for lane in range(self._n_lanes):
      yield Trained(
        context=contexts[lane],
        losses=losses_SxT[lane],
        seconds=seconds,
        memory_mib=memory_mib,
        curve={step: of_lanes[lane] for step, of_lanes in curve.items()},
      )

  def _contexts(self) -> np.ndarray:
    return np.asarray(self._run.result(self._state)["context"])

  def _arguments(self, step: int) -> tuple:
    """Arguments of the program for a step, which counts from 1."""
    features = np.stack([stream.features[step - 1] for stream in self._streams])
    labels = np.stack([stream.labels[step - 1] for stream in self._streams])
    rows = NamedSharding(self._run.encoder.mesh, P(None, DATA))
    batch = _batch(rows, features, labels)
    return self._state, self._numbers, self._run.frozen, batch


def _first_states(runs: Sequence[PromptRun]) -> Any:
  """The state of each run, stacked along a new first axis that no device splits."""
  # A state depends on the seed alone. With a bank it takes a pass over all classes.
  run_of_seed = {run.seed: run for run in runs}
  state_of_seed = {seed: first_state(run) for seed, run in run_of_seed.items()}

  def stacked(*leaves: jax.Array) -> jax.Array:
    unstacked: Any = leaves[0].sharding
    sharding = NamedSharding(unstacked.mesh, P(None, *unstacked.spec))
    return jax.jit(lambda *leaves: jnp.stack(leaves), out_shardings=sharding)(*leaves)

  return jax.tree.map(stacked, *(state_of_seed[run.seed] for run in runs))


def _numbers(runs: Sequence[PromptRun]) -> dict[str, jax.Array]:
  """The numbers in which lanes differ, by name: [S] each."""
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
  """The step of all lanes: the run's own, vmapped over states and numbers."""
  on_features = _on_features(run)
  has_own_loss = CORRECTIONS[run.contrast.correction].loss is not None

  def step_of_lane(state, numbers, frozen, batch):
    traced = {name: numbers[name] for name in _NUMBERS}
    optimizer, _ = optimizer_of(run.optim, run.steps_per_epoch, run.total_steps, traced)
    lane = dataclasses.replace(on_features, optimizer=optimizer)
    step = lane.build_step(None if has_own_loss else numbers["correction"])
    return step(state, frozen, batch)

  return jax.jit(jax.vmap(step_of_lane, in_axes=(0, 0, None, 0)), donate_argnums=0)


def _on_features(run: PromptRun) -> PromptRun:
  return dataclasses.replace(run, data=dataclasses.replace(run.data, features="stored"))


def step_times(
  runs: Sequence[PromptRun], streams: Sequence[Stream]
) -> list[dict[str, float]]:
  """Measures kinds of cells, trained alone, by one run of each and its stream.

  A lane's time is only its share of a program. So that kinds can be compared, each
  takes steps of the job pretrain in several rounds, in turn: a machine that is slow for
  a while slows all of them.

  Returns:
    For each kind the median and the least of a step, and the median of the first bank,
    features of all classes; 0 without a bank. Seconds.
  """
  pairs = list(zip(runs, streams, strict=True))
  steps = [
    _step_of(run, stream)
    for run, stream in steps_of(pairs, "compiling steps to time", "kinds")
  ]
  step_seconds: list[list[float]] = [[] for _ in runs]
  bank_seconds: list[list[float]] = [[] for _ in runs]
  for _ in steps_of(range(_ROUNDS), "timing steps", "rounds"):
    for kind, (run, step) in enumerate(zip(runs, steps, strict=True)):
      step()
      step_seconds[kind] += timeit.repeat(step, number=1, repeat=_STEPS)
      if run.needs_bank:
        compute = functools.partial(first_state, run)
        bank_seconds[kind] += timeit.repeat(compute, number=1, repeat=1)
  return [
    {
      "step_seconds": float(np.median(of_step)),
      "least_seconds": min(of_step),
      "first_bank_seconds": float(np.median(of_bank)) if of_bank else 0.0,
    }
    for of_step, of_bank in zip(step_seconds, bank_seconds, strict=True)
  ]


def _step_of(run: PromptRun, stream: Stream) -> Callable[[], None]:
  """The step of the pretrain job on the run's first batch, repeated; compiled."""
  run = _on_features(run)
  rows = NamedSharding(run.encoder.mesh, P(DATA))
  batch = _batch(rows, stream.features[0], stream.labels[0])
  state = first_state(run)
  program = run.build_step().lower(state, run.frozen, batch).compile()
  return repeated(program, state, run.frozen, batch)
