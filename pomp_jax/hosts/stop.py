"""Stopping: on a signal, several processes after the same step, and on a failure within
seconds.

JAX's preemption service forwards a signal to all processes and picks a step that all
can reach. A process that fails leaves its reason with the coordinator and the others
end with it. Otherwise they would wait in a collective until the heartbeat timeout, as
they do when one is killed.
"""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from typing import Any, NamedTuple, NoReturn

import jax
from jax.experimental import multihost_utils

from pomp_jax.errors import TryAgain
from pomp_jax.hosts.messages import (
  LISTEN_SECONDS,
  client,
  is_first,
  n_processes,
  own_index,
)

# Sync points asked for by this process, over all runs. JAX compares the numbers between
# processes, so they only ever increase: the step would decrease after a roll-back, or
# in the next run.
_sync_points = itertools.count(1)

# JAX's errors that are this process's alone, such as a full device: a restart would
# meet the same.
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
# Those that another process causes; ValueError where a collective's array is copied to
# the host.
OF_OTHERS = re.compile(
  r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED): "
)

_AGAIN_SECONDS = 0.1  # until the callback that could not raise has returned
# signals that follow each other within that time are the same request
_SAME_SECONDS = 5.0

_KEY = "pomp_jax_failed"
# long, since the coordinator keeps each wait that times out in memory
_WAIT_SECONDS = 3600.0
# longest time that the coordinator stays for the others to read the failure
_LINGER_SECONDS = 15.0
# for another process's reason to arrive after a failed collective
_REASON_SECONDS = 3.0
# for this process to find and report the same failure itself
_GRACE_SECONDS = LISTEN_SECONDS + 2.0
# without the coordinator the runtime would abort the last reader
_PARTING_SECONDS = 1.0

# Signals that end a process, and its exit status.
_STOPPING: dict[int, int] = {
  signal.SIGTERM: TryAgain.status,
  signal.SIGHUP: TryAgain.status,
  signal.SIGINT: 130,
}
_UNHEARD_SECONDS = 1.0  # for the main thread to handle a signal itself

_failing = threading.Event()
_finished = threading.Event()
_listener: threading.Thread | None = None


class Preempted(BaseException):
  """A run that was asked to stop and has saved its state; the message is one line.

  Derived from BaseException, since it may be raised anywhere and must not be handled as
  an error. If not all processes stop `together`, each by itself, the others have to be
  told.
  """

  def __init__(self, message: str, *, together: bool = False):
    super().__init__(message)
    self.together = together


class Failure(NamedTuple):
  """End of a process that the others learn of."""

  who: str  # process and host
  message: str  # one line
  status: int  # exit status


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


def watch_failures() -> None:
  """Starts a thread that ends this process when another one fails."""
  global _listener
  _listener = threading.Thread(target=_watch, name="failures", daemon=True)
  _listener.start()


def finish() -> None:
  """Waits until all processes have finished, and shuts JAX's runtime down.

  Does nothing in a process that runs alone. The listener of `watch_failures` waits
  within the runtime, and would abort the process if Python exited meanwhile, so it is
  waited for.
  """
  if client() is None:
    return
  _finished.set()
  # The coordinator may be gone already.
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    jax.distributed.shutdown()
  if _listener is not None:
    _listener.join(_LINGER_SECONDS)


def fail(message: str, status: int) -> NoReturn:
  """Ends this process and tells the others why; they end with the same status.

  Skips `sys.exit`: JAX would wait there for processes that may never arrive.

  Args:
    message: reason, one line.
    status: exit status.
  """
  _failing.set()
  store = client()
  if store is not None:
    who = f"process {own_index()} on {socket.gethostname()}"
    failure = json.dumps([who, message, status])
    # Another process may have failed first, or the coordinator may be gone.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      store.key_value_set(_KEY, failure)
  _exit(status)


def is_lost_contact(error: Exception) -> bool:
  """Whether an error is that of a collective whose other process may be gone."""
  if isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(_OWN):
    return True
  return isinstance(error, ValueError) and bool(OF_OTHERS.match(str(error)))


def fail_after_lost_contact(error: Exception) -> NoReturn:
  """Ends this process after a failed collective.

  The reason is that of another process which has failed, if one arrives in time.

  Args:
    error: error of the collective.
  """
  failure = _wait_for_failure(client(), _REASON_SECONDS)
  if failure is not None:
    _end_with(failure)
  line = " ".join(str(error).split())[:300]
  message = f"lost contact with another process ({line}); the same command resumes"
  who = f"process {own_index()} on {socket.gethostname()}"
  print(f"error: {who}: {message}", file=sys.stderr, flush=True)
  fail(message, TryAgain.status)


def _watch() -> None:
  """Waits for the failure of another process, and ends this one with it."""
  store = client()
  while client() is not None and not _finished.is_set():
    failure = _wait_for_failure(store, _WAIT_SECONDS)
    if failure is None:
      continue
    if not _failing.wait(_GRACE_SECONDS):
      _end_with(failure)
    return  # this process reports the same failure itself


def _wait_for_failure(store: Any, seconds: float) -> Failure | None:
  """Waits for the failure of a process.

  Args:
    store: key-value store of the coordinator.
    seconds: timeout.

  Returns:
    The failure; None after the timeout, or without a coordinator.
  """
  try:
    text = store.blocking_key_value_get(_KEY, int(1000 * seconds))
  except jax.errors.JaxRuntimeError as error:
    if "DEADLINE_EXCEEDED" not in str(error):
      # The coordinator is gone, or this process is shutting down: JAX's heartbeat
      # decides.
      _finished.wait(seconds)
    return None
  who, message, status = json.loads(text)
  return Failure(who, message, status)


def _end_with(failure: Failure) -> NoReturn:
  """Ends this process because another one has failed."""
  print(
    f"error: {failure.who} ended: {failure.message}. This process ends with it",
    file=sys.stderr,
    flush=True,
  )
  _exit(failure.status)


def _exit(status: int) -> NoReturn:
  """Ends this process without waiting for JAX's runtime.

  The coordinator waits until the others have read the failure, which they read through
  it.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  store = client()
  if store is not None:
    # The coordinator, or the process that it waits for, may be gone.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      if is_first():
        _wait_for_readers(store)
      else:
        store.key_value_set(f"{_KEY}_heard/{own_index()}", "")
  os._exit(status)


def _wait_for_readers(store: Any) -> None:
  """Waits until each other process has read the failure, fifteen seconds at most."""
  end = time.monotonic() + _LINGER_SECONDS
  for index in range(1, n_processes()):
    remaining_ms = max(1, int(1000 * (end - time.monotonic())))
    store.blocking_key_value_get(f"{_KEY}_heard/{index}", remaining_ms)
  time.sleep(_PARTING_SECONDS)
