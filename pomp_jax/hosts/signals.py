"""SIGTERM and SIGHUP outside of training: the process unwinds, and ends with one line."""

import os
import signal
import sys
import threading
import time
from typing import Any

from pomp_jax.hosts.stop import Preempted

# After that time the callback that could not raise has returned.
_AGAIN_SECONDS = 0.1
# Signals that follow each other within that time are the same request.
_SAME_SECONDS = 5.0


class StopSignals:
  """Raises `Preempted` at a signal, wherever the main thread is.

  Launchers may send a signal twice (`timeout` sends it to the process and to its group), which must
  not interrupt the unwinding: signals are ignored until none has come for five seconds.

  The exception can get lost. Where Python can't raise, as in a callback of the garbage collector
  (JAX has one), it would be printed and dropped: the signal is sent again. Where a library replaces
  it, `received` has it. Where a library drops it, the next signal is heard.
  """

  def __init__(self, resumes_from: str):
    """Handles no signal yet; `resumes_from`: the run's folder."""
    self.received: Preempted | None = None
    self._resumes_from = resumes_from
    self._ending, self._number = False, 0
    self._deaf_until = 0.0
    self._next_hook = sys.unraisablehook

  def start(self) -> None:
    """Handles SIGTERM, and SIGHUP unless it is ignored, as under nohup."""
    sys.unraisablehook = self._at_unraisable
    self.handle(signal.SIGTERM)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
      self.handle(signal.SIGHUP)

  def handle(self, number: int) -> None:
    """Handles a signal, also after another part of the program has taken it."""
    signal.signal(number, self._stop)

  def handles(self, number: int) -> bool:
    """Whether a signal is handled here."""
    return signal.getsignal(number) == self._stop

  def ignore(self) -> None:
    """Ignores signals from now on: the exit status is known, and the process ends anyway."""
    self._ending = True

  def _stop(self, number: int, frame: object) -> None:
    heard = not self._ending and time.monotonic() >= self._deaf_until
    self._deaf_until = time.monotonic() + _SAME_SECONDS
    if not heard:
      return
    self._number, name = number, signal.Signals(number).name
    line = f"stopped by {name}; the same command resumes from {self._resumes_from}"
    self.received = Preempted(line)
    raise self.received

  def _at_unraisable(self, unraisable: Any) -> None:
    if self.received is None or unraisable.exc_value is not self.received:
      self._next_hook(unraisable)
      return
    self.received, self._deaf_until = None, 0.0
    again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), self._number))
    again.daemon = True
    again.start()
