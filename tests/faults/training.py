"""A small training of 12 steps for the campaign, prepared once and run in any number of folders.

It uses the embedded world and CLIP, and saves checkpoints at steps 4, 8 and 12.
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
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.train import loop, setup
from tests.support.small_run import small_config

STEPS, EVERY, DEVICES = 12, 4, 2
# Called after each step with its number, before its metrics are used.
Hook = Callable[[int], None]


def no_fault(step: int) -> None:
  """No fault."""


def config_of(**changes) -> Settings:
  """Returns the training's config; metrics of every step are logged."""
  return small_config(**{"steps": STEPS, "checkpoint.every": EVERY, "log.every": 1} | changes)


@dataclasses.dataclass(frozen=True)
class Attempt:
  """One run of the training, until its end or an error.

  Attributes:
    first: step of the checkpoint that it resumed from; 0 for none.
    context: final context; None after an error.
    error: error that ended it.
    warnings: warnings that it logged.
  """

  first: int
  context: np.ndarray | None
  error: BaseException | None
  warnings: str


class Training:
  """A training that is prepared once."""

  def __init__(self, config: Settings, folder: pathlib.Path):
    """Prepares the training and runs it without a fault, on two devices.

    Args:
      config: config from `config_of`.
      folder: folder of that run.
    """
    self.folder = folder
    encoder = inputs.open_encoder(config, make_mesh(devices=jax.devices()[:DEVICES]))
    self.job = setup.prepare(config, RunFolder(folder), encoder=encoder)
    self.context = self.run(folder).context
    self.scalars = RunFolder(folder).scalars()

  def job_in(self, folder: pathlib.Path, **changes) -> setup.Run:
    """Returns the training in another folder, with changes of fields that need no preparation."""
    config = self.job.config.replace(changes)
    return dataclasses.replace(self.job, folder=RunFolder(folder), config=config)

  def run(self, folder: pathlib.Path, hook: Hook = no_fault, **changes) -> Attempt:
    """Runs it from the last checkpoint in a folder, or from the start."""
    job = self.job_in(folder, **changes)
    job.folder.create()
    context = error = None
    with watched(hook) as firsts, warnings() as lines:
      try:
        context = np.asarray(loop.train(job).state.params["context"])
      except (Exception, Preempted) as found:
        error = found
    return Attempt(firsts[-1] if firsts else STEPS, context, error, "\n".join(lines))

  def context_in(self, folder: pathlib.Path) -> np.ndarray:
    """Returns the context of the newest checkpoint in a folder."""
    with Checkpoints(folder / "checkpoints") as checkpoints:
      restored = checkpoints.restore_latest(setup.first_state(self.job))
    return np.asarray(restored.state.params["context"])


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
