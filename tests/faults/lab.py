"""A small training that faults are done to: real world, real tiny CLIP, 12 steps, checkpoints at 4,
8 and 12; made ready once, and run in any number of folders.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import logging
import pathlib
from unittest import mock

import jax
import numpy as np

from pomp_jax import inputs
from pomp_jax.config import Settings
from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hosts import Preempted
from pomp_jax.prompt.step import make_mesh
from pomp_jax.train import loop, setup
from tests.support.small_run import small_config

STEPS, EVERY, DEVICES = 12, 4, 2
# Called when a step was started, before anything is done with its metrics.
Hook = Callable[[int], None]


def nothing(step: int) -> None:
  """No fault."""


def config_of(**changes) -> Settings:
  """The training's config; a line of scalars for each step."""
  return small_config(**{"steps": STEPS, "checkpoint.every": EVERY, "log.every": 1} | changes)


@dataclasses.dataclass(frozen=True)
class Going:
  """One go of a training, from a start to an end of any kind.

  Attributes:
    first: the step of the checkpoint that it went on from; 0 for none.
    context: at the end; None when it did not get there.
    error: what ended it before that.
    warnings: what it complained about.
  """

  first: int
  context: np.ndarray | None
  error: BaseException | None
  warnings: str


class Lab:
  """Makes a training ready, and runs it."""

  def __init__(self, config: Settings, folder: pathlib.Path):
    """Runs it once without any fault, on two devices.

    Args:
      config: from `config_of`.
      folder: for that run.
    """
    self.folder = folder
    encoder = inputs.open_encoder(config, make_mesh(devices=jax.devices()[:DEVICES]))
    self.job = setup.prepare(config, RunFolder(folder), encoder=encoder)
    self.context = self.go(folder).context
    self.scalars = RunFolder(folder).scalars()

  def job_in(self, folder: pathlib.Path, **changes) -> setup.Run:
    """The training in another folder, with some fields changed that need nothing prepared anew."""
    config = self.job.config.replace(changes)
    return dataclasses.replace(self.job, folder=RunFolder(folder), config=config)

  def go(self, folder: pathlib.Path, hook: Hook = nothing, **changes) -> Going:
    """From the last checkpoint in a folder, or from none, as far as it gets."""
    job = self.job_in(folder, **changes)
    job.folder.create()
    context = error = None
    with watched(hook) as firsts, warnings() as lines:
      try:
        context = np.asarray(loop.train(job).state.params["context"])
      except (Exception, Preempted) as found:
        error = found
    return Going(firsts[-1] if firsts else STEPS, context, error, "\n".join(lines))

  def context_in(self, folder: pathlib.Path) -> np.ndarray:
    """What the newest checkpoint in a folder holds."""
    with Checkpoints(folder / "checkpoints") as checkpoints:
      restored = checkpoints.restore_latest(setup.first_state(self.job))
    return np.asarray(restored.state.params["context"])


@contextlib.contextmanager
def watched(hook: Hook) -> Iterator[list[int]]:
  """Calls the hook after each step of trainings; yields the steps that they start from."""
  firsts: list[int] = []

  class Watched(loop.Watch):
    def __init__(self, folder, total, first, *arguments, **more):
      firsts.append(first)
      super().__init__(folder, total, first, *arguments, **more)

    def step(self, step, metrics):
      hook(step)
      super().step(step, metrics)

  with mock.patch.object(loop, "Watch", Watched):
    yield firsts


@contextlib.contextmanager
def warnings() -> Iterator[list[str]]:
  """What the package warns of."""
  lines: list[str] = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = lambda record: lines.append(record.getMessage())
  logger = logging.getLogger("pomp_jax")
  logger.addHandler(handler)
  try:
    yield lines
  finally:
    logger.removeHandler(handler)
