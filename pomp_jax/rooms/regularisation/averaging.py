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
  log_total: Any  # log of the sum of their weights; 0 for `ema`


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
  """Leaves the updates as they are, and keeps the mean of the parameters after them.

  - `gaussian` has the weights exp(-((t - mean) / sigma)^2 / 2), with t the time in
    epochs: that of PromptSRC (Khattak et al., 2023). The weights so far add up to 1;
    before the first, the average is the parameters themselves.
  - `ema` has the weights decay^s, s steps ago, divided by their sum.

  Args:
    kind: "gaussian" or "ema".
    schedule: "step", where every step counts, or "epoch", where `gaussian` counts the
      ends of epochs alone, as PromptSRC does.
    steps_per_epoch: steps of an epoch.
    mean: mean of the Gaussian, epochs.
    sigma: standard deviation of the Gaussian, epochs.
    decay: factor of a weight for each later step.
  """

  def ema_share(step: Any) -> Any:
    """Weight of a step in the mean over the steps up to it."""
    return (1 - decay) / (1 - decay**step)

  def gaussian_share(step: Any, log_total: Any) -> tuple[Any, Any]:
    """Weight of a step, and the log of the sum of the weights up to it."""
    counts = (schedule == "step") | (step % steps_per_epoch == 0)
    log_weight = -0.5 * ((step / steps_per_epoch - mean) / sigma) ** 2
    total = jnp.where(counts, jnp.logaddexp(log_total, log_weight), log_total)
    # Before the first step that counts the parameters themselves are the average.
    uncounted = jnp.where(log_total == -jnp.inf, 1.0, 0.0)
    # Not exp(log_weight - total): XLA may round the two differently.
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
