"""The optimizer of the recipe: SGD with momentum, and its learning-rate schedules."""

import math

import jax.numpy as jnp
import optax

from pomp_jax.annotations import Array, Float

SCHEDULES = ("epoch", "step")

# A number, or one that is traced.
Number = float | int | Float[Array, ""]


def learning_rate(
  *,
  schedule: str,
  base: Number,
  epochs: float | int,
  steps_per_epoch: int,
  warmup: float | int,
  warmup_rate: Number,
) -> optax.Schedule:
  """Cosine from `base` to 0 after a constant warm-up.

  Args:
    schedule: `epoch` (the recipe: the rate changes once an epoch) or `step` (at every step).
    base: the rate at the start of the cosine.
    epochs: of the whole run.
    steps_per_epoch: steps in each.
    warmup: epochs at the constant `warmup_rate`; `epoch` takes whole ones, `step` any fraction.
    warmup_rate: the rate there.

  Returns:
    step -> rate. With t the epoch (or the step in epochs), w the warm-up and T the epochs:
    base * (1 + cos(pi (t - w) / (T - w))) / 2.

  Raises:
    ValueError: an unknown schedule.
  """
  if schedule not in SCHEDULES:
    raise ValueError(f"unknown schedule {schedule!r}; accepted: {', '.join(SCHEDULES)}")

  def rate(step):
    time = step / steps_per_epoch
    if schedule == "epoch":
      # Integer division: step / steps_per_epoch can round down to the epoch before.
      time = step // steps_per_epoch
    progress = (time - warmup) / max(epochs - warmup, 1e-9)
    cosine = 0.5 * base * (1 + jnp.cos(math.pi * jnp.clip(progress, 0, 1)))
    return jnp.where(time < warmup, warmup_rate, cosine)

  return rate


def sgd(
  rate: optax.Schedule, momentum: Number, weight_decay: Number
) -> optax.GradientTransformation:
  """SGD as torch.optim.SGD has it: decay is added to the gradient, before the momentum."""
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.trace(momentum),
    optax.scale_by_learning_rate(rate),
  )
