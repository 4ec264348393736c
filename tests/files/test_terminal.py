"""Progress in a log and on a terminal; standard streams on a disk that is full
(/dev/full)."""

import io
import logging
import pathlib
import re
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import tqdm.std

from pomp_jax import hosts
from pomp_jax.files import terminal as module
from pomp_jax.files.terminal import Progress, control_character, steps_of, waiting

_LINE = r"[0-2]\d:[0-5]\d:[0-5]\d  (\S.*)"
_METRICS = "loss 0.3333  grad_norm 2"


@pytest.fixture
def clock(monkeypatch):
  clock = types.SimpleNamespace(now=100.0)
  monkeypatch.setattr(tqdm.std, "time", lambda: clock.now)
  local = types.SimpleNamespace(
    time=lambda: clock.now, strftime=time.strftime, sleep=time.sleep
  )
  monkeypatch.setattr(module, "time", local)
  monkeypatch.setattr(module, "_start_thread", lambda: None)
  return clock


@pytest.fixture
def lines(capsys):
  """Lines printed since the last call, without their times."""

  def since_last_call():
    found = [re.fullmatch(_LINE, line) for line in capsys.readouterr().err.splitlines()]
    return [match[1] for match in found]

  return since_last_call


def run(clock, total, seconds, first=None, initial=0):
  """Takes steps of some seconds each; the first one may take longer."""
  with Progress(total, initial, "step") as progress:
    for step in range(initial + 1, total + 1):
      clock.now += first if first and step == initial + 1 else seconds
      progress.update(step, loss=np.float32(1 / 3), grad_norm=2)


@pytest.mark.parametrize(
  ("arguments", "number", "expected"),
  [
    ((1000, 0.5), 0, f"step 20/1000  {_METRICS}  2 steps/s  eta 08:09"),
    ((1000, 0.5), -1, f"step 1000/1000  {_METRICS}  2 steps/s  eta 00:00"),
    # The first step compiles, and hardly counts for the speed.
    ((100, 1.0, 50.0), -1, f"step 100/100  {_METRICS}  1 steps/s  eta 00:00"),
    # Steps of an earlier start don't count.
    ((1000, 1.0, None, 900), 0, f"step 910/1000  {_METRICS}  1.02 steps/s  eta 01:28"),
  ],
)
def test_a_line_has_metrics_speed_and_remaining_time(
  clock, lines, arguments, number, expected
):
  run(clock, *arguments)
  assert lines()[number] == expected


def test_slow_work_has_seconds_for_each(clock, lines):
  """And its number from the start; what does not compile first has a speed after one
  report."""
  with Progress(24, 8, "cells", "cells", warmup=False) as progress:
    for seconds, done in ((20, 0), (140, 16), (160, 24)):
      clock.now += seconds
      if done:
        progress.update(done)
      progress.tick()
  assert lines() == [
    "cells 8/24  running for 00:20",
    "cells 16/24  20 s/cell  eta 02:40",
    "cells 24/24  20 s/cell  eta 00:00",
  ]
  with Progress(2, 0, "pictures", "batches of 8 images", warmup=False) as progress:
    clock.now += 30
    progress.update(1)
  assert lines() == ["pictures 1/2  30 s/batch of 8 images  eta 00:30"]


def test_a_message_is_printed_once_whatever_the_root_logger_prints(capsys):
  """Such as a notebook's."""
  ours, root = logging.getLogger("pomp_jax"), logging.getLogger()
  before = ours.handlers, ours.propagate, ours.level
  handler = logging.StreamHandler(sys.stdout)
  root.addHandler(handler)
  try:
    module.set_up_logging()
    logging.getLogger("pomp_jax.train").info("one line")
    logging.getLogger("pomp_jax.train").debug("no line")
  finally:
    root.removeHandler(handler)
    ours.handlers, ours.propagate, level = before
    ours.setLevel(level)
  (line,) = capsys.readouterr().out.splitlines()
  assert re.fullmatch(r"\d\d:\d\d:\d\d  one line", line)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("a b, \u00fc\U0001f600", None),
    ("a\x1b[1m", "U+001B"),
    ("\u2028b\n", "U+2028"),
    ("\u2029", "U+2029"),
  ],
)
def test_what_would_end_a_line_or_control_a_terminal_is_found(text, expected):
  assert control_character(text) == expected


def test_messages_are_lines_that_a_terminal_can_show(monkeypatch):
  monkeypatch.setattr(module.time, "strftime", lambda form: "12:34:56")
  long = "x" * 400
  assert module.log_line(f"a\x1b[1m\n{long}") == f"12:34:56  a?[1m\n          {long}"
  assert module.one_line(ValueError(f"a\n  b {long}")) == f"a b {long}"[:300]
  assert module.one_line(f"a\tb\x07{long}", None) == f"a b?{long}"
  assert module.quoted("a'\n") == repr("a'\n") and module.quoted("x" * 80) == repr(
    "x" * 80
  )
  assert module.quoted("x" * 81) == f"{'x' * 80!r}... (81 characters)"
  assert module.is_unicode("\U0001f600") and not module.is_unicode("a\udcff")
  assert not module.is_unicode("\ud800")


def test_a_terminal_gets_a_bar(monkeypatch):
  stream = io.StringIO()
  stream.isatty = lambda: True
  monkeypatch.setattr(sys, "stderr", stream)
  monkeypatch.setattr(module, "_LINE_SECONDS", 0.0)
  with Progress(10, 4, "training") as progress:
    progress.update(10, loss=0.25)
  text = stream.getvalue()
  assert "training: 100%" in text and "10/10" in text and "loss=0.25" in text


@pytest.mark.parametrize("early", [False, True])
def test_brief_work_leaves_nothing_on_a_terminal(clock, monkeypatch, early):
  """Shown after two seconds, or by tqdm after a log line, and cleared at its end."""
  stream = io.StringIO()
  stream.isatty = lambda: True
  monkeypatch.setattr(sys, "stderr", stream)
  shown = []
  with waiting("loading") as progress:
    if early:
      progress._bar.refresh()
    for _ in range(1 if early else 3):
      clock.now += 0.9
      progress.tick()
      shown.append("loading" in stream.getvalue())
  assert shown == ([True] if early else [False, False, True])
  assert re.search(r"\r +\r$", stream.getvalue())


@pytest.mark.parametrize(
  ("options", "shown"), [({}, [10, 20, 30]), ({"after": 2.0}, [2, 12, 22])]
)
def test_work_that_does_not_report(clock, lines, options, shown):
  with waiting("compiling", **options) as progress:
    for _ in range(30):
      clock.now += 1
      progress.tick()
  assert lines() == [f"compiling  running for 00:{second:02}" for second in shown]


def test_a_loop_that_ends_early_leaves_nothing_open():
  def some():
    for i in steps_of(range(5), "images", "batches"):
      if i == 2:
        return
      with waiting("a part"):
        pass

  some()
  assert not module._open
  # An iterator without a length.
  assert list(steps_of(iter("ab"), "letters", "letters")) == ["a", "b"]


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_process_prints(clock, lines, first, monkeypatch):
  monkeypatch.setattr(hosts, "is_first", lambda: first)
  with Progress(10) as progress:
    clock.now += 20
    progress.update(5)
    progress.tick()
    progress.update(10)
  assert len(lines()) == 2 * first


def test_the_thread_ticks(monkeypatch):
  ticked = threading.Event()
  monkeypatch.setattr(Progress, "tick", lambda self: ticked.set())
  with waiting("compiling"):
    assert ticked.wait(60)


_PROGRAM = """
import sys
from pomp_jax.files.terminal import Output
sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)
for number in range(3):
  print("line", number, flush=True)
  print("line", number, file=sys.stderr, flush=True)
print("end")
"""
_NATIVE = """
import os, sys
from pomp_jax.files.terminal import Output, drop_native_output
sys.stdout = Output(sys.stdout)
print("before")
drop_native_output()
os.write(1, b"[Gloo] Rank 0 is connected to 0 peer ranks")
print("after")
"""


def test_native_libraries_write_nothing_between_our_lines():
  root = pathlib.Path(__file__).parents[2]
  command = [sys.executable, "-c", _NATIVE]
  done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout) == (0, "before\nafter\n"), done.stderr


_LINES = "line 0\nline 1\nline 2\n"
_ENDS = "warning: <stdout> can't be written (No space left on device); output ends\n"


@pytest.mark.parametrize(
  ("full", "stdout", "stderr"),
  [("stdout", None, _ENDS + _LINES), ("stderr", f"{_LINES}end\n", None)],
)
def test_a_program_ends_well_whatever_happens_to_its_log(full, stdout, stderr):
  root = pathlib.Path(__file__).parents[2]
  with open("/dev/full", "w") as device:
    pipes = {
      name: device if name in full else subprocess.PIPE for name in ("stdout", "stderr")
    }
    done = subprocess.run(
      [sys.executable, "-c", _PROGRAM], cwd=root, text=True, **pipes
    )
  assert (done.returncode, done.stdout, done.stderr) == (0, stdout, stderr)
