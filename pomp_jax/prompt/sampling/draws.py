"""Draws of classes without replacement: uniform, and by given probabilities.

The weighted draw is systematic sampling in a random order (Madow, 1949; Hartley & Rao,
1962). The classes lie in random order along a line, each as long as its inclusion
probability pi_c, and points at distance 1 from a random start pick S of them. Class c
is picked with probability pi_c exactly, so the weights 1 / pi_c estimate every sum over
all classes without bias (Horvitz & Thompson, 1952), and without variance where the
summands are proportional to pi_c.

Shapes: N classes, S sampled negatives (K-1 of the method's K, or all N when K = N).
"""

from typing import Any

import jax
import jax.numpy as jnp

from pomp_jax.array_types import Array, Float, Int32

# Lengths along the line are multiples of 2^-32 and positions are unsigned integers
# modulo 1, so that no rounding accumulates over thousands of classes.
_ONE = 2.0**32
# Above the rounding error of a float32 probability, and below every probability that
# matters.
_NEAR = 2.0**-20


def n_negatives(k: int, n_classes: int) -> int:
  """Returns S, the size of a draw: K-1, or all N classes when K = N.

  At K = N each image rejects its own class: the plain softmax. ValueError: K below 2 or
  above N.
  """
  if not 2 <= k <= n_classes:
    raise ValueError(f"k: got {k}, expected 2 to {n_classes}, the number of classes")
  return n_classes if k == n_classes else k - 1


def draw_key(seed_key: jax.Array, step: Array, group: Array) -> jax.Array:
  """The key of one draw, derived from (seed, step, group) and nothing else.

  A group is the images that share one draw: a data index of the mesh, times the
  micro-steps of accumulation. So a resumed run draws the same, also on other devices if
  it accumulates so.
  """
  return jax.random.fold_in(jax.random.fold_in(seed_key, step), group)


def sample_uniform(key: jax.Array, k: int, n_classes: int) -> Int32[Array, " S"]:
  """Draws distinct classes, every subset equally likely.

  The cost does not depend on N when K is a small part of it: more ids than needed are
  drawn with replacement and the first K-1 distinct ones are kept, in order of drawing.
  If too few are distinct (rare), all are drawn again, which is symmetric in the classes
  and so uniform. K, N are static.
  """
  size = n_negatives(k, n_classes)
  if size == n_classes:
    return jnp.arange(n_classes, dtype=jnp.int32)
  if 4 * size > n_classes:
    return jax.random.permutation(key, n_classes)[:size].astype(jnp.int32)
  # With size <= N/4 at least three draws in four are new on average.
  n_draws = 2 * size + 8

  def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    ids = jax.random.randint(key, (n_draws,), 0, n_classes, jnp.int32)
    # A stable sort puts equal ids side by side, the first drawn of them first.
    order = jnp.argsort(ids, stable=True)
    ordered = ids[order]
    repeats = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] == ordered[:-1]])
    # Back in the order of drawing, and the new ones first: by sorts, as TPUs scatter in
    # a loop.
    is_repeat = repeats[jnp.argsort(order)]
    first_new = jnp.argsort(is_repeat, stable=True)[:size]
    return ids[first_new], (~is_repeat).sum()

  def again(carry: Any) -> Any:
    key = jax.random.split(carry[0], 1)[0]
    return key, *draw(key)

  return jax.lax.while_loop(lambda carry: carry[2] < size, again, (key, *draw(key)))[1]


def inclusion_probabilities(q_N: Float[Array, " N"], size: int) -> Float[Array, " N"]:
  """pi_c = min(1, t q_c), with t such that they add up to the size of the draw, static.

  `q_N` are relative probabilities: not negative, at least `size` of them above 0.
  """
  ordered_N = jnp.sort(q_N, descending=True)
  # t_j if the j most likely are certain; it is the right one once the next is below 1.
  rest_S = jnp.cumsum(ordered_N[::-1])[::-1][:size]
  t_S = (size - jnp.arange(size)) / rest_S
  n_certain = jnp.argmax(t_S * ordered_N[:size] <= 1.0)
  # Not q_N > ordered_N[n_certain]: XLA may round q_N in two ways, and that class exceed
  # itself.
  certain_N = t_S[n_certain] * q_N > 1.0
  # Computed a second time, as a sum with less rounding.
  t = (size - certain_N.sum()) / jnp.sum(jnp.where(certain_N, 0.0, q_N))
  return jnp.where(certain_N, 1.0, jnp.minimum(1.0, t * q_N))


def sample_weighted(
  key: jax.Array, q_N: Float[Array, " N"], size: int
) -> tuple[Int32[Array, " S"], Float[Array, " N"]]:
  """Draws distinct classes, fewer than all, each with its inclusion probability.

  Every place of the draw holds class c with the same probability, pi_c / S. Returns the
  classes [S], and log pi_c of all classes [N], exactly those of the draw.
  """
  n_classes = q_N.shape[0]
  order_key, start_key, turn_key = jax.random.split(key, 3)
  pi_N = inclusion_probabilities(q_N, size)
  # What float32 cannot tell from 1 is certain: a whole turn, 0 modulo 1.
  certain_N = pi_N > 1.0 - _NEAR
  has_rest = size > certain_N.sum()
  length_N = jnp.where(certain_N | ~has_rest, 0.0, pi_N * _ONE).astype(jnp.uint32)
  length_N = _whole_turns(length_N)
  order_N = jax.random.permutation(order_key, n_classes)
  ends_N = jnp.cumsum(length_N[order_N], dtype=jnp.uint32)
  start = jax.random.bits(start_key, (), jnp.uint32)
  # A point lies in [end - length, end) where its distance from the beginning is below
  # the length.
  picked_N = (start - (ends_N - length_N[order_N]) < length_N[order_N]) | certain_N[
    order_N
  ]
  turn = jax.random.randint(turn_key, (), 0, size)
  place_N = jnp.where(picked_N, (jnp.cumsum(picked_N) - 1 + turn) % size, size)
  ids_N = jax.lax.sort((place_N, order_N.astype(jnp.int32)), num_keys=1)[1]
  drawn_N = jnp.maximum(length_N, 1).astype(jnp.float32) / _ONE
  return ids_N[:size], jnp.where(certain_N, 0.0, jnp.log(drawn_N))


def _whole_turns(length_N: Array) -> Array:
  """Lengths that add up to 0 modulo 1: the rounding error is shared out evenly.

  No class takes a share that is nearly 0 or 1 long, so none passes either end.
  """
  is_free_N = (length_N > _NEAR * _ONE) & (length_N < (1.0 - _NEAR) * _ONE)
  error = (jnp.uint32(0) - jnp.sum(length_N, dtype=jnp.uint32)).astype(jnp.int32)
  share, rest = jnp.divmod(error, jnp.maximum(is_free_N.sum(), 1).astype(jnp.int32))
  share_N = share + (jnp.cumsum(is_free_N) <= rest)
  return length_N + jnp.where(is_free_N, share_N, 0).astype(jnp.uint32)
