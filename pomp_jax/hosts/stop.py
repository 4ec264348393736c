"""Stopping on a signal, for one process, and for several after the same step.

JAX's preemption service forwards a signal to all processes and picks a step that all
can reach. If a process fails, `failure` ends the others.
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

# Numbers of the sync points that this process asks for, over all runs. JAX compares the
# numbers between processes, so the numbers must always increase. A step's number would
# decrease after a roll-back and in the next run.
_sync_points = itertools.count(1)

# Delay before a signal is sent again: the callback that could not raise has returned.
_AGAIN_SECONDS = 0.1
# A signal within this time of the last one is part of the same request.
_SAME_SECONDS = 5.0

# Signals that end a process, and the exit status after each.
_STOPPING: dict[int, int] = {
  signal.SIGTERM: TryAgain.status,
  signal.SIGHUP: TryAgain.status,
  signal.SIGINT: 130,
}
_UNHEARD_SECONDS = 1.0  # time for the main thread to handle a signal itself


class Preempted(BaseException):
  """A run that was asked to stop and has saved its state; the message is one line.

  Derived from BaseException, since it may be raised anywhere and must not be handled as
  an error. If `together`, all processes stop by themselves at the same step; otherwise
  this process has to tell the others.
  """

  def __init__(self, message: str, *, together: bool = False):
    super().__init__(message)
    self.together = together


def raise_if_preempted() -> None:
  """Raises `Preempted` if one of several processes was asked to stop.

  All processes call it equally often. It does nothing in a process that runs alone,
  which the signal itself stops.
  """
  if client() is None:
    return
  if multihost_utils.reached_preemption_sync_point(next(_sync_points)):
    raise Preempted("asked to stop; the same command resumes", together=True)


class StopSignals:
  """Raises `Preempted` at a signal, wherever the main thread is.

  Launchers may send a signal twice (`timeout` sends it to the process and to its
  group). The second must not interrupt the unwinding, so signals are ignored until none
  has come for five seconds.

  The exception can get lost. In a callback of the garbage collector (JAX has one)
  Python can only print and drop an exception, so the signal is sent again. If a library
  replaces the exception, `received` still holds it. If a library drops the exception,
  the next signal raises a new one.
  """

  def __init__(self, remains: Callable[[], str]):
    """Handles no signal yet; `remains` says, at a signal, what the run leaves."""
    self.received: Preempted | None = None
    self._remains = remains
    self._ending = False
    self._number = 0  # number of the signal that was received
    self._deaf_until = 0.0  # `time.monotonic()` until which signals are ignored
    self._next_hook = sys.unraisablehook

  def start(self) -> None:
    """Handles SIGTERM, and SIGHUP unless it is ignored, as under nohup."""
    sys.unraisablehook = self._at_unraisable
    self.handle(signal.SIGTERM)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
      self.handle(signal.SIGHUP)

  def handle(self, number: int) -> None:
    """Handles a signal, also if another part of the program has set a handler."""
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
  and ends the process without closing open files. The signals are SIGTERM, SIGHUP and
  SIGINT, if Python handles them.

  Args:
    last: function to call before the process ends.
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
  """Notes SIGTERM, SIGHUP and SIGINT in a `with` block; the loop asks after each step.

  Repeated SIGTERMs and SIGHUPs are ignored while the state is saved. A second SIGINT
  goes to the handler from before the block. With several processes JAX handles SIGTERM
  from start-up on.
  """

  def __init__(self) -> None:
    self._asked = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> "StopRequest":
    """Handles the signals, if this is the main thread: no other may set handlers."""
    if threading.current_thread() is not threading.main_thread():
      return self
    numbers = [signal.SIGINT, signal.SIGHUP]
    if client() is None:
      numbers.append(signal.SIGTERM)  # with several processes JAX handles it
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
