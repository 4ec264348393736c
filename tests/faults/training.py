"""A small training of 12 steps, prepared once and run in any number of folders.

It uses the embedded world and CLIP, and saves checkpoints at steps 4, 8 and 12. In a
process of its own it kills itself: `python -m tests.faults.training FOLDER '{"step":
7}'`.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
from unittest import mock

import jax
import numpy as np

from pomp_jax.config import Config
from pomp_jax.evaluate import opening
from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hosts import Preempted
from pomp_jax.train import loop, setup
from tests.support.processes import ROOT, environment
from tests.support.small_run import small_config

STEPS, EVERY, DEVICES = 12, 4, 2
# Called after each step with its number, before its metrics are used.
Hook = Callable[[int], None]
Folder = str | os.PathLike
# Ends the process as the kernel's out-of-memory killer does.
die = functools.partial(os.kill, os.getpid(), signal.SIGKILL)


def config_of(**changes) -> Config:
  return small_config(
    **{"steps": STEPS, "checkpoint.every": EVERY, "log.every": 1} | changes
  )


@dataclasses.dataclass(frozen=True)
class Attempt:
  """One run of the training, until its end or an error."""

  first: int  # step of the checkpoint that it resumed from; 0 for none
  context: np.ndarray | None  # None after an error
  error: BaseException | None
  warnings: str

  def check_error(self, kind: type[BaseException], *texts: str) -> None:
    assert isinstance(self.error, kind), repr(self.error)
    assert all(text in str(self.error) for text in texts), self.error
    assert "\n" not in str(self.error)


class Training:
  def __init__(self, config: Config, folder: pathlib.Path):
    encoder = opening.open_encoder(config.clip, devices=jax.devices()[:DEVICES])
    self.config, self.prepared = (
      config,
      setup.prepare(config, RunFolder(folder), encoder=encoder),
    )
    self.context = self.run(folder).context

  def run(self, folder: Folder, hook: Hook = lambda step: None, **changes) -> Attempt:
    """Runs it from the last checkpoint in a folder, or from the start."""
    config = self.config.replace(changes)
    parts = {
      "loop": config.loop,
      "checkpoint": config.checkpoint,
      "config": config.to_dict(),
    }
    run = dataclasses.replace(self.prepared, folder=RunFolder(folder), **parts)
    run.folder.create()
    context = error = None
    with watched(hook) as firsts, warnings() as lines:
      try:
        context = np.asarray(loop.train(run).state.params["context"])
      except (Exception, Preempted) as found:
        error = found
    return Attempt(firsts[-1] if firsts else STEPS, context, error, "\n".join(lines))

  def resume(
    self, folder: Folder, done: int, expected: np.ndarray | None = None, **changes
  ) -> int:
    """Resumes after a fault at step `done`, and returns the number of lost steps.

    The context is that of this training without the fault, or `expected`, bit for bit.
    """
    attempt = self.run(folder, **changes)
    assert attempt.error is None, repr(attempt.error)
    np.testing.assert_array_equal(
      attempt.context, self.context if expected is None else expected, strict=True
    )
    return done - attempt.first


def start_child(folder: Folder, fault: dict) -> subprocess.Popen:
  """Starts the training in a process of its own; `run_until_killed` lists the
  faults."""
  return subprocess.Popen(
    [sys.executable, "-m", "tests.faults.training", str(folder), json.dumps(fault)],
    cwd=ROOT,
    env=environment(DEVICES),
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )


def wait_for_kill(child: subprocess.Popen) -> int:
  """Last step of a process that gets SIGKILL; ends it in any case."""
  try:
    lines, _ = child.communicate(timeout=240)
  finally:
    child.kill()
  assert child.returncode == -9, child.returncode
  return int(lines.split()[-1])


@contextlib.contextmanager
def watched(hook: Hook) -> Iterator[list[int]]:
  """Calls the hook after each step; yields the list of the first steps of all runs."""
  firsts: list[int] = []

  class Watched(loop.Watch):
    def __init__(self, *arguments, first, **more):
      firsts.append(first)
      super().__init__(*arguments, first=first, **more)

    def step(self, step, metrics):
      hook(step)
      super().step(step, metrics)

  with mock.patch.object(loop, "Watch", Watched):
    yield firsts


@contextlib.contextmanager
def warnings() -> Iterator[list[str]]:
  lines: list[str] = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = lambda record: lines.append(record.getMessage())
  logger = logging.getLogger("pomp_jax")
  logger.addHandler(handler)
  try:
    yield lines
  finally:
    logger.removeHandler(handler)


def run_until_killed(folder: str, fault: dict) -> None:
  """Runs the training and prints its steps.

  SIGKILL comes at `step`, or in the save of step `save` at that number `access` of a
  file operation in the checkpoints' folder.
  """
  run = setup.prepare(config_of(), RunFolder(folder))
  run.folder.create()

  def hook(step):
    print(step, flush=True)
    if step == fault.get("step"):
      die()

  real = Checkpoints.save

  def save(self, step, *arguments, **more):
    if step == fault.get("save"):
      die_at_access(f"{folder}/checkpoints", fault["access"])
    return real(self, step, *arguments, **more)

  with watched(hook), mock.patch.object(Checkpoints, "save", save):
    loop.train(run)


def die_at_access(folder: str, number: int) -> None:
  events = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
  count = itertools.count(1)

  def audit(event, arguments):
    inside = event in events and str(arguments[0]).startswith(folder)
    if inside and next(count) == number:
      die()

  sys.addaudithook(audit)


if __name__ == "__main__":
  run_until_killed(sys.argv[1], json.loads(sys.argv[2]))
