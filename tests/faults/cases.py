"""The faults of the campaign: each is done to a training, which is then started again.

A case takes the lab, a generator for what is random about it, and an empty folder.
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
from pomp_jax.train import loop
from pomp_jax.train.watch import TrainingError
from tests.faults.lab import DEVICES, EVERY, STEPS, Going, Lab, config_of
from tests.support.processes import ROOT, environment


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a training.

  Attributes:
    survived: it came to its end, without more than is asked for: the same command, again.
    lost: steps that were done and had to be done again.
    equal: its context is that of the training without the fault.
  """

  survived: bool
  lost: int
  equal: bool


Case = Callable[[Lab, np.random.Generator, pathlib.Path], Outcome]


class Skip(Exception):
  """What this machine does not let us do; the message says why."""


def at(step: int, action: Callable[[], None]):
  """A hook that does something once."""
  return lambda now: action() if now == step else None


def again(lab: Lab, folder: pathlib.Path, done: int, expected=None) -> Outcome:
  """Starts the training again, after a fault that met it when so many steps were done."""
  going = lab.go(folder)
  return outcome(going, done - going.first, lab.context if expected is None else expected)


def outcome(going: Going, lost: int, expected: np.ndarray) -> Outcome:
  """Compares bit for bit."""
  equal = going.context is not None and np.array_equal(going.context, expected)
  return Outcome(going.context is not None, lost, equal)


def expect(going: Going, kind: type[BaseException], text: str = "") -> None:
  """The go has ended as it should, and said so."""
  assert isinstance(going.error, kind) and text in str(going.error), repr(going.error)


# Signals.


def asked_to_stop(number: int, lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """SIGTERM or SIGINT, from within: the signal is real."""
  step = int(rng.integers(1, STEPS + 1))
  expect(lab.go(folder, at(step, lambda: os.kill(os.getpid(), number))), Preempted, f"step {step}")
  return again(lab, folder, step)


def killed(lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """SIGKILL at any step."""
  return _killed(lab, folder, {"step": int(rng.integers(1, STEPS + 1))})


def killed_while_saving(lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """SIGKILL at an access to the checkpoints' folder, or some time after a save has begun."""
  if rng.random() < 0.5:
    fault = {"save": int(rng.choice([4, 8, 12])), "seconds": float(rng.uniform(0, 0.1))}
  else:
    # Not the last: what a save leaves of the count goes on in the next one.
    fault = {"save": int(rng.choice([4, 8])), "event": int(rng.integers(1, 40))}
  return _killed(lab, folder, fault)


def _killed(lab: Lab, folder: pathlib.Path, fault: dict) -> Outcome:
  process = _child(folder, fault, DEVICES)
  assert process.returncode == -signal.SIGKILL, process.stderr[-3000:]
  return again(lab, folder, int(process.stdout.split()[-1]))


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
def stopped(lab: Lab) -> pathlib.Path:
  """A folder whose training was stopped at step 10, with checkpoints of the steps 4, 8 and 10."""
  folder = lab.folder.with_name("stopped")
  expect(lab.go(folder, at(10, lambda: os.kill(os.getpid(), signal.SIGTERM))), Preempted)
  return folder


def damaged(how: str, steps: tuple[int, ...], lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """A file of the newest checkpoint, or all files of the newest two."""
  shutil.copytree(stopped(lab), folder, dirs_exist_ok=True)
  for step in steps:
    files = sorted(p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file())
    for file in [files[rng.integers(len(files))]] if len(steps) == 1 else files:
      damage(file, how, rng)
  return again(lab, folder, 10)


def all_damaged(lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """Nothing is left to go on from: it is refused, and said what to do."""
  shutil.copytree(stopped(lab), folder, dirs_exist_ok=True)
  for step in (4, 8, 10):
    shutil.rmtree(folder / "checkpoints" / str(step) / "state")
  expect(lab.go(folder), CheckpointError, "remove this folder to start from the beginning")
  shutil.rmtree(folder / "checkpoints")
  return again(lab, folder, 10)


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


# A disk that does not take what it is given.


def full_disk(policy: str, lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """A small file system that somebody else fills, and clears after a while."""
  ballast = folder / "ballast"
  with tmpfs(folder):
    return _unwritable(policy, lab, rng, folder, lambda: _fill(ballast), ballast.unlink)


def _fill(ballast: pathlib.Path) -> None:
  with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
    while True:
      file.write(bytes(4096))


def read_only(policy: str, lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """The checkpoints' file system becomes read-only, or, for others than root, their folder."""
  checkpoints = folder / "checkpoints"
  checkpoints.mkdir()
  if os.geteuid() != 0:
    close, reopen = (lambda: checkpoints.chmod(0o500)), (lambda: checkpoints.chmod(0o700))
    return _unwritable(policy, lab, rng, folder, close, reopen)
  with tmpfs(checkpoints):
    close = lambda: _mount("-o", "remount,ro", str(checkpoints))
    reopen = lambda: _mount("-o", "remount,rw", str(checkpoints))
    return _unwritable(policy, lab, rng, folder, close, reopen)


def _unwritable(policy: str, lab: Lab, rng, folder: pathlib.Path, close, reopen) -> Outcome:
  """The save of step 8 fails; that of step 4 has ended, and that of step 12 would not."""
  closes, reopens = int(rng.integers(EVERY + 1, 2 * EVERY)), int(rng.integers(10, STEPS))
  started = []

  def hook(step):
    started.append(step)
    if step == closes:
      close()
    if policy == "retry" and step == reopens:
      reopen()

  going = lab.go(folder, hook, **{"checkpoint.on_failure": policy})
  if policy == "retry":
    assert "could not save the checkpoint of step 8" in going.warnings, going.warnings
    return outcome(going, 0, lab.context)
  expect(going, CheckpointError, "could not save the checkpoint of step 8")
  expect(going, CheckpointError, "the last good one is of step 4")
  reopen()
  return again(lab, folder, started[-1])


@contextlib.contextmanager
def tmpfs(folder: pathlib.Path) -> Iterator[None]:
  """A file system of 4 MiB in a folder's place."""
  if os.geteuid() != 0:
    raise Skip("mounting a small file system takes root")
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
    # A file is still being written there.
    time.sleep(0.1)
  raise subprocess.CalledProcessError(done.returncode, "mount", done.stdout, done.stderr)


# The clock.


def clock_jumps(lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """`time.time` jumps in the middle of a run, and again between two starts."""
  real, shift = time.time, [0.0]
  jumps = [-3600.0, 10 * 365 * 86400.0, 1e9 - real(), -5.0]
  jump, stop = int(rng.integers(1, 6)), int(rng.integers(6, STEPS))

  def hook(step):
    if step == jump:
      shift[0] = float(rng.choice(jumps))
    if step == stop:
      os.kill(os.getpid(), signal.SIGTERM)

  with mock.patch("time.time", lambda: real() + shift[0]):
    expect(lab.go(folder, hook), Preempted)
    shift[0] = float(rng.choice(jumps))
    found = again(lab, folder, stop)
  same = RunFolder(folder).scalars()["loss"] == lab.scalars["loss"]
  return dataclasses.replace(found, equal=found.equal and same)


# Records of the data.

_NAMES = world.class_names("base")[::2500]


def corrupt_records(how: str, lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """Compared with an uninterrupted training on the same damaged images."""
  images = _image_folder(folder)
  for file in rng.choice(images, size=3, replace=False):
    damage(file, how, rng) if how != "replaced" else file.write_bytes(b"no image" * 100)
  own = _lab_of_images(folder, max_corrupt=0.5)
  stop = int(rng.integers(2, STEPS))
  run = folder / "run"
  expect(own.go(run, at(stop, lambda: os.kill(os.getpid(), signal.SIGTERM))), Preempted)
  return again(own, run, stop)


def too_many_corrupt_records(lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """More than are allowed, none: it stops; and goes on when they are repaired."""
  images = _image_folder(folder)
  own = _lab_of_images(folder, max_corrupt=0.0)
  file = images[rng.integers(len(images))]
  whole = file.read_bytes()
  damage(file, "truncated", rng)
  started, run = [0], folder / "run"
  expect(own.go(run, started.append), CorruptDataError, str(file.name))
  file.write_bytes(whole)
  return again(own, run, started[-1])


def _image_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  """A folder a class, and images of the world; returns those to train with."""
  for split, name, count in (("train", "train", 4), ("validation", "val", 1)):
    source = world.source(split, images_per_class=count)
    for label in map(source.names.index, _NAMES):
      place = folder / "data" / name / source.names[label]
      place.mkdir(parents=True)
      for index, image in enumerate(source.images(label * count + np.arange(count))):
        Image.fromarray(image).save(place / f"{index}.jpg", quality=95)
  return sorted((folder / "data" / "train").rglob("*.jpg"))


def _lab_of_images(folder: pathlib.Path, max_corrupt: float) -> Lab:
  root = str(folder / "data")
  data = {"data.source": "folder", "data.root": root, "data.n_classes": 0}
  more = {"data.max_corrupt": max_corrupt, "data.images_per_class": 16, "k": 5}
  return Lab(config_of(**data, **more), folder / "reference")


# Losses.


def not_finite(lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """A NaN that does not come again, with `config.on_bad_loss="stop"`."""
  step = int(rng.integers(1, STEPS))
  with poisoned(step):
    expect(lab.go(folder), TrainingError, f"is nan at step {step + 1}")
  return again(lab, folder, step)


def rolled_back(lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """A NaN that comes with some draws, and `roll_back`; a stop before or after it changes nothing.

  Compared with the training that rolls back and is not stopped: it is another one than without the
  NaN, as its draws are.
  """
  step, stop = int(rng.integers(1, STEPS)), int(rng.integers(1, STEPS))
  roll = {"on_bad_loss": "roll_back"}
  with poisoned(step):
    whole = lab.go(folder / "whole", **roll)
    assert "ROLLED BACK" in whole.warnings, whole.error
    assert not np.array_equal(whole.context, lab.context)
    run, asked = folder / "run", []

    def hook(now):
      if now == stop and not asked:
        asked.append(now)
        os.kill(os.getpid(), signal.SIGTERM)

    going = lab.go(run, hook, **roll)
    expect(going, Preempted)
    return outcome(lab.go(run, **roll), step - step // EVERY * EVERY, whole.context)


@contextlib.contextmanager
def poisoned(step: int) -> Iterator[None]:
  """The step after this one starts from NaN, as long as the draws are the first ones."""
  real = loop.train_step

  def train_step(job):
    once, first_key = real(job), np.asarray(jax.random.key_data(jax.random.key(job.config.seed)))

    def poisoned_step(state, frozen, batch):
      if int(state.step) == step and np.array_equal(state.seed_key, first_key):
        state = state.replace(params=jax.tree.map(lambda leaf: leaf * np.nan, state.params))
      return once(state, frozen, batch)

    return poisoned_step

  with mock.patch.object(loop, "train_step", train_step):
    yield


# Devices.


def half_the_devices(lab: Lab, rng, folder: pathlib.Path) -> Outcome:
  """Half as many at the restart, twice `accumulate`: the same draws, summed in another order."""
  stop = int(rng.integers(2, STEPS))
  expect(lab.go(folder, at(stop, lambda: os.kill(os.getpid(), signal.SIGTERM))), Preempted)
  process = _child(folder, {"changes": {"accumulate": 2}}, DEVICES // 2)
  assert process.returncode == 0, process.stderr[-3000:]
  found = lab.context_in(folder)
  close = bool(np.allclose(found, lab.context, rtol=0, atol=1e-6))
  return Outcome(True, stop + 1 - int(process.stdout.split()[0]), close)
