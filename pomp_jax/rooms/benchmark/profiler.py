"""A profile of some steps of a training, `config.profile_steps`."""

from collections.abc import Callable
import logging
import tempfile
from typing import Any

import jax

from pomp_jax import hosts
from pomp_jax.config.fields import Loop
from pomp_jax.files.paths import Path, is_bucket, store_of
from pomp_jax.rooms.benchmark.fields import Profile

log = logging.getLogger(__name__)


def open_profiler(loop: Loop, path: Path, done: int) -> "Profiler | None":
  """Returns the profiler of `config.profile_steps` after `done` steps; None where it
  is empty."""
  steps = loop.of(Profile).profile_steps
  return Profiler(path, steps, done) if steps else None


class Profiler:
  """Profiles steps of process 0 with JAX's profiler; waits for the device at both ends.

  A profiler error is a warning and never ends a training.
  """

  def __init__(self, path: Path, steps: tuple[int, ...], done: int):
    """Starts at once if the next step is the first of the `steps` to profile:
    (first, last)."""
    # JAX's profiler writes to this machine alone.
    self._temporary = tempfile.TemporaryDirectory() if is_bucket(path) else None
    self._path, self._local = path, self._temporary.name if self._temporary else path
    self._first, self._last = steps if hosts.is_first() else (-1, -1)
    self._recording = False
    self.after(done, None)

  def after(self, step: int, result: Any) -> None:
    """Starts or stops the profile, if it is due, once the results of a step are
    ready."""
    if step not in (self._first - 1, self._last):
      return
    jax.block_until_ready(result)
    if step == self._last:
      self.close()
    else:
      self._recording = _succeeds(jax.profiler.start_trace, self._local)

  def close(self) -> None:
    stopped = self._recording and _succeeds(jax.profiler.stop_trace)
    if stopped and self._temporary is not None:
      put = store_of(self._path).put
      stopped = _succeeds(put, f"{self._local}/", f"{self._path}/", recursive=True)
    if stopped:
      log.info("profile from step %d on: %s", self._first, self._path)
    self._recording = False


def _succeeds(call: Callable[..., None], *arguments: Any, **options: Any) -> bool:
  try:
    call(*arguments, **options)
  except (RuntimeError, OSError) as error:
    log.warning("no profile: %s", " ".join(str(error).split()))
    return False
  return True
