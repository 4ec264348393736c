"""Other samplers and corrections beside `posterior` and `log`: the table in
docs/reproduce/sampling.md.

  python -m docs.studies.other_samplers --workdir=runs/time_short
  python -m docs.studies.other_samplers --config=gradient_bias --workdir=runs/gradient_bias \
    "--config.gradient_bias.corrections=log;logq"

The rows below are registered before a command of `pomp` starts in this process, so any
of its jobs takes them: `--config.sampling.name=easy`, `--config.correction=refined`.
Without `--config` the job is the ablation `time_to_accuracy`, with the grid of the
table.

Shapes: B images of a draw, S sampled negatives, N classes, E embedding.
"""

from collections.abc import Sequence
import dataclasses
import sys

import jax
import jax.numpy as jnp

from pomp_jax.array_types import Array, Float
from pomp_jax.prompt.loss import CORRECTIONS, Correction, log_one_plus_sum
from pomp_jax.prompt.sampling.samplers import (
  SAMPLERS,
  Negatives,
  Sampler,
  SamplingArrays,
  SamplingSettings,
  propose_posterior,
  propose_similar,
)

_SEEDS = "seed=0|1|2"
GRID = (
  f"sampling.name=posterior|top;k=16|64|256;steps=200;{_SEEDS}"
  f" & sampling.name=independent;k=2|3;steps=200;{_SEEDS}"
  f" & sampling.name=uniform;k=all;steps=100;{_SEEDS}"
)


def propose_far(
  settings: SamplingSettings, arrays: SamplingArrays, labels_B: Array, images_BxE: Array
) -> Float[Array, " N"]:
  """q of `hard` with -T: each image proposes the classes far from its anchor."""
  settings = dataclasses.replace(settings, temperature=-settings.temperature)
  return propose_similar(settings, arrays, labels_B, images_BxE)


def take_top(
  key: jax.Array,
  settings: SamplingSettings,
  arrays: SamplingArrays,
  labels_B: Array,
  images_BxE: Array,
  size: int,
) -> Negatives:
  """The classes with the most of `posterior`'s q, without a draw: each has the
  weight 1."""
  del key
  q_N = propose_posterior(settings, arrays, labels_B, images_BxE)
  return Negatives(jax.lax.top_k(q_N, size)[1], log_weights=jnp.zeros(size))


def draw_for_each(
  key: jax.Array,
  settings: SamplingSettings,
  arrays: SamplingArrays,
  labels_B: Array,
  images_BxE: Array,
  size: int,
) -> Negatives:
  """Draws `size` classes for each image by itself, with replacement and never the
  image's own.

  q_i(c) = mix / (N - 1) + (1 - mix) softmax_c(s f(x_i) . g_c) over c != y_i, s the
  logit scale and g the bank. A class in the draw of image i has the weight 1 / (size
  q_i(c)) there.
  """
  n_images, n_classes = labels_B.size, arrays.bank.n_classes

  def shares(image_E: Array, label: Array) -> Float[Array, " N"]:
    temperature = 1.0 / settings.logit_scale
    return arrays.bank.mean_softmax(
      image_E[None], label[None], temperature, own_class=False
    )

  q_BxN = jax.vmap(shares)(images_BxE, labels_B)
  q_BxN = settings.mix / (n_classes - 1) + (1.0 - settings.mix) * q_BxN
  q_BxN = jnp.where(labels_B[:, None] == jnp.arange(n_classes), 0.0, q_BxN)
  ends_BxN = jnp.cumsum(q_BxN, axis=1)
  places_BxK = jax.random.uniform(key, (n_images, size)) * ends_BxN[:, -1:]
  find = lambda ends_N, places_K: jnp.searchsorted(ends_N, places_K, side="right")
  # Rounding may lead beyond the last class.
  ids_BxK = jnp.minimum(jax.vmap(find)(ends_BxN, places_BxK), n_classes - 1).astype(
    jnp.int32
  )
  log_q_BxK = jnp.log(jnp.take_along_axis(q_BxN, ids_BxK, axis=1))
  # One draw of every image before the next: the last draws are dropped beyond a token
  # budget.
  image_S = jnp.tile(jnp.arange(n_images), size)
  log_weights_S = -log_q_BxK.T.ravel() - jnp.log(size)
  own_BxS = image_S == jnp.arange(n_images)[:, None]
  return Negatives(
    ids_BxK.T.ravel(),
    log_weights=jnp.where(own_BxS, log_weights_S, -jnp.inf),
    own_log_weights=jnp.zeros(n_images),
  )


def loss_of_logq(
  gap_BxS: Float[Array, "B S"], own_log_weights_B: Float[Array, " B"]
) -> Float[Array, " B"]:
  """The cross-entropy with the correction of the positive, too (Bengio & Senecal,
  2008)."""
  return log_one_plus_sum(gap_BxS - jnp.reshape(own_log_weights_B, (-1, 1)))


def refined_loss(
  gap_BxS: Float[Array, "B S"], own_log_weights_B: Float[Array, " B"]
) -> Float[Array, " B"]:
  """(1 - P) log sum exp(gap), with P, the positive's probability, held fixed.

  Khrylchenko et al., "Correcting the LogQ Correction" (2025): the positive is certain,
  so it is not corrected and is in no sum of drawn classes. The gradient of log(1 + sum
  exp(gap)) is (1 - P) times that of log sum exp(gap), so the two losses differ in value
  alone.
  """
  del own_log_weights_B
  any_B = jnp.any(gap_BxS > -jnp.inf, axis=-1)
  log_odds_B = jax.nn.logsumexp(jnp.where(any_B[:, None], gap_BxS, 0.0), axis=-1)
  return jnp.where(
    any_B, jax.lax.stop_gradient(jax.nn.sigmoid(log_odds_B)) * log_odds_B, 0.0
  )


OTHER_SAMPLERS = {
  "easy": Sampler(propose_far, ("bank",), reads=("mix", "temperature", "anchors")),
  "top": Sampler(needs=("bank",), reads=(), draw=take_top),
  "independent": Sampler(needs=("bank",), draw=draw_for_each, for_each_image=True),
}
OTHER_CORRECTIONS = {
  "logq": Correction(1.0, loss_of_logq),
  "refined": Correction(1.0, refined_loss),
}


def main(arguments: Sequence[str]) -> int:
  """Registers the rows and runs a command of `pomp`; returns its exit status."""
  SAMPLERS.update(OTHER_SAMPLERS)
  CORRECTIONS.update(OTHER_CORRECTIONS)
  # Only now: the fields list their values when they are imported.
  from pomp_jax.main import main as pomp

  if not any(argument.startswith("--config=") for argument in arguments):
    arguments = [
      "--config=time_to_accuracy",
      f"--config.ablate.grid={GRID}",
      *arguments,
    ]
  return pomp(arguments)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
