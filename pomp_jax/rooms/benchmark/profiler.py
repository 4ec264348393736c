"""Profiles some steps of a training, `config.profile_steps`."""

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
  """Opens the profiler of `config.profile_steps`; returns None if no steps are given.

  Args:
    loop: settings of the loop, with the steps to profile.
    path: folder of the profile, on a disk or in a bucket.
    done: number of finished steps when the loop starts or resumes.
  """
  steps = loop.of(Profile).profile_steps
  if not steps:
    return None
  return Profiler(path, steps, done)


class Profiler:
  """Profiles steps of process 0 with JAX's profiler.

  The profiler waits for the device before the first and after the last of the steps. An
  error of JAX's profiler is logged as a warning, and never ends a training.
  """

  def __init__(self, path: Path, steps: tuple[int, ...], done: int):
    """Takes the first and last of `steps`; starts at once if the first step is next."""
    self._path = path
    self._local = path
    self._temporary = None
    if is_bucket(path):
      # JAX's profiler writes only to a disk: `close` uploads the folder.
      self._temporary = tempfile.TemporaryDirectory()
      self._local = self._temporary.name
    if hosts.is_first():
      self._first, self._last = steps
    else:
      self._first = self._last = -1  # no step has this number
    self._recording = False
    self.after(done, None)

  def after(self, step: int, result: Any) -> None:
    """Waits for the result of a step, and starts or stops the profile if it is due."""
    if step not in (self._first - 1, self._last):
      return
    jax.block_until_ready(result)
    if step == self._last:
      self.close()
    else:
      self._recording = _succeeds(jax.profiler.start_trace, self._local)

  def close(self) -> None:
    """Stops a running profile, and uploads it if its folder is in a bucket."""
    is_written = self._recording and _succeeds(jax.profiler.stop_trace)
    if is_written and self._temporary is not None:
      put = store_of(self._path).put
      is_written = _succeeds(put, f"{self._local}/", f"{self._path}/", recursive=True)
    if is_written:
      log.info("profile from step %d on: %s", self._first, self._path)
    self._recording = False


def _succeeds(call: Callable[..., None], *arguments: Any, **options: Any) -> bool:
  """Calls `call`, and returns whether it succeeded; logs an error as a warning."""
  try:
    call(*arguments, **options)
  except (RuntimeError, OSError) as error:
    log.warning("no profile: %s", " ".join(str(error).split()))
    return False
  return True
