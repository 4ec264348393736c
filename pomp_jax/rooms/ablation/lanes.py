"""Cells that one compiled program trains together, each a lane of a vmap.

Lanes of a program differ only in arrays: the seed, and numbers of the loss and of the optimizer.
Cells that need another program, such as those of another K, are lanes of another program.

Shapes: S lanes, T steps, G rows of a batch that are this process's, E embedding, M context
vectors, D width.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import time
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int
import numpy as np

from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.loss import SCALES
from pomp_jax.prompt.mesh import DATA, replicate
from pomp_jax.rooms.ablation.grid import Cell
from pomp_jax.train import setup

# Numbers of a lane, and where they stand in a config.
_NUMBERS = {
  "lr": "optim.lr",
  "momentum": "optim.momentum",
  "weight_decay": "optim.weight_decay",
  "warmup_lr": "optim.warmup_lr",
}
LANE_FIELDS = ("seed", "correction", *_NUMBERS.values())


class Stream(NamedTuple):
  """What a run is trained on, step by step: the rows of each batch for this process's devices.

  Attributes:
    features: the image tower's output, in a file that is mapped into memory.
    labels: classes of the images.
  """

  features: Float[np.ndarray, "T G E"]
  labels: Int[np.ndarray, "T G"]


class Trained(NamedTuple):
  """Result of a lane.

  Attributes:
    context: the learned vectors.
    losses: loss of each step.
    seconds: the lane's share of its program's steps, without compilation.
    memory_mib: the lane's share of the program's temporaries on a device.
    curve: step -> context after it, every `ablate.curve_every` steps and after the last.
  """

  context: Float[np.ndarray, "... M D"]
  losses: Float[np.ndarray, " T"]
  seconds: float
  memory_mib: float
  curve: Mapping[int, Float[np.ndarray, "... M D"]] = types.MappingProxyType({})


def lane_groups(cells: Sequence[Cell]) -> list[list[Cell]]:
  """Groups the cells that can be lanes of one program."""
  groups: dict[str, list[Cell]] = {}
  for cell in cells:
    same = sorted((f, v) for f, v in cell.config.flat().items() if f not in LANE_FIELDS)
    kind = cell.config.correction if cell.config.correction not in SCALES else "scaled"
    groups.setdefault(fingerprint([repr(same), kind]), []).append(cell)
  return list(groups.values())


def lanes_at_a_time(n_cells: int, most: int) -> int:
  """The largest divisor of the cells up to `most`, so that one program serves them all."""
  return max(d for d in range(1, n_cells + 1) if n_cells % d == 0 and d <= max(most, 1))


def curve_steps(every: int, total: int) -> list[int]:
  """Steps whose prompts are validated: each multiple of `every`, and the last; none if 0."""
  return sorted({*range(every, total, every), total}) if every else []


def train_lanes(
  run: setup.Run, cells: Sequence[Cell], streams: Sequence[Stream], size: int
) -> Iterator[Trained]:
  """Trains the cells of a `lane_groups` group, in order, by one program that is compiled once.

  Args:
    run: any of the cells as a run.
    cells: the cells.
    streams: what each cell is trained on.
    size: lanes of the program, a divisor of the number of cells.
  """
  program = None
  for first in range(0, len(cells), size):
    some = slice(first, first + size)
    lanes = _Lanes(run, cells[some], streams[some])
    if program is None:
      program = lanes.compiled()
    yield from lanes.train(program)


class _Lanes:
  """Cells that are trained at the same time, on the devices."""

  def __init__(self, run: setup.Run, cells: Sequence[Cell], streams: Sequence[Stream]):
    self._run, self._cells, self._streams = run, cells, streams
    mesh = run.encoder.mesh
    # The first state depends on the seed alone. With a bank it takes a pass over all classes.
    of_seed = {cell.config.seed: cell.config for cell in cells}
    first = {
      seed: setup.first_state(dataclasses.replace(run, config=config))
      for seed, config in of_seed.items()
    }
    firsts = [first[cell.config.seed] for cell in cells]
    self._state = jax.tree.map(lambda *leaves: _stacked(leaves), *firsts)
    self._numbers = replicate(_numbers(cells), mesh)
    self._rows = NamedSharding(mesh, P(None, DATA))

  def compiled(self) -> jax.stages.Compiled:
    """Compiles the program of these lanes, which serves any others of the same number."""
    step = _step(self._run, self._cells[0].config.correction)
    return step.lower(*self._arguments(self._state, 0)).compile()

  def train(self, program: jax.stages.Compiled) -> list[Trained]:
    """Takes all steps."""
    start = time.monotonic()
    state, losses, curve = self._state, [], {}
    what, total = f"{len(self._cells)} cells", self._run.total_steps
    shown = curve_steps(self._run.config.ablate.curve_every, total)
    for step in steps_of(range(1, total + 1), what, "steps"):
      state, metrics = program(*self._arguments(state, step - 1))
      losses.append(metrics["loss"])
      if step in shown:
        curve[step] = np.asarray(state.params["context"])
    contexts = np.asarray(state.params["context"])
    n_lanes, memory = len(self._cells), program.memory_analysis()
    seconds = (time.monotonic() - start) / n_lanes
    mib = memory.temp_size_in_bytes / 2**20 / n_lanes if memory is not None else math.nan
    losses_TxS = np.asarray(jax.device_get(losses))
    return [
      Trained(
        contexts[i],
        losses_TxS[:, i],
        seconds,
        mib,
        {step: of_lanes[i] for step, of_lanes in curve.items()},
      )
      for i in range(n_lanes)
    ]

  def _arguments(self, state: Any, step: int) -> tuple[Any, ...]:
    arrays = {
      "image": np.stack([stream.features[step] for stream in self._streams]),
      "label": np.stack([stream.labels[step] for stream in self._streams]),
    }
    batch = {
      name: jax.make_array_from_process_local_data(self._rows, array)
      for name, array in arrays.items()
    }
    return state, self._numbers, self._run.frozen, batch


def _stacked(leaves: Sequence[jax.Array]) -> jax.Array:
  """Stacks arrays of equal shardings along a new first axis that no device splits."""
  sharding = NamedSharding(leaves[0].sharding.mesh, P(None, *leaves[0].sharding.spec))
  return jax.jit(lambda *leaves: jnp.stack(leaves), out_shardings=sharding)(*leaves)


def _numbers(cells: Sequence[Cell]) -> dict[str, np.ndarray]:
  configs = [cell.config.flat() for cell in cells]
  numbers = {
    name: np.array([config[field] for config in configs], np.float32)
    for name, field in _NUMBERS.items()
  }
  scales = [SCALES.get(config["correction"], math.nan) for config in configs]
  return numbers | {"correction": np.array(scales, np.float32)}


def _step(run: setup.Run, correction: str):
  """The step of all lanes; the state is donated."""
  # Batches bring features.
  config = run.config.replace({"data.features": "stored"})

  def step_of_cells(state, numbers, frozen, batch):
    optim = types.SimpleNamespace(
      **vars(run.config.optim) | {name: numbers[name] for name in _NUMBERS}
    )
    optimizer, _ = setup.optimizer_of(optim, run.steps_per_epoch, run.total_steps)
    own = dataclasses.replace(run, config=config, optimizer=optimizer)
    scale = numbers["correction"] if correction in SCALES else None
    return own.build_step(scale)(state, frozen, batch)

  return jax.jit(jax.vmap(step_of_cells, in_axes=(0, 0, None, 0)), donate_argnums=0)
