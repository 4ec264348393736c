"""Losses that training can't go on from, and the way around them: back to the last good checkpoint,
and on with other draws.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from pomp_jax.jobs.watch import TrainingError

# Weight of a step in the typical loss, and the steps before which no loss is called a spike.
_WEIGHT, _STEPS_BEFORE = 0.05, 20


class BadLossError(TrainingError):
  """A loss that is not finite, or a spike; one line.

  Attributes:
    step: whose loss it is.
  """

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


class Judge:
  """Says of each step's metrics whether training may go on.

  What it remembers goes into checkpoints (`memory`), so that a run that goes on judges as one that
  was never stopped.
  """

  def __init__(self, spike: float, memory: dict[str, Any] | None = None):
    """Starts from nothing, or from what another one remembered.

    Args:
      spike: a loss above so many times the typical one (the running mean of those before, a step
        weighing 1/20) is bad; 0: only what is not finite.
      memory: of the judge before.
    """
    self._spike = spike
    self._memory = memory or {"steps": 0, "loss": 0.0}

  def memory(self) -> dict[str, Any]:
    """What has to be known to go on; JSON."""
    return dict(self._memory)

  def __call__(self, step: int, metrics: dict[str, Any]) -> None:
    """Judges one step; the steps come in order.

    Args:
      step: its number.
      metrics: scalars by name; `loss` among them.

    Raises:
      BadLossError: it is bad.
    """
    for name, value in metrics.items():
      if not math.isfinite(value):
        raise BadLossError(f"{name} is {value} at step {step}", step)
    loss = float(metrics["loss"])
    steps, typical = self._memory["steps"], self._memory["loss"]
    if self._spike and steps >= _STEPS_BEFORE and loss > self._spike * typical:
      raise BadLossError(
        f"loss is {loss:.4g} at step {step}, more than {self._spike:g} times the {typical:.4g} that"
        " is usual",
        step,
      )
    # The first steps weigh alike: a plain mean, until a step's weight would be below 1/20.
    weight = max(1 / (steps + 1), _WEIGHT)
    self._memory = {"steps": steps + 1, "loss": typical + weight * (loss - typical)}


@dataclasses.dataclass(frozen=True)
class Detour:
  """How far a run has left the path that its config describes.

  Attributes:
    roll_backs: how often it went back.
    batches: so many were left out: those that led to a bad loss.
  """

  roll_backs: int = 0
  batches: int = 0

  def after(self, bad_step: int, good_step: int) -> "Detour":
    """Goes back to a good step, past the batches that were read since."""
    return Detour(self.roll_backs + 1, self.batches + bad_step - good_step)

  def seed_key(self, seed: int) -> np.ndarray:
    """Key data that the draws of negatives come from: others after each time that it went back."""
    key = jax.random.key(seed)
    if self.roll_backs:
      # Steps fold in 0, 1, ..; the first parameters 2^32 - 1.
      key = jax.random.fold_in(key, 2**32 - 1 - self.roll_backs)
    return np.asarray(jax.random.key_data(key))
