"""The optimizers of the recipes, SGD with momentum and AdamW, and their learning
rates."""

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
  """Cosine decay from `base` after a constant warmup.

  With t the time in epochs, w the warmup and T the epochs of the run (any fraction),
  the rate after the warmup is base * (1 + cos(pi * progress)) / 2.

  - `epoch` is the published schedule: t counts whole epochs and progress is (t - w) /
    T. This is torch's CosineAnnealingLR with T_max = T, which Dassl's
    ConstantWarmupScheduler starts after the warmup. The last epoch's rate is not 0: at
    T = 5 and w = 1 the rates are warmup_rate, base, .905 base, .655 base and .345 base.
  - `step` is ours: t moves at every step and progress is (t - w) / (T - w), so the rate
  reaches 0 at the end of the run. w may be a fraction.
  """

  def rate(step: Any) -> Array:
    if schedule == "epoch":
      # Integer division: step / steps_per_epoch can round down to the epoch before.
      time = step // steps_per_epoch
      progress = (time - warmup) / epochs
    else:
      time = step / steps_per_epoch
      progress = (time - warmup) / max(epochs - warmup, 1e-9)
    cosine = 0.5 * base * (1 + jnp.cos(math.pi * jnp.clip(progress, 0, 1)))
    return jnp.where(time < warmup, warmup_rate, cosine)

  return rate


def sgd(
  rate: optax.Schedule, momentum: Number, weight_decay: Number, clip_norm: float = 0.0
) -> optax.GradientTransformation:
  """SGD as in torch.optim.SGD: decay is added to the gradient, before the momentum.

  Before that, the gradient is scaled down where its norm over all parameters exceeds
  `clip_norm`, as by torch.nn.utils.clip_grad_norm_; 0: any norm.
  """
  return optax.chain(
    # No entry in the state where nothing is clipped: checkpoints of before have none.
    *([optax.clip_by_global_norm(clip_norm)] if clip_norm else []),
    optax.add_decayed_weights(weight_decay),
    optax.trace(momentum),
    optax.scale_by_learning_rate(rate),
  )


def adamw(
  rate: optax.Schedule,
  beta1: Number,
  beta2: float,
  epsilon: float,
  decay: Number,
  clip_norm: float,
) -> optax.GradientTransformation:
  """AdamW as in torch.optim.AdamW, of a gradient that is clipped as by `sgd`."""
  decoupled = optax.adamw(rate, beta1, beta2, epsilon, weight_decay=decay)
  return (
    optax.chain(optax.clip_by_global_norm(clip_norm), decoupled)
    if clip_norm
    else decoupled
  )


def result_of(params: Any, opt_state: Any) -> Any:
  """The parameters that a training results in: their average, if the optimizer keeps
  one."""
  return optax.tree.get(opt_state, "average", params)
