"""TensorBoard scalars: written at once, read back over restarts."""

import resource
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax.files.events import EventWriter, read_scalars


def test_scalars_come_back(tmp_path):
  with EventWriter(tmp_path / "new") as events:
    events.write(1, loss=1.5, accuracy=np.float32(0.25))
    events.write(2, loss=jnp.float32(1.25), **{"eval/top1": 1})
  assert read_scalars(tmp_path / "new") == {
    "loss": ([1, 2], [1.5, 1.25]),
    "accuracy": ([1], [0.25]),
    "eval/top1": ([2], [1.0]),
  }


def test_a_restart_makes_later_steps_void(tmp_path):
  """Three starts within a second, each from before the end of the one before it."""
  with EventWriter(tmp_path) as events:
    for step in range(1, 9):
      events.write(step, loss=step, rate=0.5)
  with EventWriter(tmp_path, first_step=5) as events:
    for step in range(5, 8):
      events.write(step, loss=10 * step)
  with EventWriter(tmp_path, first_step=7) as events:
    events.write(7, loss=700)
  assert read_scalars(tmp_path) == {
    "loss": ([1, 2, 3, 4, 5, 6, 7], [1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 700.0]),
    "rate": ([1, 2, 3, 4], [0.5] * 4),
  }
  assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 3


def test_a_start_from_nothing_makes_all_void(tmp_path):
  with EventWriter(tmp_path) as events:
    events.write(0, loss=1)
    events.write(3, loss=1)
  EventWriter(tmp_path, first_step=0).close()
  assert read_scalars(tmp_path) == {}


def test_tensorboards_own_restart_event(tmp_path):
  """What tensorboardX's `SummaryWriter` writes for `purge_step` is understood as well."""
  tensorboardX = pytest.importorskip("tensorboardX")
  with EventWriter(tmp_path) as events:
    events.write(1, loss=1)
    events.write(2, loss=2)
  with tensorboardX.SummaryWriter(str(tmp_path), purge_step=2, filename_suffix=".x") as writer:
    writer.add_scalar("loss", 20, 2)
  assert read_scalars(tmp_path) == {"loss": ([1, 2], [1.0, 20.0])}


def test_files_cut_short_or_damaged_are_read_as_far_as_they_go(tmp_path):
  with EventWriter(tmp_path) as events:
    for step in range(5):
      events.write(step, loss=step)
  (path,) = tmp_path.iterdir()
  whole = path.read_bytes()
  for length in range(len(whole)):
    path.write_bytes(whole[:length])
    steps, values = read_scalars(tmp_path).get("loss", ([], []))
    assert steps == values == list(range(len(steps)))
  path.write_bytes(whole[:-5] + b"\xff" + whole[-4:])
  read_scalars(tmp_path)


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
  real = time.time
  for start, (shift, first) in enumerate([(0, 1), (-3600, 5), (10**8, 7), (-(10**9), 8)]):
    monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
    with EventWriter(tmp_path, first) as events:
      for step in range(first, 10):
        events.write(step, loss=start)
  assert read_scalars(tmp_path) == {"loss": (list(range(1, 10)), [0.0] * 4 + [1, 1, 2, 3, 3])}


def test_what_a_full_disk_does_not_take_is_left_out(tmp_path, caplog):
  """A limit on the size of files stands in for the disk's."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with EventWriter(tmp_path) as events:
    events.write(1, loss=1)
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
      events.write(2, loss=2)
      events.write(3, loss=3)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    events.write(4, loss=4)
  assert read_scalars(tmp_path)["loss"][0] in ([1, 4], [1, 2, 4])
  (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("pomp_jax")]
  assert line.startswith(f"{tmp_path}: scalars can't be written and are left out from step 2 on (")


def test_a_killed_process_loses_nothing(tmp_path):
  program = """
import os, signal, sys
from pomp_jax.files.events import EventWriter
events = EventWriter(sys.argv[1])
for step in range(100):
  events.write(step, loss=step)
os.kill(os.getpid(), signal.SIGKILL)
"""
  done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
  assert done.returncode == -signal.SIGKILL
  assert read_scalars(tmp_path)["loss"][0] == list(range(100))
