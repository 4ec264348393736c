"""Checkpoints of a run: its arrays, bit for bit, and the JSON that describes them.

A checkpoint is a folder `STEP` that Orbax writes. Orbax notices no flipped bit, so its
JSON has the CRC-32 of every array and of itself. A run's state is small and the same on
every device, so process 0 alone reads and writes it, and no other host needs its
folder.
"""

from collections.abc import Callable, Iterator
import contextlib
import logging
import math
import os
import secrets
import socket
import time
from typing import Any, NamedTuple, SupportsFloat
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np

from pomp_jax import hosts
from pomp_jax.errors import RunError
from pomp_jax.files import checkpoint_folders
from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import Path, exists, is_dir, read_file, to_path
from pomp_jax.files.run_folder import DamagedFileError, parse_json, with_checksum

log = logging.getLogger(__name__)

PyTree = Any
_OWNER = "owner.txt"
_RETRY_SECONDS = 0.5


class CheckpointError(RunError, RuntimeError):
  """A checkpoint that can't be written, read, or put into the requested state."""


class Restored(NamedTuple):
  """Content of a checkpoint: steps done, pytree of arrays, JSON, and the metric."""

  step: int
  state: PyTree
  meta: dict[str, Any]
  metric: float | None = None


class Checkpoints(contextlib.AbstractContextManager):
  """Checkpoints of one run: the newest `keep`, and the best by the metric (of equals
  the newer).

  A damaged checkpoint is renamed to `damaged-STEP`, and the one before it is restored.
  The folder belongs to the process that opened it last (`owner.txt`); an earlier one
  that still runs saves nothing more. All processes make the same calls to `save` and
  `restore`, and process 0 alone touches the folder; `steps` is for it. With `retry` a
  failed save is only a warning, whose error is `failure`, and the next save tries
  again. A run that ends with a failed save raises it.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 3, *, retry: bool = False):
    """Opens the folder, and creates it when it is missing; CheckpointError if that
    fails."""
    self.folder: Path = to_path(folder)
    self._keep, self._retry = keep, retry
    # by step, of checkpoints that were read or written
    self._metrics: dict[int, float | None] = {}
    self.failure: CheckpointError | None = None
    self._owner = (
      f"{socket.gethostname()}, process {os.getpid()}, {secrets.token_hex(8)}"
    )
    if hosts.is_first():
      try:
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint_folders.remove_incomplete(self.folder)
        write_file(self.folder / _OWNER, self._owner)
      except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(
          f"{self.folder}: can't hold checkpoints ({reason})"
        ) from error

  def save(
    self,
    step: int,
    state: PyTree,
    meta: dict[str, Any],
    metric: SupportsFloat | None = None,
  ) -> bool:
    """Saves a checkpoint, and removes those that are no longer kept; whether it was
    written.

    It is not written if this step or a newer one is stored already. The state has
    arrays and numbers, the same on all processes, and keys as `jax.random.key_data`. A
    higher metric is better (NaN: none). CheckpointError if a save fails without
    `retry`, or a later start has the folder.
    """
    if not hosts.is_first():
      return False
    # where this can't be read, the save itself will fail
    with contextlib.suppress(OSError):
      owner = (self.folder / _OWNER).read_bytes().decode(errors="replace")
      if owner != self._owner:
        raise CheckpointError(
          f"{self.folder}: a later start of this run ({owner.rpartition(',')[0]}) has taken it"
          " over; this one ends, and saves nothing more"
        )
    try:
      if step <= max(self.steps(), default=-1):
        return False
      stored = float(metric) if metric is not None and math.isfinite(metric) else None
      arrays = jax.tree.map(np.asarray, state)
      facts = {"leaves": _describe(arrays), "checksums": _checksums(arrays)}
      facts = with_checksum(facts | {"meta": meta, "metric": stored})
      checkpoint_folders.save(self.folder / str(step), arrays, facts)
      self._metrics[step] = stored
      best = self._best_first()[:1]
      for old in self.steps()[: -self._keep]:
        if old not in best:
          with contextlib.suppress(OSError):  # left to the next save
            checkpoint_folders.discard(self.folder / str(old))
    except Exception as error:
      others: list[int] = []
      with contextlib.suppress(OSError):
        others = [other for other in self.steps() if other != step]
        checkpoint_folders.remove_incomplete(self.folder)
      last = (
        f"the last good one is of step {max(others)}" if others else "there is no other"
      )
      what = f"could not save the checkpoint of step {step} ({_as_line(error)}); {last}"
      failure = CheckpointError(f"{self.folder}: {what}")
      if not self._retry:
        raise failure from error
      log.warning("%s; the next save tries again", failure)
      self.failure = failure
      return False
    self.failure = None
    return True

  def steps(self) -> list[int]:
    """Steps of all checkpoints, ascending."""
    return checkpoint_folders.steps(self.folder)

  def restore(self, abstract_state: PyTree, *, best: bool = False) -> Restored | None:
    """Restores the newest intact checkpoint, or the one with the highest metric; None
    without one.

    Damaged ones are set aside, with a warning. `abstract_state` has the structure of
    the state. A `jax.ShapeDtypeStruct` or a `jax.Array` gives a JAX array with its
    sharding (the first local device without one), anything else a NumPy array.
    CheckpointError if all checkpoints are damaged, or a field has another shape or
    dtype.
    """
    expected = dict(_leaves(jax.tree.map(_as_target, abstract_state)))
    found = None
    if hosts.is_first():
      found = self._first_intact(self._best_first() if best else self.steps()[::-1])
    stored = dict(_leaves(found.state)) if found else {}
    if found:
      holds, expects = _describe(stored), _describe(expected)
      for field in sorted(holds.keys() | expects.keys()):
        before, now = holds.get(field, "nothing"), expects.get(field, "nothing")
        if before != now:
          what = f"{field} holds {before}, but this run expects {now}"
          raise CheckpointError(f"{self.folder / str(found.step)}: {what}")
    head = hosts.from_first(
      found and [found.step, found.meta, found.metric], "the checkpoint"
    )
    if head is None:
      return None
    blank = {
      name: np.zeros(target.shape, target.dtype) for name, target in expected.items()
    }
    arrays = [(stored or blank)[name] for name in expected]
    if jax.process_count() > 1:
      # As bytes: a sum with the zeros of the other processes would lose -0.0.
      contents = [np.frombuffer(array.tobytes(), np.uint8) for array in arrays]
      contents = multihost_utils.broadcast_one_to_all(contents)
      arrays = [
        np.frombuffer(np.asarray(content).tobytes(), array.dtype).reshape(array.shape)
        for array, content in zip(arrays, contents, strict=True)
      ]
    leaves = [
      jax.make_array_from_callback(target.shape, target.sharding, array.__getitem__)
      if isinstance(target, jax.ShapeDtypeStruct)
      else array
      for array, target in zip(arrays, expected.values(), strict=True)
    ]
    step, meta, metric = head
    state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
    return Restored(step, state, meta, metric)

  def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
    if kind is None and self.failure is not None:
      raise self.failure

  def _best_first(self) -> list[int]:
    """Steps by falling metric, of equal ones the later first; damaged ones are set
    aside."""
    steps = self.steps()
    for step in steps:
      if step not in self._metrics:
        try:
          self._metrics[step] = _twice(_read_facts, self.folder / str(step))["metric"]
        except DamagedFileError as damage:
          self._set_aside(step, damage)
    measured = [step for step in steps if self._metrics.get(step) is not None]
    return sorted(measured, key=lambda step: (self._metrics[step], step), reverse=True)

  def _first_intact(self, steps: list[int]) -> Restored | None:
    """The first checkpoint that can be read, its state by name; sets those before it
    aside."""
    damaged: dict[int, DamagedFileError] = {}
    for step in steps:
      try:
        found = _twice(_read, self.folder / str(step))
      except DamagedFileError as error:
        damaged[step] = error
        continue
      for other, damage in damaged.items():
        self._set_aside(other, damage)
        log.warning("going back to the checkpoint of step %d", step)
      return found
    if damaged:
      raise CheckpointError(
        f"{self.folder}: all checkpoints are damaged ({', '.join(map(str, damaged))}); remove this"
        " folder to start from the beginning"
      )
    return None

  def _set_aside(self, step: int, damage: DamagedFileError) -> None:
    log.warning("checkpoint of step %d is DAMAGED (%s)", step, damage)
    target = self.folder / f"damaged-{step}"
    if exists(target):
      target = target.with_name(f"{target.name}-{secrets.token_hex(4)}")
    try:
      checkpoint_folders.move(self.folder / str(step), target)
    except OSError as error:
      found = f"damaged, and can't be renamed ({error.strerror})"
      raise CheckpointError(f"{self.folder / str(step)}: {found}") from error
    log.warning("moved to %s", target)


def read_checkpoints(folder: str | os.PathLike) -> Iterator[Restored]:
  """Reads all checkpoints of another run, finished or running, in order of their steps.

  The states are nested dicts and lists of NumPy arrays. Nothing is written.
  CheckpointError if there is no such folder, or if a checkpoint is damaged.
  """
  if not is_dir(folder):
    raise CheckpointError(f"{folder}: no such folder of checkpoints")
  for step in checkpoint_folders.steps(to_path(folder)):
    yield read_checkpoint(to_path(folder) / str(step))


def read_checkpoint(path: str | os.PathLike) -> Restored:
  """Reads one of them, `checkpoints/STEP`; errors as `read_checkpoints`'s."""
  try:
    return _twice(_read, to_path(path))
  except DamagedFileError as error:
    raise CheckpointError(str(error)) from error


def _twice(read: Callable[[Path], Any], path: Path) -> Any:
  """Reads a file; a second time if it is damaged, as a network disk can fail."""
  try:
    return read(path)
  except DamagedFileError:
    time.sleep(_RETRY_SECONDS)
    return read(path)


def _read(path: Path) -> Restored:
  """Reads a checkpoint and compares its checksums."""
  facts = _read_facts(path)
  try:
    state = jax.tree.map(np.asarray, checkpoint_folders.restore(path))
  except Exception as error:  # a damaged file fails in any layer
    raise DamagedFileError(f"{path}: can't be read ({_as_line(error)})") from error
  found = _checksums(state)
  for name, checksum in facts["checksums"].items():
    if found.get(name) != checksum:
      raise DamagedFileError(f"{path}: {name} is not what was saved")
  return Restored(int(path.name), state, facts["meta"], facts["metric"])


def _read_facts(path: Path) -> dict[str, Any]:
  """Reads the JSON of a checkpoint."""
  file = path / "meta" / "metadata"
  facts = parse_json(read_file(file, DamagedFileError), file)
  if not isinstance(facts, dict) or facts.keys() != {
    "leaves",
    "checksums",
    "meta",
    "metric",
  }:
    raise DamagedFileError(f"{file}: not the fields leaves, checksums, meta and metric")
  return facts


def _as_target(leaf: Any) -> Any:
  if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
    return np.asarray(leaf)
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(
    hosts.devices(local=True)[0]
  )
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [
    (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
    for path, leaf in leaves
  ]


def _describe(tree: PyTree) -> dict[str, str]:
  """Dtypes and shapes by name: {"optimizer/0/trace": "float32 [4, 512]"}."""
  return {name: f"{leaf.dtype} {list(leaf.shape)}" for name, leaf in _leaves(tree)}


def _checksums(tree: PyTree) -> dict[str, str]:
  return {name: f"{zlib.crc32(leaf.tobytes()):08x}" for name, leaf in _leaves(tree)}


def _as_line(error: BaseException) -> str:
  """Formats an error as one line; keeps both ends of a long one."""
  text = " ".join(f"{type(error).__name__}: {error}".split())
  return text if len(text) <= 1000 else f"{text[:500]} ... {text[-500:]}"
