"""Consistency: terms of the loss that hold learned features near those of the frozen
CLIP.

The anchors of class features are the frozen CLIP's features under hand-written words. A
term over classes is the mean over all N classes. A step has the classes of its images
and a draw of the other classes, whose importance weights let it estimate that mean.
Shapes: B images, S sampled negatives, N classes, C = 1 + S, E embedding.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from pomp_jax.array_types import Array, Float, Int32
from pomp_jax.config.fields import Contrast
from pomp_jax.prompt.learner import ClassFeatures, Frozen, Seen, Term
from pomp_jax.prompt.loss import ContrastSettings, correction_margin, normalize
from pomp_jax.prompt.sampling.samplers import Negatives
from pomp_jax.rooms.regularisation.fields import Consistency


def term_of(contrast: Contrast) -> Term | None:
  """Returns the sum of the terms that have a weight in the config; None without any."""
  weights = contrast.of(Consistency).weights
  return consistency_term(weights) if weights else None


def consistency_term(weights: Mapping[str, float]) -> Term:
  """Makes the weighted sum of `consistency` a term of a learner.

  Args:
    weights: factor of each part of the sum, by its name.
  """

  def share(
    settings: ContrastSettings,
    frozen: Frozen,
    seen: Seen,
    classes: ClassFeatures,
    negatives: Negatives,
  ) -> jax.Array:
    """The term's share of the loss, see `Term.share`."""
    return consistency(
      weights,
      settings,
      image_features_BxE=seen.features,
      positive_features_BxE=classes.own,
      negative_features_SxE=classes.negatives,
      labels_B=seen.labels,
      negatives=negatives,
      anchors_NxE=frozen.anchors,
      frozen_features_BxE=seen.frozen,
    )

  # `kl` and `images` compare features of the learned and of the frozen image tower.
  reads_frozen = "kl" in weights or "images" in weights
  return Term(share, reads_frozen=reads_frozen)


def consistency(
  weights: Mapping[str, float],
  settings: ContrastSettings,
  image_features_BxE: Float[Array, "B E"],
  positive_features_BxE: Float[Array, "B E"],
  negative_features_SxE: Float[Array, "S E"] | Float[Array, "S B E"],
  labels_B: Int32[Array, " B"],
  negatives: Negatives,
  anchors_NxE: Float[Array, "N E"],
  frozen_features_BxE: Float[Array, "B E"] | None = None,
) -> Float[Array, ""]:
  """Computes the weighted sum of the terms in `weights`.

  All features are unit vectors: f of an image under the learned tower and f0 under the
  frozen one, g_c of a class under the prompt, and its anchor a_c.

  - squared: mean over classes of 1 - cos(g_c, a_c), half the squared distance to the
    anchor (KgCoOp, Yao et al., 2023). The others are PromptSRC's (Khattak et al., 2023).
  - l1: mean over classes and E of |g_c - a_c|.
  - kl: mean over images of KL(p0 || p) / N, with an image's probabilities p0 under f0
    and the anchors, and p under f and g.
  - images: mean over B and E of |f - f0|.

  If all classes are negatives, each term equals that of its published code. The
  expectation of `squared` and `l1` over the draw is the term over all classes, for any
  sampler that draws by its importance weights. `kl` compares corrected distributions
  over the classes that an image sees. Their logarithms are biased, as in the loss.

  Args:
    weights: factor of each term, by its name.
    settings: logit scale and number of classes.
    image_features_BxE: learned features of the images, f.
    positive_features_BxE: learned features of each image's class.
    negative_features_SxE: learned features of the negatives; [S,B,E] if they depend on
      the image.
    labels_B: class of each image.
    negatives: ids and importance weights of the negatives.
    anchors_NxE: features of all classes under hand-written words, a.
    frozen_features_BxE: features of the frozen image tower, f0; None if f0 = f.
  """
  log_weights_BxS = _log_weights(settings.n_classes, labels_B, negatives)
  image_BxE = normalize(image_features_BxE.astype(jnp.float32))
  own_BxE = normalize(positive_features_BxE.astype(jnp.float32))
  other_SxE = normalize(negative_features_SxE.astype(jnp.float32))
  own_anchor_BxE = anchors_NxE[labels_B]
  anchor_SxE = anchors_NxE[negatives.ids]
  frozen_BxE = image_BxE
  if frozen_features_BxE is not None:
    frozen_BxE = normalize(frozen_features_BxE.astype(jnp.float32))

  def over_classes(distance: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Mean of a distance to the anchors over all classes."""
    if other_SxE.ndim == 3:
      # Class features that depend on the image, [S,B,E], against anchors [S,1,E].
      other_BxS = distance(other_SxE, anchor_SxE[:, None]).T
    else:
      other_BxS = distance(other_SxE, anchor_SxE)[None]
    value_B = distance(own_BxE, own_anchor_BxE)
    value_B += jnp.sum(jnp.exp(log_weights_BxS) * other_BxS, axis=-1)
    return jnp.mean(value_B) / settings.n_classes

  def divergence() -> jax.Array:
    """KL(p0 || p) / N of each image's probabilities, mean over the images."""
    scale = settings.logit_scale
    log_p_BxC = _log_probabilities(
      scale * image_BxE, own_BxE, other_SxE, log_weights_BxS
    )
    log_p0_BxC = _log_probabilities(
      scale * frozen_BxE, own_anchor_BxE, anchor_SxE, log_weights_BxS
    )
    # A class without weight has -inf in both logarithms, whose difference would be NaN.
    has_class_BxC = log_p0_BxC > -jnp.inf
    log_ratio_BxC = jnp.where(has_class_BxC, log_p0_BxC - log_p_BxC, 0.0)
    divergence_B = jnp.sum(jnp.exp(log_p0_BxC) * log_ratio_BxC, axis=-1)
    return jnp.mean(divergence_B) / settings.n_classes

  def term(kind: str) -> jax.Array:
    """The term of a name, without its weight."""
    match kind:
      case "squared":
        return over_classes(_squared)
      case "l1":
        return over_classes(_l1)
      case "kl":
        return divergence()
      case _:  # images
        return jnp.mean(_l1(image_BxE, frozen_BxE))

  first, *others = [weight * term(kind) for kind, weight in weights.items()]
  return sum(others, first)


def _squared(
  features: Float[Array, "... E"], anchors: Float[Array, "... E"]
) -> jax.Array:
  return 0.5 * jnp.sum((features - anchors) ** 2, axis=-1)


def _l1(features: Float[Array, "... E"], anchors: Float[Array, "... E"]) -> jax.Array:
  return jnp.mean(jnp.abs(features - anchors), axis=-1)


def _log_weights(
  n_classes: int, labels_B: Int32[Array, " B"], negatives: Negatives
) -> Float[Array, "B S"]:
  """Log importance weights of the negatives in a sum over all classes but the image's.

  `negatives.rejected` is ignored: a near-synonym is no negative of an image, but it has
  an anchor too.

  Args:
    n_classes: N.
    labels_B: class of each image, which is not in the sum.
    negatives: classes of the draw and their weights.

  Returns:
    Log weights, -inf for a class that is not in an image's sum.
  """
  is_in_sum_BxS = negatives.ids[None, :] != labels_B[:, None]
  if negatives.available is not None:
    is_in_sum_BxS &= negatives.available

  log_weights = negatives.log_weights
  if log_weights is None:
    # After the plain uniform draw, each of the n_i classes in the sum has the weight
    # (N - 1) / n_i.
    n_in_sum_B = jnp.sum(is_in_sum_BxS, axis=-1, dtype=jnp.int32)
    log_weights_BxS = correction_margin(n_in_sum_B, n_classes, "log")[:, None]
  elif log_weights.ndim == 1:
    log_weights_BxS = log_weights[None, :]
  else:
    log_weights_BxS = log_weights
  return jnp.where(is_in_sum_BxS, log_weights_BxS, -jnp.inf)


def _log_probabilities(
  image_BxE: jax.Array, own_BxE: jax.Array, other: jax.Array, log_weights_BxS: jax.Array
) -> Float[Array, "B C"]:
  """Log probabilities of an image's own class, and of the weighted negatives.

  `image_BxE` is multiplied by the logit scale already. `other` is [S,E], or [S,B,E] if
  it depends on the image.
  """
  own_B = jnp.sum(image_BxE * own_BxE, axis=-1)
  product = "be,sbe->bs" if other.ndim == 3 else "be,se->bs"
  precision = jax.lax.Precision.HIGHEST  # as in the contrast
  other_BxS = jnp.einsum(product, image_BxE, other, precision=precision)
  logits_BxC = jnp.concatenate([own_B[:, None], other_BxS + log_weights_BxS], axis=1)
  return jax.nn.log_softmax(logits_BxC, axis=-1)
