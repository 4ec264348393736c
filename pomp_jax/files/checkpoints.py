"""Checkpoints of a run: its arrays, bit for bit, and the JSON that says what they belong to.

A run's state is small and the same on every device, so process 0 alone reads and writes: no process
waits for another's disk, and there is no checkpoint of which a part is missing.
"""

import contextlib
import json
import logging
import math
import os
from pathlib import Path
import secrets
import socket
import time
from typing import Any, SupportsFloat

from pomp_jax import hosts
from pomp_jax.files import checkpoint_contents, checksums
from pomp_jax.files.atomic import replacing
from pomp_jax.files.checkpoint_contents import CheckpointError, Damage, PyTree, Restored, as_line
from pomp_jax.files.checkpoint_manager import Manager, open_manager

__all__ = ["CheckpointError", "Checkpoints", "Restored"]

log = logging.getLogger(__name__)

_OWNER = "owner.txt"
_SECOND_LOOK = 0.5  # s


class Checkpoints:
  """The checkpoints of one run, in one folder.

  Saving is asynchronous: the arrays are copied before `save` returns, so that their buffers may be
  donated to the next step, and written behind it. A checkpoint counts once it is complete; what a
  killed process leaves half written is never restored, and is cleaned away. The newest `keep`
  checkpoints stay, and the best one by the metric (the higher, the better; of equals the newer).

  A save that fails is told by the next call, `check` and `save` among them. With `retry` that is a
  warning, and the next save tries again. Even so `wait` and `close` raise, and `save` where a later
  start has taken the folder over.

  Every array, the JSON and the metric are stored with their checksums. A checkpoint that can't be
  read, or that reads as something else, is set aside as `damaged-STEP`, and the one before it takes
  its place.

  The folder is the last opener's: whoever opened it before, and still lives where nobody sees it,
  saves nothing more (`owner.txt` says whose it is).

  With several processes all make the same calls to `save` and `restore_latest`, and only process 0
  touches the folder; there a failure ends all of them (`hosts.fail`). `steps` is for process 0
  alone.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 3, *, retry: bool = False):
    """Opens the folder, and creates it when it is missing.

    Args:
      folder: where the checkpoints live, one sub-folder a step.
      keep: how many of the newest stay, at least 1.
      retry: whether a save that fails is left to the next one.

    Raises:
      ValueError: `keep` is below 1.
      CheckpointError: the folder can't be created or read.
    """
    if keep < 1:
      raise ValueError(f"keep must be at least 1, got {keep}")
    # Orbax takes absolute paths only.
    self.folder = Path(os.path.abspath(folder))
    self._keep, self._retry = keep, retry
    self._owner = f"{socket.gethostname()}, process {os.getpid()}, {secrets.token_hex(8)}"
    self._manager = self._open() if hosts.is_first() else None
    if self._manager is not None:
      self._take_over()
    self._saving: int | None = None  # the step of the last save, until it is known how it ended
    self._failure: CheckpointError | None = None  # of the last save
    self._told = False  # whether that one was

  def _open(self) -> Manager:
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      self._set_aside_damaged_metrics()
      return open_manager(self.folder, self._keep)
    except (OSError, ValueError) as error:
      raise CheckpointError(f"{self.folder}: can't hold checkpoints ({as_line(error)})") from error

  def _take_over(self) -> None:
    """Says whose the folder is now: an earlier start that still lives, unseen, saves no more."""
    try:
      with replacing(self.folder / _OWNER) as file:
        file.write(self._owner.encode())
    except OSError as error:
      raise CheckpointError(f"{self.folder}: can't hold checkpoints ({as_line(error)})") from error

  def _check_owner(self) -> None:
    # Where it can't be read, the save itself will tell.
    with contextlib.suppress(OSError):
      owner = (self.folder / _OWNER).read_text(errors="replace")
      if owner != self._owner:
        raise CheckpointError(
          f"{self.folder}: a later start of this run ({owner.rpartition(',')[0]}) has taken it"
          " over; this one ends, and saves nothing more"
        )

  def save(
    self,
    step: int,
    state: PyTree,
    meta: dict[str, Any],
    metric: SupportsFloat | None = None,
  ) -> bool:
    """Starts to save; waits first for the save before it.

    Args:
      step: the number of steps done, 0 or more.
      state: a pytree of arrays (JAX or NumPy; Python numbers are taken as 0-d NumPy arrays). Random
        keys go in as `jax.random.key_data`. With several processes the same on all of them.
      meta: anything JSON can hold, such as the config and the position in the data.
      metric: the validation metric at this step, higher is better; None or NaN when there is none.

    Returns:
      Whether it saves: not when this step, or a newer one, is stored already, and with `retry` not
      when it could not start.

    Raises:
      CheckpointError: without `retry`, this save could not start, or the one before it failed; the
        line says which step is the last that is stored. With it too: a later start of the same run
        has taken the folder over.
    """
    if self._manager is None:
      return False
    self._check_owner()
    self._settle()
    metrics = {} if metric is None or not math.isfinite(metric) else {"metric": float(metric)}
    contents = checkpoint_contents.to_save(state, meta)
    try:
      if self._failure is not None:
        self._open_again()
      saves = self._manager.save(step, args=contents, metrics=checksums.with_checksum(metrics))
    except Exception as error:
      self._failure, self._told = self._write_error(step, error), False
      self._settle()
      return False
    self._saving, self._failure = step if saves else None, None
    return saves

  def check(self) -> None:
    """Tells of a save that has failed, without waiting for one that is under way.

    Raises:
      CheckpointError: it failed; not with `retry`.
    """
    if self._saving is not None and not self._manager.is_saving_in_progress():
      self._settle()

  def steps(self) -> list[int]:
    """The steps of all complete checkpoints, in order; waits for a save that is under way."""
    self._settle()
    return sorted(self._manager.all_steps())

  def restore_latest(self, abstract_state: PyTree) -> Restored | None:
    """Restores the newest checkpoint that is whole; damaged ones are set aside, with a warning.

    Args:
      abstract_state: the state's structure. A `jax.ShapeDtypeStruct` or a `jax.Array` gives a JAX
        array with its sharding (the first local device without one), anything else a NumPy array.

    Returns:
      The step, the state and the JSON, exactly as saved; None when there is no checkpoint.

    Raises:
      CheckpointError: all checkpoints are damaged; or a field's shape or dtype is not the one that
        `abstract_state` has, and the line names the field.
    """
    found = self._newest(abstract_state) if self._manager is not None else None
    return checkpoint_contents.place(found, abstract_state)

  def wait(self) -> None:
    """Waits until everything saved is on the disk.

    Raises:
      CheckpointError: the last save failed.
    """
    self._collect()
    if self._failure is not None:
      raise self._failure if self._retry else self._forget()

  def close(self) -> None:
    """Waits as `wait` does, and lets go of the folder.

    Raises:
      CheckpointError: as `wait`.
    """
    if self._manager is None:
      return
    self._collect()
    # What has failed is told below, once.
    with contextlib.suppress(Exception):
      self._manager.close()
    self.wait()

  def _collect(self) -> None:
    """Waits for the save under way; notes how it ended."""
    if self._manager is None or self._saving is None:
      return
    try:
      self._manager.wait_until_finished()
      self._manager.remove_discarded()
    except Exception as error:
      self._failure, self._told = self._write_error(self._saving, error), False
    self._saving = None

  def _settle(self) -> None:
    """As `wait`; with `retry` it warns, once."""
    self._collect()
    if self._failure is None or self._told:
      return
    if not self._retry:
      raise self._forget()
    log.warning("%s; the next save tries again", self._failure)
    self._told = True

  def _forget(self) -> CheckpointError:
    failure, self._failure = self._failure, None
    return failure

  def _open_again(self) -> None:
    """After a failure: without what that save has left behind."""
    with contextlib.suppress(Exception):
      self._manager.close()
    self._manager = self._open()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
    try:
      self.close()
    except CheckpointError:
      # Of two reasons to end, the first is told.
      if kind is None:
        raise

  def _newest(self, abstract_state: PyTree) -> Restored | None:
    damaged = []
    for step in reversed(self.steps()):
      try:
        found = self._read_twice(step, abstract_state)
      except Damage as damage:
        log.warning("checkpoint of step %d is DAMAGED (%s)", step, damage)
        damaged.append(step)
        continue
      for step in damaged:
        self._set_aside(step)
      if damaged:
        self._manager.reload()
        log.warning("going back to the checkpoint of step %d", found.step)
      return found
    if damaged:
      raise CheckpointError(
        f"{self.folder}: all checkpoints are damaged ({', '.join(map(str, damaged))}); remove this"
        " folder to start from the beginning"
      )
    return None

  def _read_twice(self, step: int, abstract_state: PyTree) -> Restored:
    # A disk at the other end of a network fails for a moment, too.
    try:
      return self._read(step, abstract_state)
    except Damage:
      time.sleep(_SECOND_LOOK)
      return self._read(step, abstract_state)

  def _read(self, step: int, abstract_state: PyTree) -> Restored:
    return checkpoint_contents.read(self._manager, self.folder, step, abstract_state)

  def _set_aside_damaged_metrics(self) -> None:
    """Orbax reads the metrics of all checkpoints when it opens the folder; they decide the best."""
    for metrics in self.folder.glob("*/metrics/metrics"):
      if metrics.parent.parent.name.isdigit():
        try:
          checksums.without_checksum(json.loads(metrics.read_bytes()), {"metric"})
        except (ValueError, AttributeError) as error:  # the latter: another JSON than an object
          step = int(metrics.parent.parent.name)
          log.warning("checkpoint of step %d is DAMAGED (its metrics: %s)", step, as_line(error))
          self._set_aside(step)

  def _set_aside(self, step: int) -> None:
    target, number = self.folder / f"damaged-{step}", 1
    while target.exists():
      number += 1
      target = self.folder / f"damaged-{step}-{number}"
    try:
      (self.folder / str(step)).rename(target)
    except OSError as error:
      raise CheckpointError(
        f"{self.folder / str(step)}: damaged, and can't be set aside ({error.strerror})"
      ) from error
    log.warning("it is kept as %s", target)

  def _write_error(self, step: int, error: Exception) -> CheckpointError:
    try:
      stored = [other for other in self._manager.all_steps(read=True) if other != step]
      last = f"the last good one is of step {max(stored)}" if stored else "there is none before it"
    except Exception:
      last = "which ones are there can't be read"
    what = f"could not save the checkpoint of step {step}"
    return CheckpointError(f"{self.folder}: {what} ({as_line(error)}); {last}")
