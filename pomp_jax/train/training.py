"""What the loop trains: data, parameters, a step. The prompt's is `setup.Run`."""

import abc
from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import optax

from pomp_jax.config import Settings
from pomp_jax.data.loader import Fetch
from pomp_jax.data.source import Labelled
from pomp_jax.encoder import Encoder
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.learner import Initialised
from pomp_jax.prompt.step import TrainState


@dataclasses.dataclass(frozen=True)
class Training(abc.ABC):
  """Everything that stays the same during a training by steps, and what the loop asks of it."""

  config: Settings
  folder: RunFolder
  encoder: Encoder
  source: Labelled  # training images
  fetch: Fetch  # reads the views of images
  frozen: Any  # arrays that a step reads
  optimizer: optax.GradientTransformation
  rate: optax.Schedule
  steps_per_epoch: int  # steps that show all images once
  total_steps: int

  @property
  @abc.abstractmethod
  def n_groups(self) -> int:
    """Number of groups of a batch that draw random numbers of their own."""

  @property
  def needs_bank(self) -> bool:
    """Whether the state holds features of all classes."""
    return False

  @abc.abstractmethod
  def learner(self) -> Initialised:
    """What is learned."""

  @abc.abstractmethod
  def build_step(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step `(state, frozen, batch) -> (state, metrics)`, compiled at its first call.

    `loss` and `accuracy` are among the metrics.
    """

  def validation(self) -> Callable[[TrainState], float | None]:
    """Returns a function from state to a figure by which checkpoints are kept, or to None."""
    return lambda state: None
