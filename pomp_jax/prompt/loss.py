"""Local contrast with local correction: the loss of POMP (Ren et al., 2023, section 3).

Shapes: B images, K negatives, E embedding, H levels of a hierarchy.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pomp_jax.annotations import Array, Bool, Float, Int32

# `log` is the unbiased one. `log10`: as published. `none`. `refined`: of Khrylchenko et al. (2025),
# whose gradient is that of `log`. `logq`: the classic one, which corrects the positive as well.
CORRECTIONS = ("log", "log10", "none", "refined", "logq")
# What these multiply the logarithm of the unbiased weight with; the others, with 1.
SCALES = {"log": 1.0, "log10": 1.0 / math.log(10.0), "none": 0.0}


class Contrast(NamedTuple):
  """Loss, and accuracy on the sampled set.

  Attributes:
    loss: mean cross-entropy over the images, nats.
    accuracy: share of the images whose own class has the highest similarity in their set.
  """

  loss: Float[Array, ""]
  accuracy: Float[Array, ""]


def normalize(features: Float[Array, "... E"]) -> Float[Array, "... E"]:
  """Features on the unit sphere."""
  return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def margin(
  n_kept_B: Int32[Array, " B"], n_classes: int, correction: str | Float[Array, ""]
) -> Float[Array, " B"]:
  """What the correction adds to every negative logit.

  `log`: ln((N-1) / n_i), which makes the sampled denominator an unbiased estimate of the full
  one; `refined` and `logq` have the same. `log10`: log10((N-1) / n_i), what the published code
  adds. `none`: 0.

  Args:
    n_kept_B: n_i, negatives of each image that were not rejected; 0 gives 0.
    n_classes: N.
    correction: one of CORRECTIONS, or what SCALES has for it, as a number to be traced.

  Raises:
    ValueError: an unknown correction.
  """
  if isinstance(correction, str) and correction not in CORRECTIONS:
    raise ValueError(f"unknown correction {correction!r}; accepted: {', '.join(CORRECTIONS)}")
  kept_B = jnp.maximum(n_kept_B, 1).astype(jnp.float32)
  log_weight_B = jnp.log((n_classes - 1) / kept_B)
  return jnp.where(n_kept_B > 0, _scale(correction) * log_weight_B, 0.0)


def guess_loss(n_negatives: int, n_classes: int, correction: str) -> float:
  """The loss of an image whose similarity to all classes is the same, nats.

  ln(N) where the correction is unbiased, ln(1 + n) where there is none.

  Args:
    n_negatives: n, that were not rejected.
    n_classes: N.
    correction: one of CORRECTIONS.
  """
  added = margin(jnp.array([n_negatives], jnp.int32), n_classes, correction)
  return math.log1p(n_negatives * math.exp(float(added[0])))


def _scale(correction: str | jax.Array) -> float | jax.Array:
  return SCALES.get(correction, 1.0) if isinstance(correction, str) else correction


class Weights(NamedTuple):
  """What drawn classes stand for where the draw was not the plain uniform one.

  Attributes:
    log_negatives: logarithms of the weights that keep the sum over the drawn classes unbiased;
      they take the place of `margin`.
    log_own: likewise of each image's own class, which only `logq` uses.
    rejected: classes that are no negatives of an image, beside its own; None: no others.
  """

  log_negatives: Float[Array, " K"]
  log_own: Float[Array, " B"]
  rejected: Bool[Array, "B K"] | None = None


class Ancestors(NamedTuple):
  """The contrast between kinds of classes, beside that of the classes.

  Attributes:
    weight: of its loss.
    labels: the kind of each image's class on each level; -1 where it is of none.
    negatives: likewise of the drawn classes.
  """

  weight: float
  labels: Int32[Array, "B H"]
  negatives: Int32[Array, "K H"]


def local_contrast(
  image_features_BxE: Float[Array, "B E"],
  positive_features_BxE: Float[Array, "B E"],
  negative_features_KxE: Float[Array, "K E"] | Float[Array, "K B E"],
  labels_B: Int32[Array, " B"],
  negatives_K: Int32[Array, " K"],
  *,
  logit_scale: float,
  n_classes: int,
  correction: str | Float[Array, ""],
  available_K: Bool[Array, " K"] | None = None,
  weights: Weights | None = None,
  ancestors: Ancestors | None = None,
) -> Contrast:
  """Cross-entropy of each image's class against the negatives that are not its class.

  loss_i = -log( exp(s_i+) / (exp(s_i+) + sum_{c != y_i} exp(s_ic + m_i)) ), s = scale * cos.
  An image with no negative left contributes zero loss and zero gradient.

  Args:
    image_features_BxE: f(x), any length.
    positive_features_BxE: g(t_y) of each image's own class, any length.
    negative_features_KxE: g(t_c) of the drawn classes, any length; [K,B,E] where it depends on
      the image.
    labels_B: y.
    negatives_K: the drawn classes, distinct.
    logit_scale: what multiplies the cosine.
    n_classes: N, all classes that could be drawn.
    correction: as `margin` takes it.
    available_K: drawn classes whose features are there; the others are no negatives of any
      image, and n_i counts the rest. All if None.
    weights: of a draw that was not the plain uniform one.
    ancestors: kinds of the classes, for a loss over them; none if None.
  """
  image_BxE = normalize(image_features_BxE.astype(jnp.float32))
  positive_BxE = normalize(positive_features_BxE.astype(jnp.float32))
  negative_KxE = normalize(negative_features_KxE.astype(jnp.float32))
  positive_B = logit_scale * jnp.sum(image_BxE * positive_BxE, axis=-1)
  # HIGHEST: logits are multiplied by 100, and accelerators would round the product to bfloat16.
  precision = jax.lax.Precision.HIGHEST
  if negative_KxE.ndim == 2:
    cosine_BxK = jnp.matmul(image_BxE, negative_KxE.T, precision=precision)
  else:
    cosine_BxK = jnp.einsum("be,kbe->bk", image_BxE, negative_KxE, precision=precision)
  negative_BxK = logit_scale * cosine_BxK
  kept_BxK = negatives_K[None, :] != labels_B[:, None]
  if available_K is not None:
    kept_BxK &= available_K
  if weights is not None and weights.rejected is not None:
    kept_BxK &= ~weights.rejected
  n_kept_B = jnp.sum(kept_BxK, axis=-1, dtype=jnp.int32)
  margin_B = own_B = margin(n_kept_B, n_classes, correction)
  margin_BxK = margin_B[:, None]
  if weights is not None:
    margin_BxK = _scale(correction) * weights.log_negatives[None, :]
    own_B = weights.log_own
  corrected_BxK = jnp.where(kept_BxK, negative_BxK + margin_BxK, -jnp.inf)
  kind = correction if isinstance(correction, str) else "log"
  # Relative to the positive before the exponentials: exact for an image without negatives, and
  # no logits of 100 to cancel where the loss is small.
  gap_BxK = corrected_BxK - positive_B[:, None]
  if kind == "logq":
    gap_BxK -= own_B[:, None]
  loss_B = _refined(gap_BxK) if kind == "refined" else _log_one_plus_sum(gap_BxK)
  if ancestors is not None:
    loss_B += ancestors.weight * _ancestor_losses(gap_BxK, ancestors)
  hardest_B = jnp.max(jnp.where(kept_BxK, negative_BxK, -jnp.inf), axis=-1)
  return Contrast(jnp.mean(loss_B), jnp.mean(positive_B > hardest_B))


def _log_one_plus_sum(gap_BxK: jax.Array) -> jax.Array:
  """log(1 + sum exp(gap)), the positive being the 1: cross-entropy of the positive."""
  return jax.nn.logsumexp(jnp.pad(gap_BxK, ((0, 0), (1, 0))), axis=-1)


def _refined(gap_BxK: jax.Array) -> jax.Array:
  """(1 - P) log sum exp(gap), with P, the positive's probability, held fixed.

  Khrylchenko et al., "Correcting the LogQ Correction" (2025): the positive is not drawn, it is
  always there, so it is not corrected and stands in no sum of drawn classes. The gradient of
  log(1 + sum exp(gap)) is (1 - P) times that of log sum exp(gap): the two losses differ in value
  alone.
  """
  any_B = jnp.any(gap_BxK > -jnp.inf, axis=-1)
  log_odds_B = jax.nn.logsumexp(jnp.where(any_B[:, None], gap_BxK, 0.0), axis=-1)
  return jnp.where(any_B, jax.lax.stop_gradient(jax.nn.sigmoid(log_odds_B)) * log_odds_B, 0.0)


def _ancestor_losses(gap_BxK: jax.Array, ancestors: Ancestors) -> jax.Array:
  """Cross-entropy of the kind of each image's class, mean over the levels.

  A kind's logit is the log-sum-exp of the corrected logits of the classes below it, so that its
  probability is the sum of theirs. A level without the image's class counts as 0.
  """
  whole_B = _log_one_plus_sum(gap_BxK)
  n_levels = ancestors.labels.shape[1]
  total_B = jnp.zeros_like(whole_B)
  for level in range(n_levels):
    own_B = ancestors.labels[:, level]
    below_BxK = own_B[:, None] == ancestors.negatives[None, :, level]
    below_B = _log_one_plus_sum(jnp.where(below_BxK, gap_BxK, -jnp.inf))
    total_B += jnp.where(own_B >= 0, whole_B - below_B, 0.0)
  return total_B / n_levels
