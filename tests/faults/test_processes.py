"""Faults of one of two processes that train together, in a local folder and in buckets.

tests/hosts/test_start.py has the same of jobs that do nothing, for the first tier.
"""

import contextlib
import os
import pathlib
import re
import signal
import time

import numpy as np
import pytest

from pomp_jax.files.checkpoints import read_checkpoints
from pomp_jax.files.paths import exists
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from tests.support import stores
from tests.support.processes import Processes, small_demo, wait_until

pytestmark = pytest.mark.slow("trainings of two processes, each started twice")

STEPS, EVERY = 120, 20  # long enough for a fault in the middle
# images per split: the evaluation must outlast the notice of the signal
EVALUATED = 4096
HEARTBEAT_SECONDS = 10
# Time in which a process ends after the other: JAX's heartbeat, and what ending takes.
BOUND_SECONDS = 2 * HEARTBEAT_SECONDS + 15
TRY_AGAIN = 75


def start(folder: str | os.PathLike, **changes) -> Processes:
  fields = {"steps": STEPS, "checkpoint.every": EVERY, "log.every": 1} | changes
  command = ["-m", "pomp_jax.main", *small_demo(**fields), f"--workdir={folder}"]
  return Processes(2, [*command, f"--heartbeat_timeout={HEARTBEAT_SECONDS}"], devices=2)


def finished(folder: str | os.PathLike, **changes) -> str:
  """Runs both to the end; what the first one printed."""
  with start(folder, **changes) as run:
    return run.succeed()[0]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
  folder = tmp_path_factory.mktemp("two") / "run"
  finished(folder)
  return load_prompt(folder / "prompt.npz").context


@pytest.mark.parametrize(
  ("number", "index", "place"),
  [("SIGTERM", 0, ""), ("SIGKILL", 1, ""), ("SIGSTOP", 0, ""), ("SIGKILL", 0, "gs")],
)
def test_a_signal_to_one_of_two(expected, tmp_path, lost, number, index, place):
  with contextlib.ExitStack() as stack:
    folder = str(tmp_path / "run")
    if place:
      folder = stack.enter_context(stores.running(place))[place].url("runs/two")
    steps = interrupted(folder, getattr(signal, number), index)
    output = finished(folder)
    context = load_prompt(f"{folder}/prompt.npz").context
  first = re.search(r"the checkpoint of step (\d+)", output)
  np.testing.assert_array_equal(context, expected)
  lost(
    f"{place} {number} to process {index} of 2", steps - (int(first[1]) if first else 0)
  )


def interrupted(folder: str, number: int, index: int) -> int:
  """Sends one of the two a signal between two checkpoints; the last step before it."""
  marker = "commit_success.txt" if "://" in folder else "meta"
  with start(folder) as run:
    victim, other = run.processes[index], run.processes[1 - index]
    wait_until(lambda: exists(f"{folder}/checkpoints/{2 * EVERY}/{marker}"), victim)
    time.sleep(0.3)
    assert victim.poll() is None, "the run ended before the fault"
    victim.send_signal(number)
    other.wait(BOUND_SECONDS)
    if number == signal.SIGSTOP:
      victim.kill()
    outputs = {i: output for i, (_, output) in run.finish(60).items()}
    statuses = {i: process.returncode for i, process in run.processes.items()}
  if number == signal.SIGTERM:
    assert set(statuses.values()) == {TRY_AGAIN}, (statuses, outputs)
    return int(re.search(r"step (\d+) of", outputs[0])[1])
  assert statuses[1 - index] != 0
  return int(RunFolder(folder).scalars()["loss"][0][-1])


def test_a_signal_in_the_last_evaluation(tmp_path: pathlib.Path):
  folder, changes = tmp_path / "run", {"steps": EVERY, "eval.images": EVALUATED}
  with start(folder, **changes) as run:
    wait_until(lambda: exists(f"{folder}/checkpoints/{EVERY}"), run.processes[1])
    run.processes[1].send_signal(signal.SIGTERM)
    found = run.finish(60)
  for status, output in found.values():
    assert status == TRY_AGAIN, output[-3000:]
    assert "error: asked to stop" in output
  assert not (folder / "results.json").exists()
  *_, last = read_checkpoints(folder / "checkpoints")
  finished(folder, **changes)
  context = load_prompt(folder / "prompt.npz").context
  np.testing.assert_array_equal(context, last.state["params"]["context"])
