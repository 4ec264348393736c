"""Checkpoints of a run: its arrays, bit for bit, and the JSON that describes them.

A checkpoint is a folder `STEP` that Orbax writes. Orbax does not detect a flipped bit,
so the checkpoint's JSON has the CRC-32 of every array and of the JSON itself. A run's
state is small and the same on every device. Process 0 alone reads and writes the
checkpoints, so no other host needs their folder.
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
from pomp_jax.files import orbax_folders
from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import Path, exists, is_dir, read_file, to_path
from pomp_jax.files.run_folder import DamagedFileError, parse_json, with_checksum

log = logging.getLogger(__name__)

PyTree = Any
_OWNER = "owner.txt"
_RETRY_SECONDS = 0.5


class CheckpointError(RunError, RuntimeError):
  """A checkpoint can't be written or read, or does not fit the requested state."""


class Restored(NamedTuple):
  """Content of a checkpoint: steps done, pytree of arrays, JSON, and the metric."""

  step: int
  state: PyTree
  meta: dict[str, Any]
  metric: float | None = None


class Checkpoints(contextlib.AbstractContextManager):
  """Checkpoints of one run: the newest `keep`, and the one with the highest metric.

  If several checkpoints have the highest metric, the newest of them counts. A damaged
  checkpoint is renamed to `damaged-STEP`, and the next intact one is restored. The
  folder belongs to the process that opened it last (`owner.txt`). A process that opened
  the folder earlier and still runs can't save any more. All processes make the same
  calls to `save` and `restore`, but only process 0 touches the folder, so only process
  0 calls `steps`. With `retry` a failed save is a warning, its error is stored in
  `failure`, and the next save tries again. If the last save failed, the end of the
  `with` block raises its error.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 3, *, retry: bool = False):
    """Opens the folder, and creates it if it is missing.

    Args:
      folder: folder of the checkpoints, on a disk or in a bucket.
      keep: number of newest checkpoints that stay.
      retry: whether a failed save is only a warning.

    Raises:
      CheckpointError: the folder can't be created or written to.
    """
    self.folder: Path = to_path(folder)
    self.failure: CheckpointError | None = None
    self._keep = keep
    self._retry = retry
    # Step -> metric, for each checkpoint whose metric was read or written.
    self._metrics: dict[int, float | None] = {}
    # Name of this start in `owner.txt`. The random digits differ even if a container
    # restarts with the same host name and process number.
    self._owner = (
      f"{socket.gethostname()}, process {os.getpid()}, {secrets.token_hex(8)}"
    )
    if hosts.is_first():
      self._take_over()

  def _take_over(self) -> None:
    """Creates the folder, removes incomplete checkpoints, and writes `owner.txt`.

    Raises:
      CheckpointError: the folder can't be created or written to.
    """
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      orbax_folders.remove_incomplete(self.folder)
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
    """Saves a checkpoint, and removes those that are no longer kept.

    Args:
      step: number of steps done. The call writes nothing unless it exceeds all stored
        steps.
      state: pytree of arrays and numbers, the same on all processes. Random keys must
        be converted by `jax.random.key_data`.
      meta: JSON object that describes the state.
      metric: value of the checkpoint, higher is better; None or NaN for no value.

    Returns:
      Whether this process wrote the checkpoint.

    Raises:
      CheckpointError: the save failed and `retry` is off, or a later start has opened
        the folder.
    """
    if not hosts.is_first():
      return False
    self._check_owner()
    try:
      if step <= max(self.steps(), default=-1):
        return False
      self._write(step, state, meta, metric)
      self._discard_old()
    except Exception as error:
      failure = self._describe_failure(step, error)
      if not self._retry:
        raise failure from error
      log.warning("%s; the next save tries again", failure)
      self.failure = failure
      return False
    self.failure = None
    return True

  def _check_owner(self) -> None:
    """Raises CheckpointError if a later start of this run has opened the folder."""
    # Ignore an unreadable `owner.txt`: the save itself will then fail.
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
    """Writes a checkpoint, with checksums of its arrays and of its JSON."""
    value = None
    if metric is not None and math.isfinite(metric):
      value = float(metric)
    arrays = jax.tree.map(np.asarray, state)
    facts = {
      "leaves": _describe(arrays),
      "checksums": _checksums(arrays),
      "meta": meta,
      "metric": value,
    }
    orbax_folders.save(self.folder / str(step), arrays, with_checksum(facts))
    self._metrics[step] = value

  def _discard_old(self) -> None:
    """Removes all checkpoints but the newest ones and the best one."""
    best = self._best_first()[:1]
    for old in self.steps()[: -self._keep]:
      if old not in best:
        with contextlib.suppress(OSError):  # the next save tries again
          orbax_folders.discard(self.folder / str(old))

  def _describe_failure(self, step: int, error: Exception) -> CheckpointError:
    """Removes what a failed save has left, and names the last good checkpoint."""
    last = "there is no other"
    with contextlib.suppress(OSError):
      earlier = [stored for stored in self.steps() if stored != step]
      if earlier:
        last = f"the last good one is of step {max(earlier)}"
      orbax_folders.remove_incomplete(self.folder)
    what = f"could not save the checkpoint of step {step} ({_as_line(error)})"
    return CheckpointError(f"{self.folder}: {what}; {last}")

  def steps(self) -> list[int]:
    """Steps of all checkpoints, ascending."""
    return orbax_folders.steps(self.folder)

  def restore(self, abstract_state: PyTree, *, best: bool = False) -> Restored | None:
    """Restores the newest intact checkpoint, or the one with the highest metric.

    Damaged checkpoints are renamed to `damaged-STEP`, with a warning.

    Args:
      abstract_state: structure of the state. A leaf that is a `jax.ShapeDtypeStruct` or
        a `jax.Array` is restored as a JAX array with the leaf's sharding, or on the
        first local device if the leaf has no sharding. Any other leaf is restored as a
        NumPy array.
      best: whether to restore the checkpoint with the highest metric.

    Returns:
      The checkpoint; None if there is none.

    Raises:
      CheckpointError: all checkpoints are damaged, or a field's shape or dtype is not
        that of `abstract_state`.
    """
    targets = dict(_leaves(jax.tree.map(_as_target, abstract_state)))
    checkpoint = None
    if hosts.is_first():
      if best:
        steps = self._best_first()
      else:
        steps = self.steps()[::-1]
      checkpoint = self._first_intact(steps)

    stored = {}
    head = None
    if checkpoint:
      stored = dict(_leaves(checkpoint.state))
      _check_fields(self.folder / str(checkpoint.step), stored, targets)
      head = [checkpoint.step, checkpoint.meta, checkpoint.metric]
    head = hosts.from_first(head, "the checkpoint")
    if head is None:
      return None

    if not stored:
      # The other processes pass zeros, and receive the arrays of the first one.
      for name, target in targets.items():
        stored[name] = np.zeros(target.shape, target.dtype)
    arrays = _from_first([stored[name] for name in targets])
    leaves: list[jax.Array | np.ndarray] = []
    for array, target in zip(arrays, targets.values(), strict=True):
      if not isinstance(target, jax.ShapeDtypeStruct):
        leaves.append(array)
        continue
      leaf = jax.make_array_from_callback(
        target.shape, target.sharding, array.__getitem__
      )
      leaves.append(leaf)
    step, meta, metric = head
    state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
    return Restored(step, state, meta, metric)

  def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
    if kind is None and self.failure is not None:
      raise self.failure

  def _best_first(self) -> list[int]:
    """Lists steps with a metric by falling metric; of equal metrics the later step first.

    Damaged checkpoints are set aside.
    """
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
    """Returns the first intact checkpoint, and sets the damaged ones before it aside.

    Returns None if there are no steps. Raises CheckpointError if all are damaged.
    """
    damaged: dict[int, DamagedFileError] = {}
    for step in steps:
      try:
        checkpoint = _twice(_read, self.folder / str(step))
      except DamagedFileError as error:
        damaged[step] = error
        continue
      for damaged_step, damage in damaged.items():
        self._set_aside(damaged_step, damage)
        log.warning("going back to the checkpoint of step %d", step)
      return checkpoint
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
      orbax_folders.move(self.folder / str(step), target)
    except OSError as error:
      raise CheckpointError(
        f"{self.folder / str(step)}: damaged, and can't be renamed ({error.strerror})"
      ) from error
    log.warning("moved to %s", target)


def _check_fields(path: Path, stored: PyTree, targets: PyTree) -> None:
  """Raises CheckpointError for the first field whose shape or dtype is not expected."""
  holds = _describe(stored)
  expects = _describe(targets)
  for field in sorted(holds.keys() | expects.keys()):
    before = holds.get(field, "nothing")
    now = expects.get(field, "nothing")
    if before != now:
      raise CheckpointError(
        f"{path}: {field} holds {before}, but this run expects {now}"
      )


def _from_first(arrays: list[np.ndarray]) -> list[np.ndarray]:
  """The arrays of process 0, bit for bit, on all processes."""
  if jax.process_count() == 1:
    return arrays
  # Broadcast bytes: the broadcast adds the zeros of the other processes, and the sum
  # -0.0 + 0.0 of floats would be 0.0.
  contents = [np.frombuffer(array.tobytes(), np.uint8) for array in arrays]
  contents = multihost_utils.broadcast_one_to_all(contents)
  return [
    np.frombuffer(np.asarray(content).tobytes(), array.dtype).reshape(array.shape)
    for array, content in zip(arrays, contents, strict=True)
  ]


def read_checkpoints(folder: str | os.PathLike) -> Iterator[Restored]:
  """Reads all checkpoints of another run, finished or running, in order of their steps.

  The states are nested dicts and lists of NumPy arrays. Nothing is written.
  CheckpointError if there is no such folder, or if a checkpoint is damaged.
  """
  if not is_dir(folder):
    raise CheckpointError(f"{folder}: no such folder of checkpoints")
  for step in orbax_folders.steps(to_path(folder)):
    yield read_checkpoint(to_path(folder) / str(step))


def read_checkpoint(path: str | os.PathLike) -> Restored:
  """Reads one checkpoint, `checkpoints/STEP`; CheckpointError if missing or damaged."""
  try:
    return _twice(_read, to_path(path))
  except DamagedFileError as error:
    raise CheckpointError(str(error)) from error


def _twice(read: Callable[[Path], Any], path: Path) -> Any:
  """Reads a file, and again if it seems damaged: a network disk can fail briefly."""
  try:
    return read(path)
  except DamagedFileError:
    time.sleep(_RETRY_SECONDS)
    return read(path)


def _read(path: Path) -> Restored:
  """Reads a checkpoint and compares its checksums."""
  facts = _read_facts(path)
  try:
    state = jax.tree.map(np.asarray, orbax_folders.restore(path))
  except Exception as error:  # a damaged file fails in any layer
    raise DamagedFileError(f"{path}: can't be read ({_as_line(error)})") from error
  checksums = _checksums(state)
  for name, checksum in facts["checksums"].items():
    if checksums.get(name) != checksum:
      raise DamagedFileError(f"{path}: {name} is not what was saved")
  return Restored(int(path.name), state, facts["meta"], facts["metric"])


def _read_facts(path: Path) -> dict[str, Any]:
  """Reads the JSON of a checkpoint."""
  file = path / "meta" / "metadata"
  facts = parse_json(read_file(file, DamagedFileError), file)
  fields = {"leaves", "checksums", "meta", "metric"}
  if not isinstance(facts, dict) or facts.keys() != fields:
    raise DamagedFileError(f"{file}: not the fields leaves, checksums, meta and metric")
  return facts


def _as_target(leaf: Any) -> Any:
  """Returns the shape, dtype and sharding of a JAX leaf; any other leaf as an array."""
  if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
    return np.asarray(leaf)
  sharding = leaf.sharding
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(hosts.devices(local=True)[0])
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
