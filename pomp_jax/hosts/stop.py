"""Stop requests: SIGTERM, SIGHUP and SIGINT.

A process that runs alone notes the signal, and the loop stops after its step. With several
processes JAX's preemption service forwards the request to all of them and picks a step that all can
reach, so a signal to one process is enough.
"""

import contextlib
import itertools
import os
import signal
import threading

from jax.experimental import multihost_utils

from pomp_jax.hosts.messages import client

# Sync points asked for by this process, over all runs. JAX compares the numbers between processes,
# so they only ever increase: the step would decrease after a roll-back, or in the next run.
_sync_points = itertools.count(1)


class Preempted(BaseException):
  """A run that was asked to stop and has saved its state; the message is one line.

  Derived from BaseException, since it may be raised anywhere and must not be handled as an error.

  Attributes:
    together: whether all processes stop, each by itself. Otherwise the others have to be told.
  """

  def __init__(self, message: str, *, together: bool = False):
    super().__init__(message)
    self.together = together


def raise_if_preempted() -> None:
  """Stops all processes between two parts of work that has nothing to save.

  All processes call it equally often. A process that runs alone is stopped by the signal itself.

  Raises:
    Preempted: one of several processes was asked to stop.
  """
  if client() is not None and multihost_utils.reached_preemption_sync_point(next(_sync_points)):
    raise Preempted("asked to stop; the same command resumes", together=True)


class StopRequest(contextlib.AbstractContextManager):
  """Whether to stop, asked after each step.

  The context handles SIGTERM, SIGHUP and SIGINT. Repeated SIGTERMs and SIGHUPs are ignored while
  the state is saved. A second SIGINT, from a person who does not want to wait, has the handler of
  before. With several processes JAX handles SIGTERM from start-up on.

  The answer stays the same when the context is left and entered again.
  """

  def __init__(self):
    self._asked = False
    self._before = {}

  def __enter__(self) -> "StopRequest":
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGHUP, *([] if client() else [signal.SIGTERM])):
        # A shell ignores SIGINT for background processes, and nohup ignores SIGHUP.
        if signal.getsignal(number) != signal.SIG_IGN:
          self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *exception: object) -> None:
    for number in list(self._before):
      self._restore(number)

  def after_step(self) -> bool:
    """Whether to stop now; all processes ask equally often and get the same answer.

    No device takes part, and nothing is sent before there is a request.
    """
    if client() is not None and not self._asked:
      self._asked = multihost_utils.reached_preemption_sync_point(next(_sync_points))
    return self._asked

  def _note(self, number: int, frame: object) -> None:
    if number == signal.SIGINT:
      self._restore(number)
    if client() is None:
      self._asked = True
    else:
      # JAX handles SIGTERM and tells the other processes.
      os.kill(os.getpid(), signal.SIGTERM)

  def _restore(self, number: int) -> None:
    # None stands for a handler that was not set from Python.
    signal.signal(number, self._before.pop(number) or signal.SIG_DFL)
