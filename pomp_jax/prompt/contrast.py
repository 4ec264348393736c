"""Local contrast with local correction: the loss of POMP (Ren et al., 2023, section 3).

Shapes: B images, K negatives, E embedding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pomp_jax.annotations import Array, Bool, Float, Int32

CORRECTIONS = ("log", "log10", "none")


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


def margin(n_kept_B: Int32[Array, " B"], n_classes: int, correction: str) -> Float[Array, " B"]:
  """What the correction adds to every negative logit.

  `log`: ln((N-1) / n_i), which makes the sampled denominator an unbiased estimate of the full
  one. `log10`: log10((N-1) / n_i), what the published code adds. `none`: 0.

  Args:
    n_kept_B: n_i, negatives of each image that were not rejected; 0 gives 0.
    n_classes: N.
    correction: one of CORRECTIONS.

  Raises:
    ValueError: an unknown correction.
  """
  if correction not in CORRECTIONS:
    raise ValueError(f"unknown correction {correction!r}; accepted: {', '.join(CORRECTIONS)}")
  kept_B = jnp.maximum(n_kept_B, 1).astype(jnp.float32)
  if correction == "none":
    return jnp.zeros_like(kept_B)
  margin_B = jnp.log((n_classes - 1) / kept_B)
  if correction == "log10":
    margin_B /= jnp.log(10.0)
  return jnp.where(n_kept_B > 0, margin_B, 0.0)


def local_contrast(
  image_features_BxE: Float[Array, "B E"],
  positive_features_BxE: Float[Array, "B E"],
  negative_features_KxE: Float[Array, "K E"] | Float[Array, "K B E"],
  labels_B: Int32[Array, " B"],
  negatives_K: Int32[Array, " K"],
  *,
  logit_scale: float,
  n_classes: int,
  correction: str,
  available_K: Bool[Array, " K"] | None = None,
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
    correction: one of CORRECTIONS.
    available_K: drawn classes whose features are there; the others are no negatives of any
      image, and n_i counts the rest. All if None.
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
  n_kept_B = jnp.sum(kept_BxK, axis=-1, dtype=jnp.int32)
  margin_B = margin(n_kept_B, n_classes, correction)
  corrected_BxK = jnp.where(kept_BxK, negative_BxK + margin_B[:, None], -jnp.inf)
  # Relative to the positive before the exponentials: exact for an image without negatives, and
  # no logits of 100 to cancel where the loss is small.
  gap_BxK = corrected_BxK - positive_B[:, None]
  loss_B = jax.nn.logsumexp(jnp.pad(gap_BxK, ((0, 0), (1, 0))), axis=-1)
  hardest_B = jnp.max(jnp.where(kept_BxK, negative_BxK, -jnp.inf), axis=-1)
  return Contrast(jnp.mean(loss_B), jnp.mean(positive_B > hardest_B))
