"""Which classes a step contrasts with: K-1 negatives, uniform, without replacement.

Shapes: N classes, K negatives drawn (K-1 of the method's K; all N when K = N).
"""

import jax
import jax.numpy as jnp

from pomp_jax.annotations import Array, Int32


def n_negatives(k: int, n_classes: int) -> int:
  """How many negatives a draw holds: K-1, or all N classes when K = N.

  At K = N each image rejects its own class and keeps the N-1 others: the plain softmax.

  Raises:
    ValueError: K below 2 or above N.
  """
  if not 2 <= k <= n_classes:
    raise ValueError(f"k = {k} is not between 2 and the number of classes, {n_classes}")
  return n_classes if k == n_classes else k - 1


def draw_key(seed_key: jax.Array, step: Array, group: Array) -> jax.Array:
  """The key of one draw, derived from (seed, step, group) and nothing else.

  A group is the images that share one draw: a data index of the mesh, times the micro-steps of
  gradient accumulation. So a resumed run draws the same, and so does one on another number of
  devices that accumulates accordingly.
  """
  return jax.random.fold_in(jax.random.fold_in(seed_key, step), group)


def sample_uniform(key: jax.Array, k: int, n_classes: int) -> Int32[Array, " K"]:
  """Draws the negatives of one group: distinct classes, every subset as likely.

  The cost does not depend on N when K is a small part of it: more ids than needed are drawn with
  replacement and the first K-1 distinct ones kept, in order of drawing, which is a uniform draw
  without replacement. Too few distinct ones (rare) are drawn again, all of them; that condition
  treats all classes alike, so the draw stays uniform.

  Args:
    key: from `draw_key`.
    k: K of the method, static.
    n_classes: N, static.
  """
  size = n_negatives(k, n_classes)
  if size == n_classes:
    return jnp.arange(n_classes, dtype=jnp.int32)
  if 4 * size > n_classes:
    return jax.random.permutation(key, n_classes)[:size].astype(jnp.int32)
  # With size <= N/4 at least three draws in four are new on average.
  n_draws = 2 * size + 8

  def draw(key):
    ids = jax.random.randint(key, (n_draws,), 0, n_classes, jnp.int32)
    # A stable sort puts equal ids side by side, the first drawn of them first.
    order = jnp.argsort(ids, stable=True)
    ordered = ids[order]
    repeats = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] == ordered[:-1]])
    is_new = jnp.ones(n_draws, bool).at[order].set(~repeats)
    # Every new id moves to its rank among the new ones; the rest falls off the end.
    rank = jnp.where(is_new, jnp.cumsum(is_new) - 1, size)
    return jnp.zeros(size, jnp.int32).at[rank].set(ids, mode="drop"), is_new.sum()

  def again(carry):
    key = jax.random.split(carry[0], 1)[0]
    return key, *draw(key)

  return jax.lax.while_loop(lambda carry: carry[2] < size, again, (key, *draw(key)))[1]
