"""The failure of a process, which ends the others within seconds.

A process that fails leaves its reason with the coordinator, and the others end with it.
Otherwise the others would wait in a collective until the heartbeat timeout, as they do
when a process is killed.
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

# Prefixes of JAX's errors that this process causes itself, such as a full device. A
# restart would meet the same error.
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
# Prefixes of JAX's errors that another process causes. JAX raises a ValueError with
# such a prefix when it copies the array of a collective to the host.
OF_OTHERS = re.compile(
  r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED): "
)

_KEY = "pomp_jax_failed"
# Timeout of one wait of the listener. It is long because the coordinator keeps each
# wait that times out in memory.
_WAIT_SECONDS = 3600.0
# Longest time that the coordinator stays alive for the others to read the failure.
_LINGER_SECONDS = 15.0
# Wait for another process's reason after a failed collective.
_REASON_SECONDS = 3.0
# Time for this process to find and report the same failure itself.
_GRACE_SECONDS = LISTEN_SECONDS + 2.0
# Pause before the coordinator exits. JAX's runtime would abort the last reader if the
# coordinator were gone at once.
_PARTING_SECONDS = 1.0

_failing = threading.Event()
_finished = threading.Event()
_listener: threading.Thread | None = None


class Failure(NamedTuple):
  """Failure that ended a process, as the others learn of it."""

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

  Does nothing in a process that runs alone. Joins the listener of `watch_failures`: it
  waits within the runtime, and would abort the process if Python exited meanwhile.
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

  Does not call `sys.exit`, in which JAX would wait for processes that may never arrive.

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
  """Whether an error may come from a collective that has lost another process."""
  if isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(_OWN):
    return True
  return isinstance(error, ValueError) and bool(OF_OTHERS.match(str(error)))


def fail_after_lost_contact(error: Exception) -> NoReturn:
  """Ends this process after a failed collective.

  If another process's failure arrives in time, that failure is the reason.

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
      # The coordinator is gone, or this process is shutting down. Do not end the
      # process here: JAX's heartbeat does if the coordinator is gone.
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

  Process 0 hosts the coordinator, through which the others read the failure, so it
  first waits until they have.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  store = client()
  if store is not None:
    # The coordinator, or a process that it waits for, may be gone.
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
