"""Fault campaign: what a training loses by each kind of fault.

Each case interrupts a training of 12 steps, resumes it, and finds the context of the
uninterrupted training, bit for bit. One run of each kind is in the first tier, the
others are in the second. Images that can't be read: tests/data/test_loader.py and
tests/train/test_unreadable.py. Another number of devices:
tests/train/test_pretrain_mesh.py.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import time
from unittest import mock

import jax
import numpy as np
import pytest

from pomp_jax.files.checkpoints import CheckpointError
from pomp_jax.hosts import Preempted
from pomp_jax.train.training import PromptRun
from pomp_jax.train.watch import TrainingError
from tests.faults.training import (
  EVERY,
  STEPS,
  Training,
  config_of,
  start_child,
  wait_for_kill,
)
from tests.support.data_files import damage

# The training has two devices.
pytestmark = pytest.mark.mesh

CASES: list = []


def case(name: str, *arguments: object, runs: int, quick: bool = True):
  """Adds a kind of fault: one run in the first tier if it is quick, the others in the
  second.

  Its function takes the training, random numbers and an empty folder, and returns the
  lost steps.
  """

  def add(function: Callable[..., int]):
    for run in range(runs):
      later = pytest.mark.slow("the whole fault campaign") if run or not quick else ()
      CASES.append(
        pytest.param(name, function, arguments, run, id=f"{name}-{run}", marks=later)
      )
    return function

  return add


@pytest.fixture(scope="module")
def training(tmp_path_factory):
  folder = tmp_path_factory.mktemp("faults")
  found = Training(config_of(), folder / "reference")
  found.stopped = folder / "stopped"
  found.run(found.stopped, signal_at(10)).check_error(Preempted)
  return found


def signal_at(step: int, number: int = signal.SIGTERM):
  return lambda now: os.kill(os.getpid(), number) if now == step else None


@case("SIGTERM at any step", signal.SIGTERM, runs=3)
@case("SIGINT at any step", signal.SIGINT, runs=1, quick=False)
def stopped_by_signal(number, training, rng, folder):
  step = int(rng.integers(1, STEPS + 1))
  training.run(folder, signal_at(step, number)).check_error(Preempted, f"step {step}")
  return training.resume(folder, step)


@case("SIGKILL at any step", runs=2, quick=False)
def killed(training, rng, folder):
  fault = {"step": int(rng.integers(1, STEPS + 1))}
  return training.resume(folder, wait_for_kill(start_child(folder, fault)))


@case("SIGKILL during a save", runs=3, quick=False)
def killed_while_saving(training, rng, folder):
  # Not the last save: what it leaves of the count is used by the next one.
  fault = {"save": int(rng.choice([4, 8])), "access": int(rng.integers(1, 40))}
  return training.resume(folder, wait_for_kill(start_child(folder, fault)))


@case("newest checkpoint truncated", "truncated", (10,), runs=2)
@case("newest checkpoint bit-flipped", "bit-flipped", (10,), runs=2, quick=False)
@case("newest checkpoint deleted", "deleted", (10,), runs=2, quick=False)
@case("newest two bit-flipped", "bit-flipped", (8, 10), runs=1)
def damaged(how, steps, training, rng, folder):
  shutil.copytree(training.stopped, folder, dirs_exist_ok=True)
  for step in steps:
    files = sorted(
      p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file()
    )
    for file in [files[rng.integers(len(files))]] if len(steps) == 1 else files:
      damage(file, how, rng)
  return training.resume(folder, 10)


@case("disk full, stop", "stop", runs=2)
@case("disk full, retry", "retry", runs=2, quick=False)
def full_disk(policy, training, rng, folder):
  """A small file system is filled, and cleared after a while."""
  ballast = folder / "ballast"

  def fill():
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
      while True:
        file.write(bytes(4096))

  with small_disk(folder):
    return unwritable(policy, training, rng, folder, fill, ballast.unlink)


@case("disk read-only, stop", "stop", runs=1, quick=False)
@case("disk read-only, retry", "retry", runs=1)
def read_only(policy, training, rng, folder):
  checkpoints = folder / "checkpoints"
  checkpoints.mkdir()
  with small_disk(checkpoints):
    close = lambda: mount("-o", "remount,ro", str(checkpoints))
    reopen = lambda: mount("-o", "remount,rw", str(checkpoints))
    return unwritable(policy, training, rng, folder, close, reopen)


def unwritable(policy, training, rng, folder, close, reopen) -> int:
  """The save of step 8 fails, those of steps 4 and 12 do not."""
  closes, reopens = (
    int(rng.integers(EVERY + 1, 2 * EVERY)),
    int(rng.integers(10, STEPS)),
  )
  started = []

  def hook(step):
    started.append(step)
    if step == closes:
      close()
    if policy == "retry" and step == reopens:
      reopen()

  attempt = training.run(folder, hook, **{"checkpoint.on_failure": policy})
  failed = "could not save the checkpoint of step 8"
  if policy == "retry":
    assert failed in attempt.warnings, attempt.warnings
    np.testing.assert_array_equal(attempt.context, training.context)
    return 0
  attempt.check_error(CheckpointError, failed, "the last good one is of step 4")
  reopen()
  return training.resume(folder, started[-1])


@contextlib.contextmanager
def small_disk(folder: pathlib.Path) -> Iterator[None]:
  if os.geteuid() != 0:
    pytest.skip("mounting a small file system needs root")
  try:
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder))
  except subprocess.CalledProcessError as error:
    pytest.skip(f"no small file system can be mounted here ({error.stderr.strip()})")
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(*arguments: str) -> None:
  for _ in range(20):
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode == 0:
      return
    time.sleep(0.1)  # a file may still be open there
  raise subprocess.CalledProcessError(
    done.returncode, "mount", done.stdout, done.stderr
  )


@case("NaN, stop", runs=1)
def not_finite(training, rng, folder):
  step = int(rng.integers(1, STEPS))
  with nan_after(step):
    training.run(folder).check_error(TrainingError, f"is nan at step {step + 1}")
  return training.resume(folder, step)


@case("NaN, roll back", runs=2)
def rolled_back(training, rng, folder):
  """Compared with the training that rolls back and is not stopped: its draws are
  others."""
  step, stop = int(rng.integers(1, STEPS)), int(rng.integers(1, STEPS))
  roll = {"roll_backs": 3}
  with nan_after(step):
    whole = training.run(folder / "whole", **roll)
    assert "ROLLED BACK" in whole.warnings, whole.error
    assert not np.array_equal(whole.context, training.context)
    run, asked = folder / "run", []

    def hook(now):
      if now == stop and not asked:
        asked.append(now)
        os.kill(os.getpid(), signal.SIGTERM)

    training.run(run, hook, **roll).check_error(Preempted)
    training.resume(run, stop, whole.context, **roll)
  return step - step // EVERY * EVERY


@contextlib.contextmanager
def nan_after(step: int) -> Iterator[None]:
  """Makes the parameters NaN after a step, with the draws of the first seed key
  only."""
  real = PromptRun.build_step

  def build_step(run):
    once, first_key = (
      real(run),
      np.asarray(jax.random.key_data(jax.random.key(run.seed))),
    )

    def poisoned_step(state, frozen, batch):
      if int(state.step) == step and np.array_equal(state.seed_key, first_key):
        state = state.replace(
          params=jax.tree.map(lambda leaf: leaf * np.nan, state.params)
        )
      return once(state, frozen, batch)

    return poisoned_step

  with mock.patch.object(PromptRun, "build_step", build_step):
    yield


@pytest.mark.parametrize(("name", "function", "arguments", "run"), CASES)
def test_a_fault(training, lost, name, function, arguments, run, tmp_path):
  rng = np.random.default_rng([*name.encode(), run])
  steps = function(*arguments, training, rng, tmp_path)
  lost(name, steps)
  assert 0 <= steps <= 10
