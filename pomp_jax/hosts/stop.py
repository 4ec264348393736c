"""SIGTERM: the notice that a machine is about to be taken away.

On one process the handler notes it, and the loop stops after its step. On several, JAX carries the
notice to all of them and finds a step that all can reach; so one notice is enough.
"""

import contextlib
import signal
import threading

from jax.experimental import multihost_utils

from pomp_jax.hosts.talk import client


class Preempted(Exception):
  """The run was asked to stop and has saved what it had; the message is one line."""


class StopRequest(contextlib.AbstractContextManager):
  """Whether to stop, asked once a step.

  As a context it takes SIGTERM over from whatever had it. In one process a second SIGTERM acts as
  it did before. With several, JAX has SIGTERM from start-up on.
  """

  def __init__(self):
    self._asked = False
    self._before = None

  def __enter__(self) -> "StopRequest":
    # Signals belong to the main thread; elsewhere (a notebook's, a test's) there is no notice.
    if client() is None and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *exception: object) -> None:
    self._give_back()

  def after(self, step: int) -> bool:
    """Whether to stop after this step; all processes get the same answer.

    Args:
      step: the number of steps done. All processes ask once a step, with the same numbers.
    """
    if client() is not None:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def _note(self, number: int, frame: object) -> None:
    self._asked = True
    self._give_back()

  def _give_back(self) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)
      self._before = None
