"""Progress: few plain lines in a log, a bar on a terminal, a fair estimate of the time left."""

import io
import threading

import numpy as np
import pytest

from pomp_jax import hosts
from pomp_jax.files import progress as progress_module
from pomp_jax.files.progress import Progress, steps_of, waiting


class Clock:
  """A clock that the test moves."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


def run(total, seconds_a_step, first_seconds=0.0, initial=0):
  """The lines of a whole run."""
  clock, stream = Clock(), io.StringIO()
  with Progress(total, initial, "training", stream, clock=clock) as progress:
    for step in range(initial + 1, total + 1):
      clock.now += first_seconds if step == initial + 1 and first_seconds else seconds_a_step
      progress.update(step, loss=np.float32(1 / 3))
  return stream.getvalue().splitlines()


def test_a_line_says_what_is_needed():
  lines = run(1000, 0.5)
  assert lines[0] == "training   20/1000 (2%), 2 steps/s, 8:10 left, loss=0.3333"
  assert lines[1] == "training   70/1000 (7%), 2 steps/s, 7:45 left, loss=0.3333"
  assert lines[-1] == "training 1000/1000 (100%), 2 steps/s, loss=0.3333"


def test_the_number_of_lines():
  assert len(run(100, 0.001)) == 1  # only the end
  assert 15 <= len(run(1000, 0.3)) <= 21  # five minutes
  assert 58 <= len(run(3600, 1.0)) <= 61  # an hour: one a minute


def test_the_first_step_does_not_count_for_the_speed():
  """It compiles."""
  lines = run(100, 1.0, first_seconds=500.0)
  assert lines[1].startswith("training  11/100 (11%), 1 steps/s, 1:29 left")


def test_reports_that_come_together_give_no_speed():
  """A loop that reads its metrics a window late has the last two windows at its end."""
  clock, stream = Clock(), io.StringIO()
  with Progress(20, 0, "training", stream, clock=clock) as progress:
    for step, now in ((10, 14.0), (20, 14.002)):
      clock.now = now
      progress.update(step)
  assert stream.getvalue().splitlines()[-1] == "training 20/20 (100%)"


def test_steps_of_an_earlier_start_do_not_count_for_the_speed():
  lines = run(1000, 1.0, initial=900)
  assert lines[0].startswith("training  910/1000 (91%), 1 steps/s, 1:30 left")


def test_a_single_line_has_no_speed():
  assert run(1, 1.0) == ["training 1/1 (100%), loss=0.3333"]


def test_nothing_to_do():
  assert run(5, 1.0, initial=5) == []


def test_hours():
  clock, stream = Clock(), io.StringIO()
  with Progress(10_000, stream=stream, clock=clock) as progress:
    progress.update(1)
    clock.now += 60
    progress.update(61)
  assert stream.getvalue() == "61/10000 (0%), 1 steps/s, 2:45:39 left\n"


def test_quiet():
  stream = Terminal()
  with Progress(10, stream=stream, quiet=True) as progress:
    progress.update(10, loss=1.0)
  assert stream.getvalue() == ""


def test_a_bar_on_a_terminal():
  stream = Terminal()
  with Progress(10, 4, "training", stream) as progress:
    progress.update(10, loss=0.25)
  assert "training: 100%" in stream.getvalue()
  assert "10/10" in stream.getvalue()
  assert "loss=0.25" in stream.getvalue()


def opened(total, **arguments):
  """A progress in a log, its clock and what it wrote."""
  clock, stream = Clock(), io.StringIO()
  progress = Progress(total, stream=stream, clock=clock, **arguments)
  return progress, clock, lambda: stream.getvalue().splitlines()


def test_what_ends_soon_says_nothing_where_it_is_brief():
  progress, clock, lines = opened(10, description="images", unit="batches", brief=True)
  for step in range(1, 11):
    clock.now += 0.5
    progress.update(step)
  progress.close()
  assert lines() == []


def test_what_takes_longer_than_ten_seconds_speaks_where_it_is_brief():
  progress, clock, lines = opened(10, description="images", unit="batches", brief=True)
  for step in range(1, 11):
    clock.now += 4
    progress.update(step)
  progress.close()
  assert lines() == [
    "images  3/10 (30%), 0.25 batches/s, 0:28 left",
    "images  6/10 (60%), 0.25 batches/s, 0:16 left",
    "images  9/10 (90%), 0.25 batches/s, 0:04 left",
    "images 10/10 (100%), 0.25 batches/s",
  ]


def test_work_that_does_not_report_shows_that_it_lives():
  progress, clock, lines = opened(None, description="compiling", brief=True)
  told = []
  for second in range(500):
    clock.now = 100.0 + second
    progress.look()
    if len(lines()) > len(told):
      told.append(second)
  progress.close()
  assert told == [10, 70, 190, 430]
  assert lines()[0] == "compiling, for 0:10"


def test_of_two_inside_one_another_the_inner_one_speaks():
  outer, clock, lines = opened(2, description="sets", unit="sets")
  inner = Progress(
    4, description="images", unit="batches", brief=True, stream=outer._stream, clock=clock
  )
  clock.now += 30
  outer.look()
  assert lines() == []
  inner.update(2)
  inner.close()
  assert lines() == ["images 2/4 (50%), for 0:30"]
  outer.update(1)
  outer.look()
  assert len(lines()) == 1, "something was said just now"
  clock.now += 11
  outer.look()
  assert lines()[1:] == ["sets 1/2 (50%), for 0:41"]
  outer.close()
  assert not progress_module._open


def test_a_loop_that_ends_early_leaves_nothing_open(capsys, monkeypatch):
  monkeypatch.setattr(progress_module, "_LINE_SECONDS", 0.0)

  def some():
    for i in steps_of(range(5), "images", "batches"):
      if i == 2:
        return
      with waiting("a part"):
        pass

  some()
  assert not progress_module._open
  lines = capsys.readouterr().err.splitlines()
  assert [line.split(",")[0] for line in lines] == ["images 1/5 (20%)", "images 2/5 (40%)"]


def test_an_iterator_without_a_length_is_not_counted_to_the_end(capsys, monkeypatch):
  monkeypatch.setattr(progress_module, "_LINE_SECONDS", 0.0)
  assert list(steps_of(iter("ab"), "letters", "letters")) == ["a", "b"]
  assert capsys.readouterr().err.splitlines()[0] == "letters, for 0:00"


@pytest.mark.parametrize("first", [True, False])
def test_the_first_process_alone_speaks(first, monkeypatch):
  monkeypatch.setattr(hosts, "is_first", lambda: first)
  progress, clock, lines = opened(10)
  clock.now += 20
  progress.update(5)
  progress.look()
  progress.close()
  assert bool(lines()) == first


def test_silence_is_looked_for_on_the_real_clock(capsys, monkeypatch):
  monkeypatch.setattr(progress_module, "_LINE_SECONDS", 0.0)
  spoken = threading.Event()
  monkeypatch.setattr(Progress, "_speak", lambda self, now, figures: spoken.set())
  with waiting("compiling"):
    assert spoken.wait(60)
