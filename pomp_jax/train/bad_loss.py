"""Losses that training can't go on from, and the way around them: back to the last good checkpoint,
and on with other draws. And losses that say that nothing is learned, which only warn.
"""

import dataclasses
import logging
import math
from typing import Any

import jax
import numpy as np

from pomp_jax import hosts
from pomp_jax.train.watch import TrainingError

log = logging.getLogger(__name__)

# Weight of a step in the typical loss, and the steps before which no loss is called a spike.
_WEIGHT, _STEPS_BEFORE = 0.05, 20
# Steps whose mean loss is the first one, and how much of the loss of a guess, ln(classes), the
# typical loss may rise above that: batches differ.
_FIRST_STEPS, _RISE = 5, 0.1


class BadLossError(TrainingError):
  """A loss that is not finite, or a spike; one line.

  Attributes:
    step: whose loss it is.
  """

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


@dataclasses.dataclass(frozen=True)
class Expected:
  """What the loss of a training that learns stays below.

  Attributes:
    guess: the loss where all classes look the same, nats; infinite where it is not known.
    after: the first step at which that is expected.
    rate: the learning rate, `optim.lr`, for the warning.
  """

  guess: float
  after: int
  rate: float


class Judge:
  """Says of each step's metrics whether training may go on, and warns once if nothing is learned.

  What it remembers goes into checkpoints (`memory`), so that a run that goes on judges as one that
  was never stopped.
  """

  def __init__(
    self,
    spike: float,
    memory: dict[str, Any] | None = None,
    expected: Expected | None = None,
  ):
    """Starts from nothing, or from what another one remembered.

    Args:
      spike: a loss above so many times the typical one (the running mean of those before, a step
        weighing 1/20) is bad; 0: only what is not finite.
      memory: of the judge before.
      expected: of the typical loss; None: no warning.
    """
    self._spike, self._expected = spike, expected
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
    typical += weight * (loss - typical)
    # Checkpoints of versions before have no first loss.
    first = typical if steps < _FIRST_STEPS else self._memory.get("first")
    self._memory = {"steps": steps + 1, "loss": typical, "first": first}
    if self._expected is not None and step >= self._expected.after:
      self._warn(step)

  def _warn(self, step: int) -> None:
    """Warns where the typical loss is that of a guess, or has risen since the start."""
    guess, rate = self._expected.guess, self._expected.rate
    loss, first = self._memory["loss"], self._memory["first"]
    if loss >= guess:
      found = f"no better than the {guess:.3g} of a guess"
    elif first is not None and math.isfinite(guess) and loss > first + _RISE * guess:
      found = f"above the {first:.3g} of the first steps"
    else:
      return
    self._expected = None
    if hosts.is_first():
      log.warning(
        "learns_nothing=true step=%d loss=%.3g: %s. config.optim.lr=%g is too high for this CLIP,"
        " or, if the loss never fell, too low: try %g, or a warm-up (config.optim.warmup)",
        *(step, loss, found, rate, rate / 3),
      )


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
