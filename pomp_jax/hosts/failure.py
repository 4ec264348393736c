"""The failure of a process, which ends the others within seconds.

A process that fails leaves its reason with the coordinator, and the others end with it.
Otherwise they would wait in a collective until the heartbeat timeout, as they do when
one is killed.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from typing import Any, NamedTuple, NoReturn

import jax

from pomp_jax.errors import TryAgain
from pomp_jax.hosts.messages import (
  LISTEN_SECONDS,
  client,
  is_first,
  n_processes,
  own_index,
)

# JAX's errors that are this process's alone, such as a full device: a restart would
# meet the same.
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
# Those that another process causes; ValueError where a collective's array is copied to
# the host.
OF_OTHERS = re.compile(
  r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED): "
)

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

_failing = threading.Event()
_finished = threading.Event()
_listener: threading.Thread | None = None


class Failure(NamedTuple):
  """End of a process that the others learn of."""

  who: str  # process and host
  message: str  # one line
  status: int  # exit status


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
