"""A small training of 12 steps, prepared once and run in any number of folders.

It uses the embedded world and CLIP, and saves checkpoints at steps 4, 8 and 12.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import numpy as np

from pomp_jax import inputs
from pomp_jax.config import Settings
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hosts import Preempted
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.train import loop, setup
from tests.support.processes import ROOT, environment
from tests.support.small_run import small_config

STEPS, EVERY, DEVICES = 12, 4, 2
# Called after each step with its number, before its metrics are used.
Hook = Callable[[int], None]
Folder = str | os.PathLike


def config_of(**changes) -> Settings:
  """Returns the training's config; metrics of every step are logged."""
  return small_config(**{"steps": STEPS, "checkpoint.every": EVERY, "log.every": 1} | changes)


@dataclasses.dataclass(frozen=True)
class Attempt:
  """One run of the training, until its end or an error."""

  first: int  # step of the checkpoint that it resumed from; 0 for none
  context: np.ndarray | None  # None after an error
  error: BaseException | None
  warnings: str

  def check_error(self, kind: type[BaseException], *texts: str) -> None:
    """Checks the error that ended it, in one line."""
    assert isinstance(self.error, kind), repr(self.error)
    assert all(text in str(self.error) for text in texts), self.error
    assert "\n" not in str(self.error)


class Training:
  """A training that is prepared once."""

  def __init__(self, config: Settings, folder: pathlib.Path):
    """Prepares the training and runs it without a fault in a folder."""
    encoder = inputs.open_encoder(config, make_mesh(devices=jax.devices()[:DEVICES]))
    self.job = setup.prepare(config, RunFolder(folder), encoder=encoder)
    self.context = self.run(folder).context

  def run(self, folder: Folder, hook: Hook = lambda step: None, **changes) -> Attempt:
    """Runs it from the last checkpoint in a folder, or from the start."""
    config = self.job.config.replace(changes)
    job = dataclasses.replace(self.job, folder=RunFolder(folder), config=config)
    job.folder.create()
    context = error = None
    with watched(hook) as firsts, warnings() as lines:
      try:
        context = np.asarray(loop.train(job).state.params["context"])
      except (Exception, Preempted) as found:
        error = found
    return Attempt(firsts[-1] if firsts else STEPS, context, error, "\n".join(lines))

  def resume(self, folder: Folder, done: int, expected: np.ndarray | None = None, **changes) -> int:
    """Resumes after a fault, checks the context bit for bit, and returns the number of lost steps.

    Args:
      folder: folder of the run.
      done: last step before the fault.
      expected: context of the same training without the fault, if it is not this one's.
      **changes: as `run`'s.
    """
    attempt = self.run(folder, **changes)
    assert attempt.error is None, repr(attempt.error)
    np.testing.assert_array_equal(
      attempt.context, self.context if expected is None else expected, strict=True
    )
    return done - attempt.first


def start_child(folder: Folder, fault: dict) -> subprocess.Popen:
  """Starts the training in a process of its own; `child.main` lists the faults."""
  return subprocess.Popen(
    [sys.executable, "-m", "tests.faults.child", str(folder), json.dumps(fault)],
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
  """Yields the list of the package's warnings."""
  lines: list[str] = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = lambda record: lines.append(record.getMessage())
  logger = logging.getLogger("pomp_jax")
  logger.addHandler(handler)
  try:
    yield lines
  finally:
    logger.removeHandler(handler)
