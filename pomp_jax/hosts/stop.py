"""Stopping on a signal: a process alone, and several after the same step.

JAX's preemption service forwards a signal to all processes and picks a step that all
can reach. `failure` ends the others where one fails.
"""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from typing import Any

from jax.experimental import multihost_utils

from pomp_jax.errors import TryAgain
from pomp_jax.hosts.messages import client

# Sync points asked for by this process, over all runs. JAX compares the numbers between
# processes, so they only ever increase: the step would decrease after a roll-back, or
# in the next run.
_sync_points = itertools.count(1)

_AGAIN_SECONDS = 0.1  # until the callback that could not raise has returned
# signals that follow each other within that time are the same request
_SAME_SECONDS = 5.0

# Signals that end a process, and its exit status.
_STOPPING: dict[int, int] = {
  signal.SIGTERM: TryAgain.status,
  signal.SIGHUP: TryAgain.status,
  signal.SIGINT: 130,
}
_UNHEARD_SECONDS = 1.0  # for the main thread to handle a signal itself


class Preempted(BaseException):
  """A run that was asked to stop and has saved its state; the message is one line.

  Derived from BaseException, since it may be raised anywhere and must not be handled as
  an error. If not all processes stop `together`, each by itself, the others have to be
  told.
  """

  def __init__(self, message: str, *, together: bool = False):
    super().__init__(message)
    self.together = together


def raise_if_preempted() -> None:
  """Raises `Preempted` if one of several processes was asked to stop.

  All processes call it equally often. A process that runs alone is stopped by the
  signal itself.
  """
  if client() is None:
    return
  if multihost_utils.reached_preemption_sync_point(next(_sync_points)):
    raise Preempted("asked to stop; the same command resumes", together=True)


class StopSignals:
  """Raises `Preempted` at a signal, wherever the main thread is.

  Launchers may send a signal twice (`timeout` sends it to the process and to its
  group), which must not interrupt the unwinding: signals are ignored until none has
  come for five seconds.

  The exception can get lost. Where Python can't raise, as in a callback of the garbage
  collector (JAX has one), it would be printed and dropped: the signal is sent again.
  Where a library replaces it, `received` has it. Where a library drops it, the next
  signal is heard.
  """

  def __init__(self, remains: Callable[[], str]):
    """Handles no signal yet; `remains` says at a signal what the run leaves."""
    self.received: Preempted | None = None
    self._remains = remains
    self._ending = False
    self._number = 0  # of the signal that was received
    self._deaf_until = 0.0  # time.monotonic()
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
    """Ignores signals from now on: the exit status is known, and the process ends
    anyway."""
    self._ending = True

  def _stop(self, number: int, frame: object) -> None:
    heard = not self._ending and time.monotonic() >= self._deaf_until
    self._deaf_until = time.monotonic() + _SAME_SECONDS
    if not heard:
      return
    self._number = number
    name = signal.Signals(number).name
    self.received = Preempted(f"stopped by {name}; {self._remains()}")
    raise self.received

  def _at_unraisable(self, unraisable: Any) -> None:
    if self.received is None or unraisable.exc_value is not self.received:
      self._next_hook(unraisable)
      return
    self.received = None
    self._deaf_until = 0.0
    again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), self._number))
    again.daemon = True
    again.start()


@contextlib.contextmanager
def ending_at_once(last: Callable[[], object]) -> Iterator[None]:
  """Ends the process about a second after a signal, for code that writes nothing.

  Python's handlers wait for the main thread, which a compiler may hold for minutes. A
  main thread that is free handles the signal as usual. Otherwise a thread calls `last`
  and exits, and nothing that is open is closed. Signals are SIGTERM, SIGHUP and SIGINT,
  if Python handles them.

  Args:
    last: function to call before the end.
  """
  # Python's C handler writes the number of each signal to this pipe at once.
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  earlier_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  has_left = threading.Event()

  def watch() -> None:
    while True:
      numbers = os.read(reader, 1)
      if not numbers:  # the pipe is closed
        return
      status = _STOPPING.get(numbers[0])
      if status is None:
        continue
      if has_left.wait(_UNHEARD_SECONDS):
        return  # the main thread handled the signal
      last()
      name = signal.Signals(numbers[0]).name
      line = f"error: stopped by {name}; nothing was written\n"
      with contextlib.suppress(OSError):
        os.write(2, line.encode())
      os._exit(status)

  watcher = threading.Thread(target=watch, daemon=True)
  watcher.start()
  try:
    yield
  finally:
    has_left.set()
    signal.set_wakeup_fd(earlier_writer)
    os.close(writer)  # ends the watcher
    watcher.join()
    os.close(reader)


class StopRequest(contextlib.AbstractContextManager):
  """Notes SIGTERM, SIGHUP and SIGINT in its context; the loop asks after each step.

  Repeated SIGTERMs and SIGHUPs are ignored while the state is saved. A second SIGINT
  has the handler of before. With several processes JAX handles SIGTERM from start-up
  on.
  """

  def __init__(self) -> None:
    self._asked = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> "StopRequest":
    """Handles the signals, if this is the main thread; Python allows no other."""
    if threading.current_thread() is not threading.main_thread():
      return self
    numbers = [signal.SIGINT, signal.SIGHUP]
    if client() is None:
      numbers.append(signal.SIGTERM)  # else JAX handles it
    for number in numbers:
      # A shell ignores SIGINT for background processes, and nohup ignores SIGHUP.
      if signal.getsignal(number) != signal.SIG_IGN:
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *exception: object) -> None:
    for number in list(self._before):
      self._restore(number)

  def after_step(self) -> bool:
    """Whether to stop now; all processes ask equally often and get the same answer."""
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
