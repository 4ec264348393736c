"""Time, memory and profile of a training loop, measured beside it."""

from collections.abc import Callable, Iterator
import contextlib
import logging
import os
import pathlib
import tempfile
import time
from typing import Any, TypeVar

import jax

from pomp_jax import hosts
from pomp_jax.files.paths import Path, is_bucket, store_of

log = logging.getLogger(__name__)

_Batch = TypeVar("_Batch")
_STATM = pathlib.Path("/proc/self/statm")


class Meter:
  """Times the steps, and the waits for the loader.

  The host runs ahead of the device, so it may wait for the loader while the device is busy. Only a
  batch that finds the device idle shows that the loader is too slow.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    """Starts the clock, which gives seconds from any zero."""
    self._clock = clock
    self.restart()

  def restart(self) -> None:
    """Drops everything measured since the last `measure`."""
    self._start = self._clock()
    self._waited, self._batches, self._starved = 0.0, 0, 0

  def timed(
    self, batches: Iterator[_Batch], is_idle: Callable[[], bool] = lambda: False
  ) -> Iterator[_Batch]:
    """Passes the batches through and times the wait for each.

    `is_idle` tells whether the device has finished all its work; asked when a batch has arrived.
    """
    start = self._clock()
    for batch in batches:
      self._waited += self._clock() - start
      self._batches += 1
      self._starved += bool(is_idle())
      yield batch
      start = self._clock()

  def measure(self, n_steps: int) -> dict[str, float]:
    """Returns the figures of the n steps, at least 1, since the last call or restart; restarts.

    Returns:
      `step_seconds`; `data_wait_ratio`, fraction of the time spent waiting for the loader;
      `starved_ratio`, fraction of the batches that found the device idle.
    """
    elapsed = max(self._clock() - self._start, 1e-9)
    figures = {
      "step_seconds": elapsed / n_steps,
      "data_wait_ratio": self._waited / elapsed,
      "starved_ratio": self._starved / max(self._batches, 1),
    }
    self.restart()
    return figures


def memory() -> dict[str, float]:
  """Measures `device_memory_bytes` and `device_memory_peak_bytes` of the fullest device.

  Where devices have no statistics (CPUs), `process_memory_bytes`, the resident memory of the
  process; {} where the system does not tell it.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  names = {"device_memory_bytes": "bytes_in_use", "device_memory_peak_bytes": "peak_bytes_in_use"}
  figures = {
    ours: float(max(of_device[theirs] for of_device in stats))
    for ours, theirs in names.items()
    if all(theirs in of_device for of_device in stats)
  }
  if figures or not _STATM.exists():
    return figures
  n_pages = int(_STATM.read_text().split()[1])
  return {"process_memory_bytes": float(n_pages * os.sysconf("SC_PAGE_SIZE"))}


class Trace(contextlib.AbstractContextManager):
  """Profiles steps of process 0 with JAX's profiler; waits for the device at both ends.

  A profiler error is a warning and never ends a training.
  """

  def __init__(self, path: Path, steps: tuple[int, int] | None, done: int):
    """Starts at once if the next step is the first of the `steps` (first, last) to profile."""
    # JAX's profiler writes to this machine alone.
    self._temporary = tempfile.TemporaryDirectory() if is_bucket(path) else None
    self._path, self._local = path, self._temporary.name if self._temporary else path
    self._steps = steps if hosts.is_first() else None
    self._recording = False
    self.after(done, None)

  def after(self, step: int, result: Any) -> None:
    """Starts or stops the profile, if it is due, once the results of a step are ready."""
    if self._steps is None or step not in (self._steps[0] - 1, self._steps[1]):
      return
    jax.block_until_ready(result)
    if step == self._steps[1]:
      self._stop()
    else:
      self._recording = _succeeds(jax.profiler.start_trace, self._local)

  def __exit__(self, *exception: object) -> None:
    self._stop()

  def _stop(self) -> None:
    stopped = self._recording and _succeeds(jax.profiler.stop_trace)
    if stopped and (self._temporary is None or _succeeds(self._send)):
      log.info("profile from step %d on: %s", self._steps[0], self._path)
    self._recording = False

  def _send(self) -> None:
    store_of(self._path).put(f"{self._local}/", f"{self._path}/", recursive=True)


def _succeeds(call: Callable[..., None], *arguments: Any) -> bool:
  try:
    call(*arguments)
  except (RuntimeError, OSError) as error:
    log.warning("no profile: %s", " ".join(str(error).split()))
    return False
  return True
