"""Progress in a log and on a terminal; standard streams on a disk that is full (/dev/full)."""

import io
import logging
import pathlib
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

from pomp_jax import hosts
from pomp_jax.files import terminal as module
from pomp_jax.files.terminal import Progress, log_line, steps_of, waiting

_LINE = r"[0-2]\d:[0-5]\d:[0-5]\d  (\S.*)"
_METRICS = "loss 0.3333  grad_norm 2"
_UNITS = "accuracy 87.5%  data wait 4%"


class Clock:
  """A clock that the test moves."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(module, "_now", clock)
  monkeypatch.setattr(module, "_start_thread", lambda: None)
  return clock


@pytest.fixture
def lines(capsys):
  """Lines printed since the last call, without their times."""

  def since_last_call():
    found = [re.fullmatch(_LINE, line) for line in capsys.readouterr().err.splitlines()]
    return [match[1] for match in found]

  return since_last_call


def use_terminal(monkeypatch):
  """Makes standard error a terminal, of which every update is seen."""

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  stream = Terminal()
  monkeypatch.setattr(sys, "stderr", stream)
  monkeypatch.setattr(module, "_LINE_SECONDS", 0.0)
  return stream


def run(clock, total, seconds, first=None, initial=0):
  """Takes steps of some seconds each; the first one may take longer."""
  with Progress(total, initial, "step") as progress:
    for step in range(initial + 1, total + 1):
      clock.now += first if first and step == initial + 1 else seconds
      progress.update(step, {"grad_norm": 2}, loss=np.float32(1 / 3))


@pytest.mark.parametrize(
  ("arguments", "number", "expected"),
  [
    ((1000, 0.5), 0, f"step 20/1000  {_METRICS}  2 steps/s  eta 8:10"),
    ((1000, 0.5), 1, f"step 40/1000  {_METRICS}  2 steps/s  eta 8:00"),
    ((1000, 0.5), -1, f"step 1000/1000  {_METRICS}  2 steps/s"),
    # The first step compiles, and does not count for the speed.
    ((100, 1.0, 50.0), 1, f"step 11/100  {_METRICS}  1 steps/s  eta 1:29"),
    # Nor do the steps of an earlier start.
    ((1000, 1.0, None, 900), 0, f"step 910/1000  {_METRICS}  1 steps/s  eta 1:30"),
  ],
)
def test_a_line_has_metrics_speed_and_remaining_time(clock, lines, arguments, number, expected):
  run(clock, *arguments)
  assert lines()[number] == expected


@pytest.mark.parametrize(
  ("arguments", "least", "most"),
  [((100, 0.001), 1, 1), ((1000, 0.3), 16, 22), ((3600, 1.0), 56, 80), ((5, 1.0, None, 5), 0, 0)],
)
def test_the_number_of_lines(clock, lines, arguments, least, most):
  run(clock, *arguments)
  assert least <= len(lines()) <= most


def test_a_line_has_the_local_time_and_100_columns_of_whole_words():
  assert re.fullmatch(_LINE, log_line("step 1/2  loss 0.5"))[1] == "step 1/2  loss 0.5"
  words = [f"word{i}" for i in range(60)]
  first, *others = log_line(" ".join(words)).splitlines()
  assert re.fullmatch(_LINE, first) and len(others) == 4
  assert all(80 < len(line) <= 100 for line in [first, *others[:-1]])
  assert all(re.match(r" {10}\S", line) for line in others)
  assert " ".join([first, *others]).split()[1:] == words
  # Lines of a message have one time.
  first, second, third = log_line("a\n  b\n\x1b[31mc").splitlines()
  assert re.fullmatch(_LINE, first)[1] == "a"
  assert (second, third) == (" " * 12 + "b", " " * 10 + "?[31mc")


def test_long_paths_are_cut_in_the_middle_unless_they_are_last():
  path = "/data/" + "x" * 200 + "/runs/demo"
  (line,) = log_line(f"{path}: found in {path}", whole=False).splitlines()[:1]
  cut = re.fullmatch(_LINE, line)[1].split(":")[0]
  assert cut.startswith("/data/") and cut.endswith("/runs/demo") and len(cut) < 60
  assert log_line(f"{path}: found in {path}", whole=False).endswith(f"\n{' ' * 10}{path}")
  assert log_line(f"{path}: found").split()[1] == f"{path}:"


def test_a_warning_keeps_its_path(capsys):
  path = "/data/" + "x" * 200
  ours = logging.getLogger("pomp_jax")
  before = ours.handlers, ours.propagate, ours.level
  try:
    module.set_up_logging()
    ours.warning("%s: damaged", path)
    ours.info("%s: found", path)
  finally:
    ours.handlers, ours.propagate = before[:2]
    ours.setLevel(before[2])
  warning, damaged, found = capsys.readouterr().out.splitlines()
  assert re.fullmatch(_LINE, warning)[1] == f"{path}:" and damaged.split() == ["damaged"]
  assert re.fullmatch(_LINE, found) and found.endswith(": found") and len(found) < 100


@pytest.mark.parametrize(
  ("total", "reports", "last"),
  [
    (20, [(10, 15.0)], f"step 10/20  {_UNITS}  running for 0:15"),
    # A loop that reads its metrics a window late reports the last two at its end: no speed.
    (20, [(10, 14.0), (20, 0.002)], f"step 20/20  {_UNITS}"),
    (10_000, [(1, 60), (61, 60)], f"step 61/10000  {_UNITS}  1 steps/s  eta 2:45:39"),
  ],
)
def test_other_reports(clock, lines, total, reports, last):
  with Progress(total, description="step") as progress:
    for step, seconds in reports:
      clock.now += seconds
      progress.update(step, {"data wait": "4%"}, accuracy="87.5%")
  assert lines()[-1] == last


def test_a_terminal_gets_a_bar(monkeypatch):
  stream = use_terminal(monkeypatch)
  with Progress(10, 4, "training") as progress:
    progress.update(10, {"grad_norm": 1}, loss=0.25)
  text = stream.getvalue()
  assert "training: 100%" in text and "10/10" in text and "loss=0.25" in text
  assert "grad_norm" not in text


def test_a_bar_of_work_that_can_not_be_counted(monkeypatch):
  stream = use_terminal(monkeypatch)
  with waiting("compiling train step") as progress:
    progress.tick()
  assert "compiling train step  running for 00:00" in stream.getvalue()
  assert "?" not in stream.getvalue()


@pytest.mark.parametrize(("seconds", "shown"), [(0.5, []), (4, [3, 6, 9, 10])])
def test_brief_work_is_shown_once_it_takes_ten_seconds(clock, lines, seconds, shown):
  with Progress(10, description="images", unit="batches", brief=True) as progress:
    for step in range(1, 11):
      clock.now += seconds
      progress.update(step)
  found = lines()
  assert [int(line.split()[1].partition("/")[0]) for line in found] == shown
  if found:
    assert found[1] == "images 6/10  0.25 batches/s  eta 0:16"


@pytest.mark.parametrize(
  ("options", "shown"), [({}, [10, 20, 30]), ({"elapsed": 1.0, "after": 2.0}, [2, 12, 22])]
)
def test_work_that_does_not_report(clock, lines, options, shown):
  """Its first line comes early if that is asked for."""
  with waiting("compiling", **options) as progress:
    for _ in range(30):
      clock.now += 1
      progress.tick()
  assert lines() == [f"compiling  running for 0:{second:02}" for second in shown]


def test_the_inner_one_is_shown(clock, lines):
  with Progress(2, description="sets", unit="sets") as outer:
    clock.now += 9
    with Progress(4, description="images", brief=True) as inner:
      clock.now += 11
      inner.update(2)
    outer.update(1)
    assert lines() == ["images 2/4  running for 0:11"]
    clock.now += 11
    outer.tick()
    assert lines() == ["sets 1/2  running for 0:31"]
  assert not module._open


def test_a_loop_that_ends_early_leaves_nothing_open(capsys, monkeypatch):
  monkeypatch.setattr(module, "_LINE_SECONDS", 0.0)

  def some():
    for i in steps_of(range(5), "images", "batches"):
      if i == 2:
        return
      with waiting("a part"):
        pass

  some()
  assert not module._open
  shown = [line.split("  ")[1] for line in capsys.readouterr().err.splitlines()]
  assert [line for line in shown if line != "a part"] == ["images 1/5", "images 2/5"]
  # An iterator without a length.
  assert list(steps_of(iter("ab"), "letters", "letters")) == ["a", "b"]
  assert "  letters  " in capsys.readouterr().err.splitlines()[0]


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
_LINES = "line 0\nline 1\nline 2\n"
_ENDS = "warning: <stdout> can't be written (No space left on device); output ends\n"


@pytest.mark.parametrize(
  ("full", "stdout", "stderr"),
  [
    ("", f"{_LINES}end\n", _LINES),
    ("stdout", None, _ENDS + _LINES),
    ("stderr", f"{_LINES}end\n", None),
    ("stdout stderr", None, None),
  ],
)
def test_a_program_ends_well_whatever_happens_to_its_log(full, stdout, stderr):
  root = pathlib.Path(__file__).parents[2]
  with open("/dev/full", "w") as device:
    pipes = {name: device if name in full else subprocess.PIPE for name in ("stdout", "stderr")}
    done = subprocess.run([sys.executable, "-c", _PROGRAM], cwd=root, text=True, **pipes)
  assert (done.returncode, done.stdout, done.stderr) == (0, stdout, stderr)
