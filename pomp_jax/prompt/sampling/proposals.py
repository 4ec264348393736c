"""How likely each class should be drawn for a batch; one function a sampler.

Each gives probabilities q that add up to 1, apart from the mix with the uniform draw, which the
caller adds. A class that an image has itself is not proposed for that image.

Shapes: B images of a draw, N classes, E embedding, G groups that a class is in, S groups in all.
"""

import jax
import jax.numpy as jnp

from pomp_jax.annotations import Array, Float, Int32


def by_similarity(
  anchors_BxE: Float[Array, "B E"],
  bank_NxE: Float[Array, "N E"],
  labels_B: Int32[Array, " B"],
  temperature: float,
) -> Float[Array, " N"]:
  """q_c = mean_i softmax_c(a_i . g_c / T): each image proposes the classes near its anchor.

  Args:
    anchors_BxE: unit vectors, the images' features or those of their classes.
    bank_NxE: unit features of all classes.
    labels_B: y; q of an image's own class is 0 in its softmax.
    temperature: T; below 0 the classes farthest away are the likeliest.
  """
  similarity_BxN = jnp.matmul(anchors_BxE, bank_NxE.T, precision=jax.lax.Precision.HIGHEST)
  own_BxN = labels_B[:, None] == jnp.arange(bank_NxE.shape[0])
  logits_BxN = jnp.where(own_BxN, -jnp.inf, similarity_BxN / temperature)
  return jnp.mean(jax.nn.softmax(logits_BxN, axis=-1), axis=0)


def by_siblings(
  labels_B: Int32[Array, " B"],
  groups_NxG: Int32[Array, "N G"],
  group_sizes_S: Int32[Array, " S"],
) -> Float[Array, " N"]:
  """q of drawing an image, one of its class's groups, and another class of that group.

  An image whose class is in no group proposes all classes alike.

  Args:
    labels_B: y.
    groups_NxG: the groups of each class, distinct, padded with -1.
    group_sizes_S: classes in each group, 2 or more.
  """
  n_classes = groups_NxG.shape[0]
  mine_BxG = groups_NxG[labels_B]
  n_groups_B = jnp.sum(mine_BxG >= 0, axis=1)
  share_BxG = jnp.where(mine_BxG >= 0, 1.0 / jnp.maximum(n_groups_B, 1)[:, None], 0.0)
  share_BxG /= labels_B.size * (group_sizes_S[mine_BxG] - 1)
  # Of each group what every member gets, the images' own classes too; that is taken back after.
  share_S = jnp.zeros(group_sizes_S.shape).at[mine_BxG].add(share_BxG)
  q_N = jnp.sum(jnp.where(groups_NxG >= 0, share_S[groups_NxG], 0.0), axis=1)
  q_N = q_N.at[labels_B].add(-jnp.sum(share_BxG, axis=1))
  # Rounding may leave less than nothing.
  return jnp.maximum(q_N, 0.0) + jnp.mean(n_groups_B == 0) / n_classes
