"""Losses that stop a training or roll it back, and losses that show that nothing is learned."""

import dataclasses
import logging
import math
from typing import Any

import jax
import numpy as np

from pomp_jax import hosts
from pomp_jax.train.watch import TrainingError

log = logging.getLogger(__name__)

# Weight of a step in the running mean, and the steps before which no loss counts as a spike.
_WEIGHT, _STEPS_BEFORE = 0.05, 20
# Steps of the initial mean loss, and the rise above it, in units of ln(classes), that is a warning.
_FIRST_STEPS, _RISE = 5, 0.1


class BadLossError(TrainingError):
  """A loss that is not finite, or a spike; one line.

  Attributes:
    step: step of the loss.
  """

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


@dataclasses.dataclass(frozen=True)
class Expected:
  """Bound on the running mean loss of a training that learns.

  Attributes:
    guess: loss of a guess, where all classes have the same features, in nats; infinite if unknown.
    after: first step at which the bound holds.
    rate: learning rate, `optim.lr`, for the warning.
  """

  guess: float
  after: int
  rate: float


class LossMonitor:
  """Checks the metrics of each step, and warns once if nothing is learned.

  Checkpoints hold its `statistics`, so a resumed run decides like one that was never stopped.
  """

  def __init__(
    self,
    spike: float,
    statistics: dict[str, Any] | None = None,
    expected: Expected | None = None,
  ):
    """Starts from nothing, or from stored statistics.

    Args:
      spike: factor above the running mean (a step weighs 1/20) from which a loss is a spike; 0:
        only losses that are not finite are bad.
      statistics: statistics of a previous monitor.
      expected: bound on the running mean; None: no warning.
    """
    self._spike, self._expected = spike, expected
    self._statistics = statistics or {"steps": 0, "loss": 0.0}

  @property
  def statistics(self) -> dict[str, Any]:
    """State of the monitor, as JSON."""
    return dict(self._statistics)

  def __call__(self, step: int, metrics: dict[str, Any]) -> None:
    """Checks one step; steps come in order.

    Args:
      step: number of the step.
      metrics: scalars by name, with `loss`.

    Raises:
      BadLossError: the loss is bad.
    """
    for name, value in metrics.items():
      if not math.isfinite(value):
        raise BadLossError(f"{name} is {value} at step {step}", step)
    loss = float(metrics["loss"])
    steps, mean = self._statistics["steps"], self._statistics["loss"]
    if self._spike and steps >= _STEPS_BEFORE and loss > self._spike * mean:
      raise BadLossError(
        f"loss is {loss:.4g} at step {step}, more than {self._spike:g} times its running mean"
        f" {mean:.4g}",
        step,
      )
    # A plain mean of the first steps, until the weight of a step would be below 1/20.
    mean += max(1 / (steps + 1), _WEIGHT) * (loss - mean)
    # Checkpoints of earlier versions have no first loss.
    first = mean if steps < _FIRST_STEPS else self._statistics.get("first")
    self._statistics = {"steps": steps + 1, "loss": mean, "first": first}
    if self._expected is not None and step >= self._expected.after:
      self._warn(step)

  def _warn(self, step: int) -> None:
    """Warns if the running mean is that of a guess, or has risen since the start."""
    guess, rate = self._expected.guess, self._expected.rate
    loss, first = self._statistics["loss"], self._statistics["first"]
    if loss >= guess:
      problem = f"no better than the {guess:.3g} of a guess"
    elif first is not None and math.isfinite(guess) and loss > first + _RISE * guess:
      problem = f"above the {first:.3g} of the first steps"
    else:
      return
    self._expected = None
    if hosts.is_first():
      log.warning(
        "learns_nothing=true step=%d loss=%.3g: %s. config.optim.lr=%g is too high for this CLIP,"
        " or, if the loss never fell, too low: try %g, or a warmup (config.optim.warmup)",
        *(step, loss, problem, rate, rate / 3),
      )


@dataclasses.dataclass(frozen=True)
class RollBacks:
  """Roll-backs of a run to earlier checkpoints.

  Attributes:
    count: number of roll-backs.
    skipped_batches: number of batches that led to a bad loss and are skipped.
  """

  count: int = 0
  skipped_batches: int = 0

  def add(self, bad_step: int, good_step: int) -> "RollBacks":
    """Adds a roll-back to a good step; the batches read since are skipped."""
    return RollBacks(self.count + 1, self.skipped_batches + bad_step - good_step)

  def seed_key(self, seed: int) -> np.ndarray:
    """Key data of the draws of negatives, different after each roll-back."""
    key = jax.random.key(seed)
    if self.count:
      # Steps fold in 0, 1, ..; the initial parameters 2^32 - 1.
      key = jax.random.fold_in(key, 2**32 - 1 - self.count)
    return np.asarray(jax.random.key_data(key))
