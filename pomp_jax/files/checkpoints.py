"""Checkpoints of a run: its arrays, bit for bit, and the JSON that describes them.

A run's state is small and the same on every device, so process 0 alone reads and writes it: no
process waits for another's disk, and no checkpoint consists of parts. `checkpoint_folders` has the
folders of local disks and of buckets.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import logging
import math
import os
import secrets
import socket
import time
from typing import Any, NamedTuple, SupportsFloat
import zlib

import jax
import numpy as np

from pomp_jax import hosts
from pomp_jax.errors import RunError
from pomp_jax.files import checkpoint_folders
from pomp_jax.files.atomic import replacing
from pomp_jax.files.checksums import json_checksum
from pomp_jax.files.paths import Path, absolute

log = logging.getLogger(__name__)

PyTree = Any
_OWNER = "owner.txt"
_RETRY_SECONDS = 0.5


class CheckpointError(RunError, RuntimeError):
  """A checkpoint that can't be written, read, or put into the requested state."""


class DamagedCheckpoint(Exception):
  """One checkpoint that can't be read, or does not hold what was saved; one line."""


class Restored(NamedTuple):
  """Content of a checkpoint: steps done, pytree of arrays, and JSON."""

  step: int
  state: PyTree
  meta: dict[str, Any]


class Checkpoints(contextlib.AbstractContextManager):
  """Checkpoints of one run: the newest `keep`, and the best by the metric (of equals the newer).

  Arrays and JSON are stored with their CRC-32. A checkpoint that can't be read, or whose checksums
  differ, is renamed to `damaged-STEP`, and the one before it is restored. Remains of a killed
  process are removed. The folder belongs to the process that opened it last (`owner.txt`); an
  earlier one that still runs saves nothing more.

  With several processes all make the same calls to `save` and to restore, and only process 0
  touches the folder. A failure there ends all of them (`hosts.fail`). `steps` is for process 0.

  Attributes:
    folder: absolute path.
    failure: error of the last save if it failed and `retry` made it a warning; else None.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 3, *, retry: bool = False):
    """Opens the folder, and creates it when it is missing.

    Args:
      folder: folder of the checkpoints, one sub-folder per step.
      keep: number of newest checkpoints to keep, at least 1.
      retry: whether a failed save is only a warning, and the next save tries again. A run that ends
        with a failed save raises all the same.

    Raises:
      CheckpointError: the folder can't be created or written to.
    """
    self.folder: Path = absolute(folder)  # Orbax takes no others
    self._keep, self._retry = keep, retry
    self.failure: CheckpointError | None = None
    self._owner = f"{socket.gethostname()}, process {os.getpid()}, {secrets.token_hex(8)}"
    if hosts.is_first():
      try:
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint_folders.remove_incomplete(self.folder)
        with replacing(self.folder / _OWNER) as file:
          file.write(self._owner.encode())
      except OSError as error:
        reason = _as_line(error)
        raise CheckpointError(f"{self.folder}: can't hold checkpoints ({reason})") from error

  def save(
    self, step: int, state: PyTree, meta: dict[str, Any], metric: SupportsFloat | None = None
  ) -> bool:
    """Saves a checkpoint, and removes those that are no longer kept.

    Args:
      step: number of steps done.
      state: pytree of arrays and numbers, the same on all processes; keys as `jax.random.key_data`.
      meta: any JSON object, such as the config and the position in the data.
      metric: validation metric, higher is better; None or NaN when there is none.

    Returns:
      Whether a checkpoint was written. False on all processes but the first, when this step or a
      newer one is stored already, and with `retry` after a failure.

    Raises:
      CheckpointError: without `retry`, the save failed; the line names the last good checkpoint.
        With it too, a later start of the same run has taken the folder over.
    """
    if not hosts.is_first():
      return False
    self._check_owner()
    try:
      if step <= max(self.steps(), default=-1):
        return False
      self._write(step, state, meta, metric)
      self._drop_old()
    except Exception as error:
      with contextlib.suppress(OSError):
        checkpoint_folders.remove_incomplete(self.folder)
      failure = self._save_error(step, error)
      if not self._retry:
        raise failure from error
      log.warning("%s; the next save tries again", failure)
      self.failure = failure
      return False
    self.failure = None
    return True

  def steps(self) -> list[int]:
    """Steps of all complete checkpoints, ascending."""
    return checkpoint_folders.steps(self.folder)

  def restore_latest(self, abstract_state: PyTree) -> Restored | None:
    """Restores the newest intact checkpoint; damaged ones are set aside, with a warning.

    Args:
      abstract_state: structure of the state. A `jax.ShapeDtypeStruct` or a `jax.Array` gives a JAX
        array with its sharding (the first local device without one), anything else a NumPy array.

    Returns:
      Step, state and JSON exactly as saved; None when there is no checkpoint.

    Raises:
      CheckpointError: all checkpoints are damaged, or a field has another shape or dtype.
    """
    return self._restore(abstract_state, self._read_newest)

  def restore_best(self, abstract_state: PyTree) -> Restored | None:
    """As `restore_latest`, but the one with the highest metric; None when none has a metric."""
    return self._restore(abstract_state, self._read_best)

  def _restore(
    self, abstract_state: PyTree, read: Callable[[PyTree], Restored | None]
  ) -> Restored | None:
    targets, structure = jax.tree.flatten(jax.tree.map(_as_target, abstract_state))
    expected = jax.tree.unflatten(structure, targets)
    found = read(expected) if hosts.is_first() else None
    head = hosts.from_first(found and [found.step, found.meta], "the checkpoint")
    if head is None:
      return None
    if found:
      by_name = dict(_leaves(found.state))
      leaves = [by_name[name] for name, _ in _leaves(expected)]
    else:
      leaves = [np.zeros(target.shape, target.dtype) for target in targets]
    if jax.process_count() > 1:
      leaves = hosts.arrays_from_first(leaves)
    placed = [
      jax.make_array_from_callback(target.shape, target.sharding, lambda i, array=array: array[i])
      if isinstance(target, jax.ShapeDtypeStruct)
      else array
      for array, target in zip(leaves, targets, strict=True)
    ]
    return Restored(head[0], jax.tree.unflatten(structure, placed), head[1])

  def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
    if kind is None and self.failure is not None:
      raise self.failure

  def _check_owner(self) -> None:
    # Where the file can't be read, the save itself will fail.
    with contextlib.suppress(OSError):
      owner = (self.folder / _OWNER).read_bytes().decode(errors="replace")
      if owner != self._owner:
        raise CheckpointError(
          f"{self.folder}: a later start of this run ({owner.rpartition(',')[0]}) has taken it"
          " over; this one ends, and saves nothing more"
        )

  def _write(
    self, step: int, state: PyTree, meta: dict[str, Any], metric: SupportsFloat | None
  ) -> None:
    state = jax.tree.map(np.asarray, state)
    has_metric = metric is not None and math.isfinite(metric)
    stored = {
      "leaves": _describe(state),
      "checksums": _checksums(state),
      "meta": meta,
      "metric": float(metric) if has_metric else None,
    }
    stored["checksum"] = json_checksum(stored)
    checkpoint_folders.save(self.folder / str(step), state, stored)

  def _drop_old(self) -> None:
    """Removes all but the newest checkpoints and the best; renames first, for one half removed."""
    best_first = self._best_first()
    for step in self.steps()[: -self._keep]:
      if step not in best_first[:1]:
        with contextlib.suppress(OSError):  # left to the next save
          checkpoint_folders.discard(self.folder / str(step))

  def _best_first(self) -> list[int]:
    """Steps by falling metric, of equal ones the later first; damaged ones are set aside."""
    metrics = {}
    for step in self.steps():
      try:
        metrics[step] = _read_meta(self.folder / str(step)).get("metric")
      except DamagedCheckpoint as damage:
        log.warning("checkpoint of step %d is DAMAGED (%s)", step, damage)
        self._set_aside(step)
    measured = [step for step in metrics if metrics[step] is not None]
    return sorted(measured, key=lambda step: (metrics[step], step), reverse=True)

  def _read_best(self, targets: PyTree) -> Restored | None:
    for step in self._best_first():
      try:
        return _read(self.folder / str(step), targets)
      except DamagedCheckpoint as damage:
        log.warning("checkpoint of step %d is DAMAGED (%s)", step, damage)
        self._set_aside(step)
    return None

  def _read_newest(self, targets: PyTree) -> Restored | None:
    damaged = []
    for step in reversed(self.steps()):
      try:
        try:
          found = _read(self.folder / str(step), targets)
        except DamagedCheckpoint:  # a network disk can fail for a moment
          time.sleep(_RETRY_SECONDS)
          found = _read(self.folder / str(step), targets)
      except DamagedCheckpoint as damage:
        log.warning("checkpoint of step %d is DAMAGED (%s)", step, damage)
        damaged.append(step)
        continue
      for other in damaged:
        self._set_aside(other)
        log.warning("going back to the checkpoint of step %d", found.step)
      return found
    if damaged:
      raise CheckpointError(
        f"{self.folder}: all checkpoints are damaged ({', '.join(map(str, damaged))}); remove this"
        " folder to start from the beginning"
      )
    return None

  def _set_aside(self, step: int) -> None:
    target = self.folder / f"damaged-{step}"
    if target.exists():
      target = self.folder / f"damaged-{step}-{secrets.token_hex(4)}"
    try:
      checkpoint_folders.move(self.folder / str(step), target)
    except OSError as error:
      found = f"damaged, and can't be renamed ({error.strerror})"
      raise CheckpointError(f"{self.folder / str(step)}: {found}") from error
    log.warning("moved to %s", target)

  def _save_error(self, step: int, error: Exception) -> CheckpointError:
    others = []
    with contextlib.suppress(OSError):
      others = [other for other in self.steps() if other != step]
    last = f"the last good one is of step {max(others)}" if others else "there is no other"
    what = f"could not save the checkpoint of step {step}"
    return CheckpointError(f"{self.folder}: {what} ({_as_line(error)}); {last}")


def read_checkpoints(folder: str | os.PathLike) -> Iterator[Restored]:
  """Reads all complete checkpoints of another run, finished or running, in order of their steps.

  The states are trees of dicts and lists of NumPy arrays. Nothing is written.

  Raises:
    CheckpointError: no such folder, or a checkpoint that can't be read or is not what was saved.
  """
  path = absolute(folder)
  if not path.is_dir():
    raise CheckpointError(f"{folder}: no such folder of checkpoints")
  for step in checkpoint_folders.steps(path):
    yield read_checkpoint(path / str(step))


def read_checkpoint(folder: str | os.PathLike) -> Restored:
  """Reads one of them, `checkpoints/STEP`.

  Raises:
    CheckpointError: it can't be read, or is not what was saved.
  """
  path = absolute(folder)
  try:
    return _read(path)
  except DamagedCheckpoint as error:
    raise CheckpointError(f"{path}: can't be read ({error})") from error


def _read_meta(path: Path) -> dict[str, Any]:
  """Reads the JSON of a checkpoint; those of earlier versions have no checksums and no metric."""
  try:
    stored = json.loads((path / "meta" / "metadata").read_bytes())
    rest = {field: value for field, value in stored.items() if field != "checksum"}
  except Exception as error:
    raise DamagedCheckpoint(_as_line(error)) from error
  if "checksum" in stored and stored["checksum"] != json_checksum(rest):
    raise DamagedCheckpoint("its JSON is not what was saved")
  if not {"leaves", "meta"} <= rest.keys() <= {"leaves", "checksums", "meta", "metric"}:
    raise DamagedCheckpoint("its JSON does not have the fields leaves, checksums, meta and metric")
  return stored


def _read(path: Path, targets: PyTree = None) -> Restored:
  """Reads a checkpoint as dicts and lists of NumPy arrays; compares checksums, and `targets`."""
  stored = _read_meta(path)
  if targets is not None:
    expected = _describe(targets)
    for field in sorted(stored["leaves"].keys() | expected.keys()):
      found, wanted = stored["leaves"].get(field, "nothing"), expected.get(field, "nothing")
      if found != wanted:
        raise CheckpointError(f"{path}: {field} holds {found}, but this run expects {wanted}")
  try:
    state = jax.tree.map(np.asarray, checkpoint_folders.restore(path))
  except Exception as error:  # a damaged file fails in any layer
    raise DamagedCheckpoint(_as_line(error)) from error
  found = _checksums(state)
  for field in stored["leaves"]:
    if field not in found or stored.get("checksums", found).get(field) != found[field]:
      raise DamagedCheckpoint(f"{field} is not what was saved")
  return Restored(int(path.name), state, stored["meta"])


def _as_target(leaf: Any) -> Any:
  if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
    return np.asarray(leaf)
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _describe(tree: PyTree) -> dict[str, str]:
  """Dtypes and shapes by name: {"optimizer/0/trace": "float32 [4, 512]"}."""
  return {name: f"{leaf.dtype} {list(leaf.shape)}" for name, leaf in _leaves(tree)}


def _checksums(tree: PyTree) -> dict[str, str]:
  return {name: f"{zlib.crc32(leaf.tobytes()):08x}" for name, leaf in _leaves(tree)}


def _as_line(error: BaseException) -> str:
  """Formats an error as one line; keeps both ends of a long one."""
  text = " ".join(f"{type(error).__name__}: {error}".split())
  return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"
