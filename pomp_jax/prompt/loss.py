"""The loss of POMP: local contrast with local correction (Ren et al., 2023, section 3).

Shapes: B images, S sampled negatives, N classes, E embedding, H levels of a hierarchy.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pomp_jax.array_types import Array, Float, Int32
from pomp_jax.prompt.sampling.samplers import Negatives, SamplingSettings


class Correction(NamedTuple):
  """A row of CORRECTIONS: how the loss makes up for the classes that are not drawn."""

  # factor on the log importance weight that is added to the logit of a negative
  scale: float
  # Replaces `log_one_plus_sum` in the softmax loss: (gaps [B,S], log importance weights
  # of the images' classes [B]) -> [B]. A gap is the corrected logit of a negative minus
  # the logit of the image's class.
  loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None


CORRECTIONS = {
  "log": Correction(1.0),  # unbiased denominator
  "log10": Correction(1.0 / math.log(10.0)),  # as published
  "none": Correction(0.0),
}
# `softmax`: cross-entropy of the image's class.
# `sigmoid`: a sum of binary losses (Zhai et al., 2023); with the importance weights of
#   `log`, value and gradient are unbiased at any K.
# `l1` and `l2`: distance between the features of the own class and of the image, or of
#   a text in the place of the image (Khattak et al., 2024).
LOSSES = ("softmax", "sigmoid", "l1", "l2")
_DISTANCES = {"l1": jnp.abs, "l2": jnp.square}


@dataclasses.dataclass(frozen=True)
class ContrastSettings:
  """The numbers of the method."""

  k: int  # K, 2..N; N is the full softmax
  n_classes: int  # N
  correction: str | jax.Array  # one of CORRECTIONS, or its scale as a traced number
  logit_scale: float  # factor on the cosine
  sampling: SamplingSettings = SamplingSettings()  # the sampler of negatives
  ancestors_weight: float = 0.0  # weight of the loss over kinds of classes; 0 for none
  loss: str = "softmax"  # one of LOSSES
  logit_bias: float = 0.0  # b, added to the logits of `sigmoid`
  margin: float = 0.0  # m, added to the logits of all negatives beside the correction


class ContrastResult(NamedTuple):
  """Loss, and accuracy on the sampled set."""

  loss: Float[Array, ""]  # mean over the images, nats
  # Share of the images whose own class has the highest similarity in their set.
  accuracy: Float[Array, ""]
  # share of each of the learner's terms in the loss, by name
  terms: Mapping[str, Float[Array, ""]] = {}


def normalize(features: Float[Array, "... E"]) -> Float[Array, "... E"]:
  """Projects features onto the unit sphere."""
  return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def correction_margin(
  n_kept_B: Int32[Array, " B"], n_classes: int, correction: str | Float[Array, ""]
) -> Float[Array, " B"]:
  """Computes the margin m_i that every negative logit gets after a plain uniform draw.

  With n_i the number of negatives of image i (Ren et al., 2023, section 3):

    log: m_i = ln((N-1) / n_i), so that the sampled denominator is an unbiased estimate
      of the full one.
    log10: m_i = log10((N-1) / n_i), as in the published code.
    none: m_i = 0.

  Args:
    n_kept_B: n_i, the number of negatives that image i keeps. If it is 0, so is m_i.
    n_classes: N.
    correction: one of CORRECTIONS, or its scale as a traced number.

  Returns:
    The margin of each image, in nats for `log`.
  """
  # Avoid a division by zero for an image without negatives; its margin is set below.
  at_least_one_B = jnp.maximum(n_kept_B, 1).astype(jnp.float32)
  log_weight_B = jnp.log((n_classes - 1) / at_least_one_B)
  has_negatives_B = n_kept_B > 0
  margin_B = _factor(correction) * log_weight_B
  return jnp.where(has_negatives_B, margin_B, 0.0)


def _factor(correction: str | jax.Array) -> float | jax.Array:
  if isinstance(correction, str):
    return CORRECTIONS[correction].scale
  return correction


def local_contrast(
  settings: ContrastSettings,
  image_features_BxE: Float[Array, "B E"],
  positive_features_BxE: Float[Array, "B E"],
  negative_features_SxE: Float[Array, "S E"] | Float[Array, "S B E"],
  labels_B: Int32[Array, " B"],
  negatives: Negatives,
) -> ContrastResult:
  """Loss of each image's class against the negatives that are not its class.

  With s_ic = scale * cos(f(x_i), g(t_c)), s_i+ that of the image's class y_i, m_i the
  margin (m_ic if it differs between classes) and b the bias:

    softmax: loss_i = -log( exp(s_i+) / (exp(s_i+) + sum_{c != y_i} exp(s_ic + m_i)) ).
    sigmoid: loss_i = log(1 + exp(-s_i+ - b))
                      + sum_{c != y_i} exp(m_i) log(1 + exp(s_ic + b)).
    l1, l2: loss_i = mean over E of |f - g|, or of (f - g)^2, between the unit features
      of the image and of its class. Negatives are not used.

  An image with no negative left contributes zero softmax loss and zero gradient.

  Args:
    settings: numbers of the loss; K and the sampler are not read.
    image_features_BxE: f(x) of the images, of any length.
    positive_features_BxE: g(t_y) of each image's own class, of any length.
    negative_features_SxE: g(t_c) of the negatives, of any length; [S,B,E] if g depends
      on the image.
    labels_B: class y_i of each image.
    negatives: result of `samplers.complete_negatives`. Classes that are not available
      are dropped for all images, and n_i counts the others.
  """
  scale = settings.logit_scale
  image_BxE = normalize(image_features_BxE.astype(jnp.float32))
  positive_BxE = normalize(positive_features_BxE.astype(jnp.float32))
  negative_SxE = normalize(negative_features_SxE.astype(jnp.float32))
  positive_B = scale * jnp.sum(image_BxE * positive_BxE, axis=-1)
  # HIGHEST: accelerators would otherwise compute the product in bfloat16, and a logit
  # scale of 100 would multiply the error.
  precision = jax.lax.Precision.HIGHEST
  if negative_SxE.ndim == 2:
    cosine_BxS = jnp.matmul(image_BxE, negative_SxE.T, precision=precision)
  else:
    cosine_BxS = jnp.einsum("be,sbe->bs", image_BxE, negative_SxE, precision=precision)
  negative_BxS = scale * cosine_BxS
  kept_BxS, margin_BxS = kept_with_margin(settings, labels_B, negatives)
  corrected_BxS = jnp.where(kept_BxS, negative_BxS + margin_BxS, -jnp.inf)
  # Subtract the positive's logit before the exponentials: an image without negatives
  # has a loss of exactly 0, and no small loss is a difference of two logits near 100.
  gap_BxS = corrected_BxS - positive_B[:, None]
  match settings.loss:
    case "sigmoid":
      negative_loss_BxS = jax.nn.softplus(negative_BxS + settings.logit_bias)
      weight_BxS = jnp.exp(jnp.where(kept_BxS, margin_BxS, -jnp.inf))
      loss_B = jax.nn.softplus(-positive_B - settings.logit_bias)
      loss_B += jnp.sum(weight_BxS * negative_loss_BxS, axis=-1)
      loss = jnp.mean(loss_B)
    case "l1" | "l2":
      loss = jnp.mean(_DISTANCES[settings.loss](image_BxE - positive_BxE))
    case _:
      loss = jnp.mean(_softmax_losses(settings, gap_BxS, margin_BxS, negatives))
  return ContrastResult(loss, _accuracy(positive_B, negative_BxS, kept_BxS))


def _softmax_losses(
  settings: ContrastSettings,
  gap_BxS: jax.Array,
  margin_BxS: jax.Array,
  negatives: Negatives,
) -> jax.Array:
  """Cross-entropy of each image's class, plus that of its kinds if they have a weight.

  A gap is the corrected logit of a negative minus the logit of the image's class.
  """
  replacement = None
  if isinstance(settings.correction, str):
    replacement = CORRECTIONS[settings.correction].loss
  if replacement is None:
    loss_B = log_one_plus_sum(gap_BxS)
  else:
    loss_B = replacement(gap_BxS, _own_log_weights(negatives, margin_BxS))
  if settings.ancestors_weight:
    ancestors_B = _ancestor_losses(gap_BxS, negatives.own_kinds, negatives.kinds)
    loss_B += settings.ancestors_weight * ancestors_B
  return loss_B


def kept_with_margin(
  settings: ContrastSettings, labels_B: Int32[Array, " B"], negatives: Negatives
) -> tuple[jax.Array, jax.Array]:
  """Finds the negatives of each image, and the margins of their logits.

  Drops the image's own class, and classes that are not available or rejected.

  Args:
    settings: settings with N and the correction.
    labels_B: class of each image.
    negatives: result of `samplers.complete_negatives`.

  Returns:
    Whether each class is a negative of each image [B,S], and the sum of correction and
    fixed margin that is added to its logit: [B,S], [1,S] or [B,1].
  """
  kept_BxS = negatives.ids[None, :] != labels_B[:, None]
  if negatives.available is not None:
    kept_BxS &= negatives.available
  if negatives.rejected is not None:
    kept_BxS &= ~negatives.rejected
  log_weights = negatives.log_weights
  if log_weights is None:
    n_kept_B = jnp.sum(kept_BxS, axis=-1, dtype=jnp.int32)
    margin_B = correction_margin(n_kept_B, settings.n_classes, settings.correction)
    return kept_BxS, margin_B[:, None] + settings.margin
  factor = _factor(settings.correction)
  if log_weights.ndim == 1:
    return kept_BxS, factor * log_weights[None, :] + settings.margin
  # Each image has its own draw. Classes of the other images' draws have weight 0.
  is_drawn_BxS = log_weights > -jnp.inf
  return kept_BxS & is_drawn_BxS, factor * log_weights + settings.margin


def _own_log_weights(negatives: Negatives, margin_BxS: jax.Array) -> jax.Array:
  """Log importance weights of the images' own classes, [B], or one 0 for all images."""
  if negatives.log_weights is None:
    # After the uniform draw all classes have the same weight.
    return margin_BxS[:, 0]
  if negatives.own_log_weights is None:
    return jnp.zeros(())
  return negatives.own_log_weights


def _accuracy(
  positive_B: jax.Array, negative_BxS: jax.Array, kept_BxS: jax.Array
) -> jax.Array:
  hardest_B = jnp.max(jnp.where(kept_BxS, negative_BxS, -jnp.inf), axis=-1)
  return jnp.mean(positive_B > hardest_B)


def log_one_plus_sum(gap_BxS: jax.Array) -> jax.Array:
  """log(1 + sum exp(gap)): the cross-entropy, in which the 1 is the positive's term."""
  return jax.nn.logsumexp(jnp.pad(gap_BxS, ((0, 0), (1, 0))), axis=-1)


def _ancestor_losses(
  gap_BxS: jax.Array, own_kinds_BxH: Any, kinds_SxH: Any
) -> jax.Array:
  """Cross-entropy of the kind of each image's class, mean over the levels.

  A kind's logit is the log-sum-exp of the corrected logits of the classes below it. The
  kind's probability is then the sum of the probabilities of these classes:

    -log p(kind) = -log p(class) + log p(class | kind).

  Args:
    gap_BxS: corrected logits of the negatives minus the logit of the image's class.
    own_kinds_BxH: int32 [B,H], kind of each image's class on each level; -1 for none.
    kinds_SxH: int32 [S,H], kinds of the negatives.

  Returns:
    [B], in nats. A level on which the image's class has no kind counts as 0.
  """
  # -log p(class), among all negatives.
  class_loss_B = log_one_plus_sum(gap_BxS)
  n_levels = own_kinds_BxH.shape[1]
  total_B = jnp.zeros_like(class_loss_B)
  for level in range(n_levels):
    own_kind_B = own_kinds_BxH[:, level]
    same_kind_BxS = own_kind_B[:, None] == kinds_SxH[None, :, level]
    # -log p(class | kind), among the negatives of the same kind.
    gap_in_kind_BxS = jnp.where(same_kind_BxS, gap_BxS, -jnp.inf)
    loss_in_kind_B = log_one_plus_sum(gap_in_kind_BxS)
    has_kind_B = own_kind_B >= 0
    kind_loss_B = class_loss_B - loss_in_kind_B
    total_B += jnp.where(has_kind_B, kind_loss_B, 0.0)
  return total_B / n_levels
