"""Where the time of a training loop goes, and its memory; measured beside the loop."""

from collections.abc import Callable, Iterator
import os
import pathlib
import time
from typing import TypeVar

import jax

_Batch = TypeVar("_Batch")
_STATM = pathlib.Path("/proc/self/statm")


class Meter:
  """A stopwatch over the steps between two looks.

  The host runs ahead of the device, so that it may well wait for the loader while the device is
  busy. Only where a batch comes after the device has run dry does the loader hold the run up.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    """Starts.

    Args:
      clock: seconds, from any zero.
    """
    self._clock = clock
    self.restart()

  def restart(self) -> None:
    """Forgets what was measured since the last look."""
    self._start = self._clock()
    self._waited, self._batches, self._starved = 0.0, 0, 0

  def timed(
    self, batches: Iterator[_Batch], is_dry: Callable[[], bool] = lambda: False
  ) -> Iterator[_Batch]:
    """The same batches; counts the time until each is there.

    Args:
      batches: from the loader.
      is_dry: whether the device has finished all that it was given; asked when a batch is there.
    """
    while True:
      start = self._clock()
      try:
        batch = next(batches)
      except StopIteration:
        return
      self._waited += self._clock() - start
      self._batches += 1
      self._starved += bool(is_dry())
      yield batch

  def look(self, n_steps: int) -> dict[str, float]:
    """What was measured since the last look, or restart; starts again.

    Args:
      n_steps: that have ended in this time, at least 1.

    Returns:
      `step_seconds`; `data_wait_ratio`, the part of the time that the loop has waited for the
      loader; `starved_ratio`, the part of the batches that came after the device had run dry.
    """
    elapsed = max(self._clock() - self._start, 1e-9)
    found = {
      "step_seconds": elapsed / n_steps,
      "data_wait_ratio": self._waited / elapsed,
      "starved_ratio": self._starved / max(self._batches, 1),
    }
    self.restart()
    return found


def memory() -> dict[str, float]:
  """This process's memory, bytes.

  Returns:
    Of the fullest of its devices `device_memory_bytes` and `device_memory_peak_bytes`; where the
    devices don't say (CPUs), `process_memory_bytes`, what the process holds in the machine's; {}
    where the system does not say that either.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  names = {
    "device_memory_bytes": "bytes_in_use",
    "device_memory_peak_bytes": "peak_bytes_in_use",
  }
  found = {
    ours: float(max(of_device[theirs] for of_device in stats))
    for ours, theirs in names.items()
    if all(theirs in of_device for of_device in stats)
  }
  if found or not _STATM.exists():
    return found
  n_pages = int(_STATM.read_text().split()[1])
  return {"process_memory_bytes": float(n_pages * os.sysconf("SC_PAGE_SIZE"))}
