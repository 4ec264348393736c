"""The optimizers of the recipes, SGD with momentum and AdamW, and their schedules."""

import math
from typing import Any

import jax.numpy as jnp
import optax

from pomp_jax.array_types import Array, Float

SCHEDULES = ("epoch", "step")
OPTIMIZERS = ("sgd", "adamw")

# A number, traced or not.
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
  """Builds the schedule of the recipes: a constant warmup, then a cosine decay.

  With t the time in epochs, w the warmup and T the epochs of the run, the rate after
  the warmup is base * (1 + cos(pi * progress)) / 2.

  - `epoch` is the published schedule: t counts whole epochs and progress is (t - w) /
    T. This is torch's CosineAnnealingLR with T_max = T, which Dassl's
    ConstantWarmupScheduler starts after the warmup. The last epoch's rate is not 0: at
    T = 5 and w = 1 the rates are warmup_rate, base, .905 base, .655 base and .345 base.
  - `step` is ours: t moves at every step and progress is (t - w) / (T - w), so the rate
    reaches 0 at the end of the run.

  Args:
    schedule: one of SCHEDULES.
    base: rate after the warmup.
    epochs: T, which may be a fraction.
    steps_per_epoch: steps of an epoch.
    warmup: w, in epochs; a fraction only for `step`.
    warmup_rate: constant rate of the warmup.

  Returns:
    A function from the number of the step, 0 for the first, to its rate.
  """
  if schedule == "epoch":
    decay_epochs = epochs
  else:
    # Avoid a division by zero for a run that is all warmup, which uses no decay.
    decay_epochs = max(epochs - warmup, 1e-9)

  def time_of(step: Any) -> Any:
    """Time t in epochs, at the start of a step."""
    if schedule == "epoch":
      # Not step / steps_per_epoch, which can round to just below a whole epoch.
      return step // steps_per_epoch
    return step / steps_per_epoch

  def rate(step: Any) -> Array:
    time = time_of(step)
    progress = (time - warmup) / decay_epochs
    decayed = 0.5 * base * (1 + jnp.cos(math.pi * jnp.clip(progress, 0, 1)))
    return jnp.where(time < warmup, warmup_rate, decayed)

  return rate


def sgd(
  rate: optax.Schedule, momentum: Number, weight_decay: Number, clip_norm: float = 0.0
) -> optax.GradientTransformation:
  """SGD as in torch.optim.SGD: decay is added to the gradient, before the momentum.

  Args:
    rate: learning rate by step.
    momentum: share of the last update that is kept.
    weight_decay: factor of the parameters that is added to the gradient.
    clip_norm: largest norm of the gradient over all parameters. A longer gradient is
      first scaled down, as torch.nn.utils.clip_grad_norm_ does. 0 for no limit.
  """
  parts = [
    optax.add_decayed_weights(weight_decay),
    optax.trace(momentum),
    optax.scale_by_learning_rate(rate),
  ]
  # Without clipping, add no entry to the optimizer state: older checkpoints have none.
  if clip_norm:
    parts.insert(0, optax.clip_by_global_norm(clip_norm))
  return optax.chain(*parts)


def adamw(
  rate: optax.Schedule,
  beta1: Number,
  beta2: float,
  epsilon: float,
  decay: Number,
  clip_norm: float,
) -> optax.GradientTransformation:
  """AdamW as in torch.optim.AdamW.

  Args:
    rate: learning rate by step.
    beta1: decay of the mean of the gradients.
    beta2: decay of the mean of the squared gradients.
    epsilon: number added to the root of the mean square.
    decay: weight decay; each step subtracts rate * decay * parameters.
    clip_norm: largest norm of the gradient, see `sgd`.
  """
  decoupled = optax.adamw(rate, beta1, beta2, epsilon, weight_decay=decay)
  if not clip_norm:
    return decoupled
  return optax.chain(optax.clip_by_global_norm(clip_norm), decoupled)


def result_of(params: Any, opt_state: Any) -> Any:
  """The parameters that a training results in.

  These are the average of the parameters if the optimizer keeps one, else `params`.
  """
  return optax.tree.get(opt_state, "average", params)
