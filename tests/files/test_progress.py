"""Progress: few plain lines in a log, a bar on a terminal, a fair estimate of the time left."""

import io

import numpy as np

from pomp_jax.files.progress import Progress


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
  assert lines[0] == "training   50/1000 (5%), 2 steps/s, 7:55 left, loss=0.3333"
  assert lines[-1] == "training 1000/1000 (100%), 2 steps/s, loss=0.3333"


def test_the_number_of_lines():
  assert len(run(100, 0.001)) == 1  # only the end
  assert 15 <= len(run(1000, 0.3)) <= 21  # five minutes
  assert 58 <= len(run(3600, 1.0)) <= 61  # an hour: one a minute


def test_the_first_step_does_not_count_for_the_speed():
  """It compiles."""
  lines = run(100, 1.0, first_seconds=500.0)
  assert lines[1].startswith("training  11/100 (11%), 1 steps/s, 1:29 left")


def test_steps_of_an_earlier_start_do_not_count_for_the_speed():
  lines = run(1000, 1.0, initial=900)
  assert lines[0].startswith("training  950/1000 (95%), 1 steps/s, 0:50 left")


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
