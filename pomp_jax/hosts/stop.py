"""SIGTERM, SIGHUP and SIGINT: the notice that this process is about to be ended.

On one process the handler notes it, and the loop stops after its step. On several, JAX carries the
notice to all of them and finds a step that all can reach; so one notice is enough.
"""

import contextlib
import itertools
import os
import signal
import threading

from jax.experimental import multihost_utils

from pomp_jax.hosts.talk import client

# Of all questions that this process has asked, over all runs: JAX compares them between processes,
# and a step that a run comes to again (after going back, or as another run's) would be behind them.
_questions = itertools.count(1)


class Preempted(BaseException):
  """The run was asked to stop and has saved what it had; the message is one line.

  No `Exception`, as it may be raised anywhere: what deals with errors must not take it for one.

  Attributes:
    together: whether all processes stop, each by itself; else the others have to be told.
  """

  def __init__(self, message: str, *, together: bool = False):
    super().__init__(message)
    self.together = together


def leave_if_asked() -> None:
  """Between the parts of what several processes do together with nothing to save.

  All call it equally often. A process alone need not ask: it is ended wherever it is.

  Raises:
    Preempted: one of them was asked to stop, and all can here.
  """
  if client() is not None and multihost_utils.reached_preemption_sync_point(next(_questions)):
    raise Preempted("asked to stop; the same command goes on", together=True)


class StopRequest(contextlib.AbstractContextManager):
  """Whether to stop, asked once a step.

  As a context it takes SIGTERM, SIGHUP and SIGINT over from whatever had them. More SIGTERMs and
  SIGHUPs say the same again: what is being saved is saved. A second SIGINT, from a person who does
  not want to wait, acts as it did before. With several processes JAX has SIGTERM from start-up on.

  The answer is remembered: it stays the same when the context is left and entered again.
  """

  def __init__(self):
    self._asked = False
    self._before = {}

  def __enter__(self) -> "StopRequest":
    # Signals belong to the main thread; elsewhere (a notebook's, a test's) there is no notice.
    if threading.current_thread() is threading.main_thread():
      numbers = [signal.SIGINT, signal.SIGHUP]
      numbers += [signal.SIGTERM] if client() is None else []
      for number in numbers:
        # A shell lets what it starts in the background ignore SIGINT, and nohup SIGHUP.
        if signal.getsignal(number) != signal.SIG_IGN:
          self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *exception: object) -> None:
    while self._before:
      self._give_back(next(iter(self._before)))

  def after_step(self) -> bool:
    """Whether to stop now; all processes ask equally often, and get the same answer.

    No device takes part, and nothing is sent before there is a notice.
    """
    if client() is not None and not self._asked:
      self._asked = multihost_utils.reached_preemption_sync_point(next(_questions))
    return self._asked

  def _note(self, number: int, frame: object) -> None:
    if number == signal.SIGINT:
      self._give_back(number)
    if client() is None:
      self._asked = True
    else:
      # JAX has taken SIGTERM, and tells the other processes.
      os.kill(os.getpid(), signal.SIGTERM)

  def _give_back(self, number: int) -> None:
    # None: of a handler that was not Python's.
    signal.signal(number, self._before.pop(number) or signal.SIG_DFL)
