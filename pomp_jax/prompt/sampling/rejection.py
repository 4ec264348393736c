"""Classes that are no negatives of an image, and those of other images that are.

Shapes: B images of a draw, K negatives, N classes, E embedding, D relatives of a class.
"""

import jax
import jax.numpy as jnp

from pomp_jax.annotations import Array, Bool, Float, Int32

# Which classes beside its own an image does not contrast with: those whose text features are near
# its own class's, or its class's kin.
EXCLUSIONS = ("none", "similar", "kin")


def rejected(
  exclude: str,
  labels_B: Int32[Array, " B"],
  ids_K: Int32[Array, " K"],
  *,
  bank_NxE: Float[Array, "N E"] | None = None,
  threshold: float = 1.0,
  kin_NxD: Int32[Array, "N D"] | None = None,
) -> Bool[Array, "B K"] | None:
  """Near-synonyms of each image's class among the classes drawn; None where none are looked for.

  Args:
    exclude: one of EXCLUSIONS.
    labels_B: y.
    ids_K: the classes drawn.
    bank_NxE: for `similar`: unit features of all classes.
    threshold: for `similar`: the cosine above which two classes are near-synonyms.
    kin_NxD: for `kin`: of each class some that are as right as itself, padded with -1. The
      relation is taken both ways.
  """
  if exclude == "none":
    return None
  if exclude == "similar":
    product_BxK = jnp.matmul(
      bank_NxE[labels_B], bank_NxE[ids_K].T, precision=jax.lax.Precision.HIGHEST
    )
    return product_BxK > threshold
  kin_of_label = jnp.any(kin_NxD[labels_B][:, None, :] == ids_K[None, :, None], axis=-1)
  kin_of_drawn = jnp.any(kin_NxD[ids_K][None, :, :] == labels_B[:, None, None], axis=-1)
  return kin_of_label | kin_of_drawn


def with_batch_positives(
  labels_B: Int32[Array, " B"],
  ids_K: Int32[Array, " K"],
  log_weights_K: Float[Array, " K"],
  available_K: Bool[Array, " K"] | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The classes of a draw's images and the negatives together, each class once.

  The images' classes are there for certain: their weight is 1, and a class drawn that is one of
  them is left out. So the sum over all classes stays unbiased.

  Returns:
    ids, log weights and which are available, [B + K], the images' first.
  """
  earlier_BxB = jnp.tril(labels_B[:, None] == labels_B[None, :], k=-1)
  drawn_K = ~jnp.any(ids_K[:, None] == labels_B[None, :], axis=1)
  if available_K is not None:
    drawn_K &= available_K
  return (
    jnp.concatenate([labels_B, ids_K]),
    jnp.concatenate([jnp.zeros(labels_B.shape, log_weights_K.dtype), log_weights_K]),
    jnp.concatenate([~jnp.any(earlier_BxB, axis=1), drawn_K]),
  )
