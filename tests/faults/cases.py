"""Faults of the campaign: each interrupts a training, which is then resumed.

A case takes the training, a generator of its random numbers, and an empty folder.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import jax
import numpy as np
from PIL import Image

from pomp_jax import world
from pomp_jax.data.loader import CorruptDataError
from pomp_jax.files.checkpoints import CheckpointError
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hosts import Preempted
from pomp_jax.train import setup
from pomp_jax.train.watch import TrainingError
from tests.faults.training import DEVICES, EVERY, STEPS, Attempt, Training, config_of
from tests.support.processes import ROOT, environment


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Result of a case.

  Attributes:
    survived: whether the same command, started again, finished the training.
    lost: steps that had to be repeated.
    equal: whether the context equals that of the uninterrupted training.
  """

  survived: bool
  lost: int
  equal: bool


Case = Callable[[Training, np.random.Generator, pathlib.Path], Outcome]


class Skip(Exception):
  """A case that this machine does not allow; the message says why."""


def signal_at(step: int, number: int = signal.SIGTERM):
  """Returns a hook that sends a signal to this process at a step."""
  return lambda now: os.kill(os.getpid(), number) if now == step else None


def resume(training: Training, folder: pathlib.Path, done: int, expected=None) -> Outcome:
  """Resumes the training after a fault at step `done`."""
  attempt = training.run(folder)
  return outcome(attempt, done - attempt.first, training.context if expected is None else expected)


def outcome(attempt: Attempt, lost: int, expected: np.ndarray) -> Outcome:
  """Compares contexts bit for bit."""
  equal = attempt.context is not None and np.array_equal(attempt.context, expected)
  return Outcome(attempt.context is not None, lost, equal)


def expect(attempt: Attempt, kind: type[BaseException], text: str = "") -> None:
  """Checks the error that ended an attempt."""
  assert isinstance(attempt.error, kind) and text in str(attempt.error), repr(attempt.error)


# Signals.


def stopped_by_signal(number: int, training: Training, rng, folder: pathlib.Path) -> Outcome:
  """SIGTERM or SIGINT at any step."""
  step = int(rng.integers(1, STEPS + 1))
  expect(training.run(folder, signal_at(step, number)), Preempted, f"step {step}")
  return resume(training, folder, step)


def killed(training: Training, rng, folder: pathlib.Path) -> Outcome:
  """SIGKILL at any step."""
  return _killed(training, folder, {"step": int(rng.integers(1, STEPS + 1))})


def killed_while_saving(training: Training, rng, folder: pathlib.Path) -> Outcome:
  """SIGKILL at an access to the checkpoints' folder during a save, or some time after it."""
  if rng.random() < 0.5:
    fault = {"save": int(rng.choice([4, 8, 12])), "seconds": float(rng.uniform(0, 0.1))}
  else:
    # Not the last save: what it leaves of the count is used by the next one.
    fault = {"save": int(rng.choice([4, 8])), "event": int(rng.integers(1, 40))}
  return _killed(training, folder, fault)


def _killed(training: Training, folder: pathlib.Path, fault: dict) -> Outcome:
  process = _child(folder, fault, DEVICES)
  assert process.returncode == -signal.SIGKILL, process.stderr[-3000:]
  return resume(training, folder, int(process.stdout.split()[-1]))


def _child(folder: pathlib.Path, fault: dict, devices: int) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "tests.faults.child", str(folder), json.dumps(fault)],
    cwd=ROOT,
    env=environment(devices),
    capture_output=True,
    text=True,
    timeout=240,
  )


# Damage to checkpoints.


@functools.cache
def stopped(training: Training) -> pathlib.Path:
  """Returns a folder whose training was stopped at step 10, with checkpoints at 4, 8 and 10."""
  folder = training.folder.with_name("stopped")
  expect(training.run(folder, signal_at(10)), Preempted)
  return folder


def damaged(
  how: str, steps: tuple[int, ...], training: Training, rng, folder: pathlib.Path
) -> Outcome:
  """Damages a file of the newest checkpoint, or all files of the newest two."""
  shutil.copytree(stopped(training), folder, dirs_exist_ok=True)
  for step in steps:
    files = sorted(p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file())
    for file in [files[rng.integers(len(files))]] if len(steps) == 1 else files:
      damage(file, how, rng)
  return resume(training, folder, 10)


def all_damaged(training: Training, rng, folder: pathlib.Path) -> Outcome:
  """Damages all checkpoints: the error says which folder to remove."""
  shutil.copytree(stopped(training), folder, dirs_exist_ok=True)
  for step in (4, 8, 10):
    shutil.rmtree(folder / "checkpoints" / str(step) / "state")
  expect(training.run(folder), CheckpointError, "remove this folder to start from the beginning")
  shutil.rmtree(folder / "checkpoints")
  return resume(training, folder, 10)


def damage(file: pathlib.Path, how: str, rng) -> None:
  """Truncates a file, flips a bit of it, or deletes it."""
  content = bytearray(file.read_bytes())
  if how == "deleted":
    file.unlink()
  elif how == "truncated" or not content:
    file.write_bytes(content[: rng.integers(len(content) or 1)])
  else:
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)


# A disk that can't be written to.


def full_disk(policy: str, training: Training, rng, folder: pathlib.Path) -> Outcome:
  """Fills a small file system, and clears it after a while."""
  ballast = folder / "ballast"
  with tmpfs(folder):
    return _unwritable(policy, training, rng, folder, lambda: _fill(ballast), ballast.unlink)


def _fill(ballast: pathlib.Path) -> None:
  with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
    while True:
      file.write(bytes(4096))


def read_only(policy: str, training: Training, rng, folder: pathlib.Path) -> Outcome:
  """Makes the checkpoints' file system read-only, or, without root, their folder."""
  checkpoints = folder / "checkpoints"
  checkpoints.mkdir()
  if os.geteuid() != 0:
    close, reopen = (lambda: checkpoints.chmod(0o500)), (lambda: checkpoints.chmod(0o700))
    return _unwritable(policy, training, rng, folder, close, reopen)
  with tmpfs(checkpoints):
    close = lambda: _mount("-o", "remount,ro", str(checkpoints))
    reopen = lambda: _mount("-o", "remount,rw", str(checkpoints))
    return _unwritable(policy, training, rng, folder, close, reopen)


def _unwritable(
  policy: str, training: Training, rng, folder: pathlib.Path, close, reopen
) -> Outcome:
  """The save of step 8 fails, those of steps 4 and 12 do not."""
  closes, reopens = int(rng.integers(EVERY + 1, 2 * EVERY)), int(rng.integers(10, STEPS))
  started = []

  def hook(step):
    started.append(step)
    if step == closes:
      close()
    if policy == "retry" and step == reopens:
      reopen()

  attempt = training.run(folder, hook, **{"checkpoint.on_failure": policy})
  if policy == "retry":
    assert "could not save the checkpoint of step 8" in attempt.warnings, attempt.warnings
    return outcome(attempt, 0, training.context)
  expect(attempt, CheckpointError, "could not save the checkpoint of step 8")
  expect(attempt, CheckpointError, "the last good one is of step 4")
  reopen()
  return resume(training, folder, started[-1])


@contextlib.contextmanager
def tmpfs(folder: pathlib.Path) -> Iterator[None]:
  """Mounts a file system of 4 MiB on a folder."""
  if os.geteuid() != 0:
    raise Skip("mounting a small file system needs root")
  try:
    _mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder))
  except subprocess.CalledProcessError as error:
    raise Skip(f"no small file system can be mounted here ({error.stderr.strip()})") from error
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(*arguments: str) -> None:
  for _ in range(20):
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode == 0:
      return
    # A file may still be open there.
    time.sleep(0.1)
  raise subprocess.CalledProcessError(done.returncode, "mount", done.stdout, done.stderr)


# The clock.


def clock_jumps(training: Training, rng, folder: pathlib.Path) -> Outcome:
  """Makes `time.time` jump within a run, and between two starts."""
  real, shift = time.time, [0.0]
  jumps = [-3600.0, 10 * 365 * 86400.0, 1e9 - real(), -5.0]
  jump, stop = int(rng.integers(1, 6)), int(rng.integers(6, STEPS))

  def hook(step):
    if step == jump:
      shift[0] = float(rng.choice(jumps))
    if step == stop:
      os.kill(os.getpid(), signal.SIGTERM)

  with mock.patch("time.time", lambda: real() + shift[0]):
    expect(training.run(folder, hook), Preempted)
    shift[0] = float(rng.choice(jumps))
    found = resume(training, folder, stop)
  same = RunFolder(folder).scalars()["loss"] == training.scalars["loss"]
  return dataclasses.replace(found, equal=found.equal and same)


# Images.

_NAMES = world.class_names("base")[::2500]


def corrupt_records(how: str, training: Training, rng, folder: pathlib.Path) -> Outcome:
  """Damages three images; compared with an uninterrupted training on the same images."""
  images = _image_folder(folder)
  for file in rng.choice(images, size=3, replace=False):
    damage(file, how, rng) if how != "replaced" else file.write_bytes(b"no image" * 100)
  own = _training_on_images(folder, max_corrupt=0.5)
  stop = int(rng.integers(2, STEPS))
  run = folder / "run"
  expect(own.run(run, signal_at(stop)), Preempted)
  return resume(own, run, stop)


def too_many_corrupt_records(training: Training, rng, folder: pathlib.Path) -> Outcome:
  """Damages an image where none may be: the run stops, and resumes when it is repaired."""
  images = _image_folder(folder)
  own = _training_on_images(folder, max_corrupt=0.0)
  file = images[rng.integers(len(images))]
  whole = file.read_bytes()
  damage(file, "truncated", rng)
  started, run = [0], folder / "run"
  expect(own.run(run, started.append), CorruptDataError, str(file.name))
  file.write_bytes(whole)
  return resume(own, run, started[-1])


def _image_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes images of the world, one folder per class; returns the training images."""
  for split, name, count in (("train", "train", 4), ("validation", "val", 1)):
    source = world.source(split, images_per_class=count)
    for label in map(source.names.index, _NAMES):
      place = folder / "data" / name / source.names[label]
      place.mkdir(parents=True)
      for index, image in enumerate(source.images(label * count + np.arange(count))):
        Image.fromarray(image).save(place / f"{index}.jpg", quality=95)
  return sorted((folder / "data" / "train").rglob("*.jpg"))


def _training_on_images(folder: pathlib.Path, max_corrupt: float) -> Training:
  root = str(folder / "data")
  data = {"data.source": "folder", "data.root": root, "data.n_classes": 0}
  more = {"data.max_corrupt": max_corrupt, "data.images_per_class": 16, "k": 5}
  return Training(config_of(**data, **more), folder / "reference")


# Losses.


def not_finite(training: Training, rng, folder: pathlib.Path) -> Outcome:
  """A NaN in one run only, with `config.on_bad_loss="stop"`."""
  step = int(rng.integers(1, STEPS))
  with nan_after(step):
    expect(training.run(folder), TrainingError, f"is nan at step {step + 1}")
  return resume(training, folder, step)


def rolled_back(training: Training, rng, folder: pathlib.Path) -> Outcome:
  """A NaN of some draws, and `roll_back`, with a stop before or after it.

  Compared with the training that rolls back and is not stopped, whose draws differ from those of a
  training without the NaN.
  """
  step, stop = int(rng.integers(1, STEPS)), int(rng.integers(1, STEPS))
  roll = {"on_bad_loss": "roll_back"}
  with nan_after(step):
    whole = training.run(folder / "whole", **roll)
    assert "ROLLED BACK" in whole.warnings, whole.error
    assert not np.array_equal(whole.context, training.context)
    run, asked = folder / "run", []

    def hook(now):
      if now == stop and not asked:
        asked.append(now)
        os.kill(os.getpid(), signal.SIGTERM)

    attempt = training.run(run, hook, **roll)
    expect(attempt, Preempted)
    return outcome(training.run(run, **roll), step - step // EVERY * EVERY, whole.context)


@contextlib.contextmanager
def nan_after(step: int) -> Iterator[None]:
  """Makes the parameters NaN after a step, with the draws of the first seed key only."""
  real = setup.Run.build_step

  def build_step(job):
    once, first_key = real(job), np.asarray(jax.random.key_data(jax.random.key(job.config.seed)))

    def poisoned_step(state, frozen, batch):
      if int(state.step) == step and np.array_equal(state.seed_key, first_key):
        state = state.replace(params=jax.tree.map(lambda leaf: leaf * np.nan, state.params))
      return once(state, frozen, batch)

    return poisoned_step

  with mock.patch.object(setup.Run, "build_step", build_step):
    yield


# Devices.


def half_the_devices(training: Training, rng, folder: pathlib.Path) -> Outcome:
  """Half as many devices at the restart, twice `accumulate`: another order of the sums."""
  stop = int(rng.integers(2, STEPS))
  expect(training.run(folder, signal_at(stop)), Preempted)
  process = _child(folder, {"changes": {"accumulate": 2}}, DEVICES // 2)
  assert process.returncode == 0, process.stderr[-3000:]
  found = training.context_in(folder)
  close = bool(np.allclose(found, training.context, rtol=0, atol=1e-6))
  return Outcome(True, stop + 1 - int(process.stdout.split()[0]), close)
