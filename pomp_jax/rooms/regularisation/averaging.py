"""Means of the parameters over a training, as a part of its optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pomp_jax.config.fields import Optim
from pomp_jax.rooms.regularisation.fields import Average


class Averaged(NamedTuple):
  """State of `averaging`."""

  average: Any  # mean of the parameters so far
  step: Any  # updates so far
  log_total: Any  # log of the sum of the updates' weights; 0 for `ema`


def average_of(
  optim: Optim, steps_per_epoch: int
) -> optax.GradientTransformation | None:
  """Builds the average of the parameters that `config.optim.average` names.

  Args:
    optim: `config.optim`, with the fields of `Average`.
    steps_per_epoch: steps of an epoch.

  Returns:
    The last transformation of the optimizer, see `averaging`; None for "none".
  """
  settings = optim.of(Average)
  if settings.average == "none":
    return None
  return averaging(
    settings.average,
    schedule=optim.schedule,
    steps_per_epoch=steps_per_epoch,
    mean=settings.average_mean,
    sigma=settings.average_sigma,
    decay=settings.average_decay,
  )


def averaging(
  kind: str,
  *,
  schedule: str,
  steps_per_epoch: int,
  mean: float,
  sigma: float,
  decay: float,
) -> optax.GradientTransformation:
  """Leaves updates as they are, and keeps a weighted mean of the updated parameters.

  - `gaussian`, as in PromptSRC (Khattak et al., 2023), weights the parameters by
    exp(-((t - mean) / sigma)^2 / 2), with t the time in epochs, divided by the sum of
    the weights so far. Before the first step that counts, the mean is the parameters
    themselves.
  - `ema` weights the parameters of s steps ago by decay^s, divided by the sum of the
    weights.

  Args:
    kind: "gaussian" or "ema".
    schedule: "step": every step counts. "epoch": `gaussian` counts only the last step
      of each epoch, as PromptSRC does.
    steps_per_epoch: steps of an epoch.
    mean: mean of the Gaussian, epochs.
    sigma: standard deviation of the Gaussian, epochs.
    decay: factor on a weight for each later step.
  """

  def ema_share(step: Any) -> Any:
    """Weight of a step in the mean over the steps up to it."""
    return (1 - decay) / (1 - decay**step)

  def gaussian_share(step: Any, log_total: Any) -> tuple[Any, Any]:
    """Weight of a step, and the log of the sum of the weights up to it."""
    counts = (schedule == "step") | (step % steps_per_epoch == 0)
    log_weight = -0.5 * ((step / steps_per_epoch - mean) / sigma) ** 2
    total = jnp.where(counts, jnp.logaddexp(log_total, log_weight), log_total)
    # Before the first step that counts, the average is the parameters themselves.
    uncounted = jnp.where(log_total == -jnp.inf, 1.0, 0.0)
    # The weight is exp(log_weight - total), but XLA may round these two differently.
    weight = jax.nn.sigmoid(log_weight - log_total)
    return jnp.where(counts, weight, uncounted), total

  def init(params: Any) -> Averaged:
    log_total = jnp.float32(0 if kind == "ema" else -jnp.inf)
    return Averaged(params, jnp.zeros((), jnp.int32), log_total)

  def update(updates: Any, state: Averaged, params: Any) -> tuple[Any, Averaged]:
    step = state.step + 1
    log_total = state.log_total
    if kind == "ema":
      weight = ema_share(step)
    else:
      weight, log_total = gaussian_share(step, log_total)
    moved = optax.apply_updates(params, updates)
    average = jax.tree.map(
      lambda old, new: old + weight * (new - old), state.average, moved
    )
    return updates, Averaged(average, step, log_total)

  return optax.GradientTransformation(init, update)
