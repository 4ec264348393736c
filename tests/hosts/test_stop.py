"""Stop requests: real signals, in one process. Two processes: test_start.py."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from unittest import mock

import jax
import pytest

from pomp_jax.hosts import Preempted, StopRequest, failure, is_lost_contact, stop


def send(number):
  os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers():
  # nohup ignores it.
  hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
  before = {number: signal.getsignal(number) for number in numbers}
  yield
  for number, handler in before.items():
    assert signal.getsignal(number) == handler
  signal.signal(signal.SIGHUP, hang_up)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_noted(number):
  stop = StopRequest()
  with stop:
    assert not stop.after_step()
    send(number)
    assert stop.after_step()
    # While it saves.
    send(signal.SIGTERM)
    send(signal.SIGHUP)
    assert stop.after_step()
  with stop:
    assert stop.after_step()
  assert not StopRequest().after_step()


def test_a_second_sigint_interrupts():
  with StopRequest() as stop:
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      send(signal.SIGINT)
    assert stop.after_step()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_that_a_shell_or_nohup_ignores_stay_ignored(number):
  before = signal.signal(number, signal.SIG_IGN)
  try:
    with StopRequest() as stop:
      send(number)
      assert not stop.after_step()
      send(signal.SIGTERM)
      assert stop.after_step()
    assert signal.getsignal(number) == signal.SIG_IGN
  finally:
    signal.signal(number, before)


def test_other_threads_handle_no_signals():
  answers = []

  def work():
    with StopRequest() as stop:
      answers.append(stop.after_step())

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert answers == [False]


def test_a_preemption_is_not_handled_as_an_error():
  with pytest.raises(Preempted):
    try:
      raise Preempted("asked to stop", together=True)
    except Exception:
      pytest.fail("taken for an error")
  copy = pickle.loads(pickle.dumps(Preempted("asked to stop", together=True)))
  assert (str(copy), copy.together) == ("asked to stop", True)


@pytest.mark.parametrize(
  ("kind", "message", "expected"),
  [
    (
      jax.errors.JaxRuntimeError,
      "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.",
      False,
    ),
    (
      jax.errors.JaxRuntimeError,
      "UNKNOWN: Gloo all-reduce failed: Connection closed",
      True,
    ),
    # As it comes where an array is copied to the host.
    (ValueError, "UNKNOWN: Gloo AllGather failed: Connection closed by peer", True),
    (ValueError, "operands could not be broadcast together", False),
    *(
      (jax.errors.JaxRuntimeError, f"{status}: of this process alone", False)
      for status in ("INVALID_ARGUMENT", "UNIMPLEMENTED")
    ),
    *(
      (ValueError, f"{status}: of another process", True)
      for status in (
        "UNAVAILABLE",
        "INTERNAL",
        "ABORTED",
        "CANCELLED",
        "DEADLINE_EXCEEDED",
      )
    ),
  ],
)
def test_too_little_memory_is_no_lost_process(kind, message, expected):
  assert is_lost_contact(kind(message)) == expected


@pytest.mark.parametrize(
  ("answer", "expected", "waits"),
  [
    ('["process 1 on b", "no room", 2]', ("process 1 on b", "no room", 2), []),
    (
      jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out"),
      None,
      [],
    ),
    # The coordinator is gone. Without a wait the thread would ask on and on.
    (jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed"), None, [2.5]),
  ],
)
def test_the_reason_of_another_process(monkeypatch, answer, expected, waits):
  found = []
  monkeypatch.setattr(failure, "_finished", mock.Mock(wait=found.append))
  store = mock.Mock()
  store.blocking_key_value_get.side_effect = [answer]
  assert failure._wait_for_failure(store, 2.5) == expected
  assert store.mock_calls == [mock.call.blocking_key_value_get(failure._KEY, 2500)]
  assert found == waits


_IN_A_LIBRARY = """
import hashlib, signal, sys, threading, time
from pomp_jax.hosts import ending_at_once

signal.signal(signal.SIGTERM, lambda *_: sys.exit("heard"))
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGINT, signal.default_int_handler)
with ending_at_once(lambda: print("removed", flush=True)):
  signal.raise_signal(signal.SIGUSR1)
  threading.Timer(0.5, print, ["here"], {"flush": True}).start()  # once it is in the call
  BUSY
"""


@pytest.mark.parametrize(
  ("busy", "number", "expected"),
  [
    # One call, in which Python handles no signal.
    ("hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)", signal.SIGTERM, 75),
    ("time.sleep(60)", signal.SIGTERM, 1),
  ],
)
def test_a_signal_within_a_library_ends_the_process(busy, number, expected):
  command = [sys.executable, "-c", _IN_A_LIBRARY.replace("BUSY", busy)]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  with subprocess.Popen(command, text=True, **pipes) as process:
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    out, lines = process.stdout.read(), process.stderr.read().splitlines()
  assert process.returncode == expected
  if expected == 1:
    assert (out, lines) == ("", ["heard"])
  else:
    assert out == "removed\n"
    assert lines == [f"error: stopped by {number.name}; nothing was written"]


@pytest.mark.parametrize(
  ("number", "status"),
  [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)],
)
def test_each_signal_that_ends_at_once(monkeypatch, capfd, number, status):
  """As the interpreter notes it for a main thread that is not free: a byte in a pipe."""
  ended = threading.Event()
  found = []

  def end(status):
    found.append(status)
    ended.set()

  monkeypatch.setattr(stop, "_UNHEARD_SECONDS", 0.0)
  monkeypatch.setattr(stop.os, "_exit", end)
  with stop.ending_at_once(lambda: found.append("last")):
    pipe = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(pipe)
    os.write(pipe, bytes([number]))
    assert ended.wait(30)
  assert found == ["last", status]
  line = f"error: stopped by {number.name}; nothing was written"
  assert capfd.readouterr().err.splitlines() == [line]
