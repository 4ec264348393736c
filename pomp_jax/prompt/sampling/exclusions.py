"""What a draw of negatives becomes for a group of images: exclusions, batch positives, kinds.

Shapes: B images of a draw, S sampled negatives, N classes, E embedding, D relatives of a class, H
levels of a hierarchy.
"""

import jax
import jax.numpy as jnp

from pomp_jax.array_types import Array, Bool, Int32
from pomp_jax.prompt.sampling.samplers import Negatives, SamplingArrays, SamplingSettings


def complete_negatives(
  settings: SamplingSettings,
  arrays: SamplingArrays,
  drawn: Negatives,
  labels_B: Int32[Array, " B"],
  available_S: Bool[Array, " S"] | None = None,
) -> Negatives:
  """Adds availability, the batch's positives, exclusions and kinds to a result of `draw_negatives`.

  `labels_B` are the images' classes, `available_S` the drawn classes whose features were computed
  (all if None). With `arrays.levels`, the negatives get kinds.
  """
  negatives = drawn._replace(available=available_S)
  log_weights_S = drawn.log_weights
  if log_weights_S is not None:
    own_BxS = None
    if drawn.image is not None:
      own_BxS = drawn.image == jnp.arange(labels_B.size)[:, None]
      n_own_B = jnp.sum(own_BxS if available_S is None else own_BxS & available_S, axis=1)
      log_weights_S = log_weights_S - jnp.log(jnp.maximum(n_own_B, 1))[drawn.image]
    elif available_S is not None and settings.name != "top":
      # A class is equally likely at any place of the draw, so a part of the draw is a smaller one.
      n_available = jnp.maximum(jnp.sum(available_S), 1)
      log_weights_S = log_weights_S + jnp.log(drawn.ids.size / n_available)
    negatives = negatives._replace(log_weights=log_weights_S)
    if settings.batch_positives:
      negatives = _with_batch_positives(negatives, log_weights_S, labels_B)
    rejected_BxS = _rejected(settings, arrays, labels_B, negatives.ids)
    if own_BxS is not None:
      # The batch's positives, which stand before the draws, are negatives of all images.
      n_before = negatives.ids.size - drawn.ids.size
      others_BxS = jnp.pad(~own_BxS, ((0, 0), (n_before, 0)))
      rejected_BxS = others_BxS if rejected_BxS is None else rejected_BxS | others_BxS
    negatives = negatives._replace(rejected=rejected_BxS)
  if arrays.levels is not None:
    own_kinds_BxH, kinds_SxH = arrays.levels[labels_B], arrays.levels[negatives.ids]
    negatives = negatives._replace(own_kinds=own_kinds_BxH, kinds=kinds_SxH)
  return negatives


def _rejected(
  settings: SamplingSettings,
  arrays: SamplingArrays,
  labels_B: Int32[Array, " B"],
  ids_S: Int32[Array, " S"],
) -> Bool[Array, "B S"] | None:
  """Near-synonyms of each image's class among the negatives; None without an exclusion."""
  if settings.exclude == "none":
    return None
  if settings.exclude == "similar":
    own_BxE, drawn_SxE = arrays.bank.of_classes(labels_B), arrays.bank.of_classes(ids_S)
    product_BxS = jnp.matmul(own_BxE, drawn_SxE.T, precision=jax.lax.Precision.HIGHEST)
    return product_BxS > settings.exclude_threshold
  kin_NxD = arrays.kin
  kin_of_label = jnp.any(kin_NxD[labels_B][:, None, :] == ids_S[None, :, None], axis=-1)
  kin_of_drawn = jnp.any(kin_NxD[ids_S][None, :, :] == labels_B[:, None, None], axis=-1)
  return kin_of_label | kin_of_drawn


def _with_batch_positives(
  negatives: Negatives, log_weights_S: Array, labels_B: Int32[Array, " B"]
) -> Negatives:
  """Puts the images' classes before the drawn ones, each class once.

  The images' classes are certain, so their weight is 1, and a drawn class that is one of them is
  dropped. The sum over all classes stays unbiased.
  """
  earlier_BxB = jnp.tril(labels_B[:, None] == labels_B[None, :], k=-1)
  drawn_S = ~jnp.any(negatives.ids[:, None] == labels_B[None, :], axis=1)
  if negatives.available is not None:
    drawn_S &= negatives.available
  return negatives._replace(
    ids=jnp.concatenate([labels_B, negatives.ids]),
    log_weights=jnp.concatenate([jnp.zeros(labels_B.shape, log_weights_S.dtype), log_weights_S]),
    available=jnp.concatenate([~jnp.any(earlier_BxB, axis=1), drawn_S]),
  )
