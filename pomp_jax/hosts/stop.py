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
from typing import Any, NoReturn

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


def raise_if_preempted() -> None:
  """Raises `Preempted` if one of several processes was asked to stop; all call it
  equally often.

  A process that runs alone is stopped by the signal itself.
  """
  if client() is not None and multihost_utils.reached_preemption_sync_point(
    next(_sync_points)
  ):
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
    """Ignores signals from now on: the exit status is known, and the process ends
    anyway."""
    self._ending = True

  def _stop(self, number: int, frame: object) -> None:
    heard = not self._ending and time.monotonic() >= self._deaf_until
    self._deaf_until = time.monotonic() + _SAME_SECONDS
    if not heard:
      return
    self._number, name = number, signal.Signals(number).name
    self.received = Preempted(f"stopped by {name}; {self._remains()}")
    raise self.received

  def _at_unraisable(self, unraisable: Any) -> None:
    if self.received is None or unraisable.exc_value is not self.received:
      self._next_hook(unraisable)
      return
    self.received, self._deaf_until = None, 0.0
    again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), self._number))
    again.daemon = True
    again.start()


@contextlib.contextmanager
def ending_at_once(last: Callable[[], object]) -> Iterator[None]:
  """Ends the process about a second after a signal in its context, for what writes
  nothing.

  Python's handlers wait for the main thread, which a compiler may hold for minutes.
  Signals are those with such a handler: SIGTERM, SIGHUP, SIGINT. A main thread that is
  free handles them as usual; otherwise `last` is called, and nothing that is open is
  closed.
  """
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  left = threading.Event()

  def watch() -> None:
    while number := os.read(reader, 1):
      status = _STOPPING.get(number[0])
      if status is None:
        continue
      if left.wait(_UNHEARD_SECONDS):
        return
      last()
      line = (
        f"error: stopped by {signal.Signals(number[0]).name}; nothing was written\n"
      )
      with contextlib.suppress(OSError):
        os.write(2, line.encode())
      os._exit(status)

  watcher = threading.Thread(target=watch, daemon=True)
  watcher.start()
  try:
    yield
  finally:
    left.set()
    signal.set_wakeup_fd(before)
    os.close(writer)  # the watcher reads the end
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
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is threading.main_thread():
      for number in (
        signal.SIGINT,
        signal.SIGHUP,
        *([] if client() else [signal.SIGTERM]),
      ):
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
  """Waits until all processes have finished, and shuts the runtime down.

  A thread that waits within the runtime while Python exits would abort the process.
  """
  if client() is None:
    return
  _finished.set()
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    jax.distributed.shutdown()
  if _listener is not None:
    _listener.join(_LINGER_SECONDS)


def fail(message: str, status: int) -> NoReturn:
  """Ends this process and tells the others the reason, one line; they end with the same
  status.

  Skips `sys.exit`: JAX would wait there for processes that may never arrive.
  """
  _failing.set()
  if (store := client()) is not None:
    who = f"process {own_index()} on {socket.gethostname()}"
    # Another process may have failed first, or the coordinator may be gone.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      store.key_value_set(_KEY, json.dumps([who, message, status]))
  _exit(status)


def is_lost_contact(error: Exception) -> bool:
  """Whether an error is that of a collective whose other process may be gone."""
  if isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(_OWN):
    return True
  return isinstance(error, ValueError) and bool(OF_OTHERS.match(str(error)))


def fail_after_lost_contact(error: Exception) -> NoReturn:
  """Ends this process after a failed collective, with another process's reason if
  there is one."""
  failure = _wait_for_failure(client(), _REASON_SECONDS)
  if failure is not None:
    _end_with(*failure)
  line = " ".join(str(error).split())[:300]
  message = f"lost contact with another process ({line}); the same command resumes"
  who = f"process {own_index()} on {socket.gethostname()}"
  print(f"error: {who}: {message}", file=sys.stderr, flush=True)
  fail(message, TryAgain.status)


def _watch() -> None:
  store, failure = client(), None
  while failure is None and client() is not None and not _finished.is_set():
    failure = _wait_for_failure(store, _WAIT_SECONDS)
    if failure is not None and not _failing.wait(_GRACE_SECONDS):
      _end_with(*failure)


def _wait_for_failure(store: Any, seconds: float) -> tuple[str, str, int] | None:
  try:
    who, message, status = json.loads(
      store.blocking_key_value_get(_KEY, int(1000 * seconds))
    )
  except jax.errors.JaxRuntimeError as error:
    if "DEADLINE_EXCEEDED" not in str(error):
      # The coordinator is gone, or this process is shutting down: JAX's heartbeat
      # decides.
      _finished.wait(seconds)
    return None
  return who, message, status


def _end_with(who: str, message: str, status: int) -> NoReturn:
  print(
    f"error: {who} ended: {message}. This process ends with it",
    file=sys.stderr,
    flush=True,
  )
  _exit(status)


def _exit(status: int) -> NoReturn:
  """Exits at once; the coordinator exits last, since the others read the failure
  through it."""
  sys.stdout.flush()
  sys.stderr.flush()
  if (store := client()) is not None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      if not is_first():
        store.key_value_set(f"{_KEY}_heard/{own_index()}", "")
      else:
        end = time.monotonic() + _LINGER_SECONDS
        for index in range(1, n_processes()):
          left = max(1, int(1000 * (end - time.monotonic())))
          store.blocking_key_value_get(f"{_KEY}_heard/{index}", left)
        time.sleep(_PARTING_SECONDS)
  os._exit(status)
