"""Ending together: what ends one process ends the others too, with its reason, in a moment.

Without this the others would wait in a collective until heartbeats are missed. A process that is
killed can't say anything: then that wait is the bound.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from pomp_jax.hosts.start import TRY_AGAIN
from pomp_jax.hosts.talk import (
  LISTEN_SECONDS,
  client,
  is_first,
  n_processes,
  name_of_process,
  own_index,
)

_KEY = "pomp_jax_failed"
# A look ends when the runtime shuts down; each that ends without stays in the coordinator's memory.
_LOOK_SECONDS = 3600.0
# So long the coordinator stays, at most, for the others to hear from it; and so long one whose
# collective has failed listens for the reason.
_LINGER_SECONDS = 15.0
_REASON_SECONDS = 3.0
# So long this process has to find the same for itself, and to say it in its own words: the value
# in which it finds that may reach it `LISTEN_SECONDS` later.
_GRACE_SECONDS = LISTEN_SECONDS + 2.0
# So long the coordinator outlives the last that has heard.
_PARTING_SECONDS = 1.0

_failing = threading.Event()
_finished = threading.Event()
_listener: threading.Thread | None = None


def watch_failures() -> None:
  """Starts to listen for the failure of another process, which then ends this one too."""
  global _listener
  if client() is not None:
    _listener = threading.Thread(target=_watch, name="failures", daemon=True)
    _listener.start()


def finish() -> None:
  """Leaves the run when all have done their work: waits for the others, and stops listening.

  A thread that waits within the runtime while Python ends would abort the process.
  """
  if client() is None:
    return
  _finished.set()
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    jax.distributed.shutdown()
  if _listener is not None:
    _listener.join(_LINGER_SECONDS)


def fail(message: str, status: int) -> NoReturn:
  """Ends this process and tells the others why; they end with the same status.

  Not through `sys.exit`: JAX would wait there for processes that may never come.

  Args:
    message: what went wrong, one line; printed already.
    status: of this process.
  """
  _failing.set()
  store = client()
  if store is not None:
    who = name_of_process(own_index(), socket.gethostname())
    # It may be told already by another, or there may be nobody left to tell.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      store.key_value_set(_KEY, json.dumps([who, message, status]))
  _leave(status)


def fail_with_the_cause(error: Exception) -> NoReturn:
  """Ends this process after a collective that failed: another's reason, if one told any.

  Else a process was lost, and the same command may be started again.
  """
  found = _failure(client(), _REASON_SECONDS)
  if found is not None:
    _end_with(*found)
  line = " ".join(str(error).split())[:300]
  message = f"lost contact with another process ({line}); start the same command again to go on"
  who = name_of_process(own_index(), socket.gethostname())
  print(f"error: {who}: {message}", file=sys.stderr, flush=True)
  fail(message, TRY_AGAIN)


def _watch() -> None:
  store = client()
  while True:
    found = _failure(store, _LOOK_SECONDS)
    if found is not None and not _failing.wait(_GRACE_SECONDS):
      _end_with(*found)
    if found is not None or client() is None or _finished.is_set():
      return


def _failure(store: Any, seconds: float) -> tuple[str, str, int] | None:
  try:
    who, message, status = json.loads(store.blocking_key_value_get(_KEY, int(1000 * seconds)))
  except jax.errors.JaxRuntimeError as error:
    if "DEADLINE_EXCEEDED" not in str(error):
      # The coordinator is gone, or this process is shutting down: JAX's own heartbeat decides.
      _finished.wait(seconds)
    return None
  return who, message, status


def _end_with(who: str, message: str, status: int) -> NoReturn:
  print(f"error: {who} ended: {message}. This process ends with it", file=sys.stderr, flush=True)
  _leave(status)


def _leave(status: int) -> NoReturn:
  """Out, at once; but the coordinator last, as the others hear through it."""
  sys.stdout.flush()
  sys.stderr.flush()
  store = client()
  if store is not None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      if not is_first():
        store.key_value_set(f"{_KEY}_heard/{own_index()}", "")
      else:
        end = time.monotonic() + _LINGER_SECONDS
        for index in range(1, n_processes()):
          left = max(1, int(1000 * (end - time.monotonic())))
          store.blocking_key_value_get(f"{_KEY}_heard/{index}", left)
        # They have yet to end: without a coordinator the runtime would abort them.
        time.sleep(_PARTING_SECONDS)
  os._exit(status)
