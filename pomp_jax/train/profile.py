"""A profile of some steps, as JAX's profiler records it."""

from collections.abc import Callable
import contextlib
import logging
from typing import Any

import jax

from pomp_jax import hosts
from pomp_jax.files.run_folder import RunFolder

log = logging.getLogger(__name__)


class Trace(contextlib.AbstractContextManager):
  """Records steps of process 0 into the run's folder; the loop waits for the device at both ends.

  What goes wrong in it is a warning: it never ends a training.
  """

  def __init__(self, folder: RunFolder, steps: tuple[int, int] | None, done: int):
    """Starts at once if the next step is the first to record.

    Args:
      folder: of the run.
      steps: the first and the last; None: no step.
      done: steps that were done before.
    """
    self._path = folder.path / "profile"
    self._steps = steps if hosts.is_first() else None
    self._recording = False
    self.after(done, None)

  def after(self, step: int, result: Any) -> None:
    """Tells that a step was started: recording begins or ends after it where it is due.

    Args:
      step: which.
      result: an array of it, or several: there when the step is done.
    """
    if self._steps is None or step not in (self._steps[0] - 1, self._steps[1]):
      return
    jax.block_until_ready(result)
    if step == self._steps[1]:
      self._stop()
    else:
      self._recording = _works(jax.profiler.start_trace, self._path)

  def __exit__(self, *exception: object) -> None:
    self._stop()

  def _stop(self) -> None:
    if self._recording and _works(jax.profiler.stop_trace):
      log.info("the profile from step %d on is in %s", self._steps[0], self._path)
    self._recording = False


def _works(call: Callable[..., None], *arguments: Any) -> bool:
  try:
    call(*arguments)
  except (RuntimeError, OSError) as error:
    log.warning("no profile: %s", " ".join(str(error).split()))
    return False
  return True
