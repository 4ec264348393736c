"""Draws of classes without replacement: uniform, and by given probabilities.

The weighted draw is systematic sampling in a random order (Madow, 1949; Hartley & Rao,
1962). The classes lie in random order along a line, each as long as its inclusion
probability pi_c, and points at distance 1 from a random start pick S of them. Class c
is picked with probability pi_c exactly, so the weights 1 / pi_c estimate every sum over
all classes without bias (Horvitz & Thompson, 1952), and without variance where the
summands are proportional to pi_c.

Shapes: N classes, S sampled negatives (K-1 of the method's K, or all N when K = N).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pomp_jax.array_types import Array, Float, Int32

# Lengths along the line are multiples of 2^-32 and positions are unsigned integers
# modulo 1, so that no rounding accumulates over thousands of classes.
_ONE = 2.0**32
# A probability this near to 1 counts as 1, and `_whole_turns` does not adjust lengths
# this near to 0 or 1. The distance is above the rounding error of a float32 probability
# and below every probability that matters.
_NEAR = 2.0**-20


def n_negatives(k: int, n_classes: int) -> int:
  """Returns S, the size of a draw: K-1, or all N classes when K = N.

  At K = N each image rejects its own class, which gives the plain softmax.

  Raises:
    ValueError: K below 2 or above N.
  """
  if not 2 <= k <= n_classes:
    raise ValueError(f"k: got {k}, expected 2 to {n_classes}, the number of classes")
  if k == n_classes:
    return n_classes
  return k - 1


def draw_key(seed_key: jax.Array, step: Array, group: Array) -> jax.Array:
  """Derives the key of one draw from (seed, step, group) and nothing else.

  A resumed run therefore draws the same negatives, also on another number of devices
  as long as the number of groups stays the same.

  Args:
    seed_key: key of the run's seed.
    step: number of the step, from 0 on.
    group: index of the group of images that share this draw. A batch has one group for
      each data index of the mesh and each micro-step of accumulation.
  """
  step_key = jax.random.fold_in(seed_key, step)
  return jax.random.fold_in(step_key, group)


class _Draws(NamedTuple):
  """Draws with replacement, the distinct ones first."""

  key: jax.Array
  ids: Int32[Array, " S"]  # distinct only if `n_distinct` is at least S
  n_distinct: Int32[Array, ""]


def sample_uniform(key: jax.Array, k: int, n_classes: int) -> Int32[Array, " S"]:
  """Draws distinct classes, every subset equally likely.

  The cost does not depend on N when K is a small part of N: more ids than needed are
  drawn with replacement and the first K-1 distinct ones are kept, in order of drawing.
  If too few are distinct, which is rare, all are drawn again. This procedure treats all
  classes alike, so the draw is uniform.

  Args:
    key: key of the draw.
    k: K of the method, static.
    n_classes: N, static.

  Raises:
    ValueError: K below 2 or above N.
  """
  size = n_negatives(k, n_classes)
  if size == n_classes:
    return jnp.arange(n_classes, dtype=jnp.int32)
  if 4 * size > n_classes:
    return jax.random.permutation(key, n_classes)[:size].astype(jnp.int32)
  # With size <= N/4 at least three draws in four are new on average.
  n_draws = 2 * size + 8

  def distinct_first(key: jax.Array) -> _Draws:
    ids = jax.random.randint(key, (n_draws,), 0, n_classes, jnp.int32)
    # A stable sort puts equal ids side by side, in the order in which they were drawn.
    order = jnp.argsort(ids, stable=True)
    ordered = ids[order]
    equals_previous = ordered[1:] == ordered[:-1]
    is_repeat_ordered = jnp.concatenate([jnp.zeros(1, bool), equals_previous])
    # Two more sorts restore the order of drawing and move new ids to the front. A
    # scatter would do both in one operation, but TPUs run scatters as a loop.
    place_in_order = jnp.argsort(order)  # the inverse permutation
    is_repeat = is_repeat_ordered[place_in_order]
    first_new = jnp.argsort(is_repeat, stable=True)[:size]
    return _Draws(key, ids[first_new], (~is_repeat).sum())

  def draw_again(draws: _Draws) -> _Draws:
    next_key = jax.random.split(draws.key, 1)[0]
    return distinct_first(next_key)

  too_few = lambda draws: draws.n_distinct < size
  return jax.lax.while_loop(too_few, draw_again, distinct_first(key)).ids


def inclusion_probabilities(q_N: Float[Array, " N"], size: int) -> Float[Array, " N"]:
  """Computes pi_c = min(1, t q_c), with the factor t for which the pi_c add up to S.

  Args:
    q_N: relative probabilities: not negative, at least `size` of them above 0.
    size: S, the number of classes to draw, static.

  Returns:
    The probability pi_c of each class to be in the draw.
  """
  ordered_N = jnp.sort(q_N, descending=True)
  # With the j most likely classes certain, the others share S - j:
  # t_j = (S - j) / sum of the others' q.
  sum_from_S = jnp.cumsum(ordered_N[::-1])[::-1][:size]
  t_S = (size - jnp.arange(size)) / sum_from_S
  # The right j is the first one that leaves the next class, and so all others, below 1.
  n_certain = jnp.argmax(t_S * ordered_N[:size] <= 1.0)
  # Do not test q_N > ordered_N[n_certain]: XLA may compute q_N twice with different
  # rounding, and a class would then exceed itself.
  is_certain_N = t_S[n_certain] * q_N > 1.0
  # Compute t again: this sum has less rounding error than the cumulative sum.
  t = (size - is_certain_N.sum()) / jnp.sum(jnp.where(is_certain_N, 0.0, q_N))
  return jnp.where(is_certain_N, 1.0, jnp.minimum(1.0, t * q_N))


class WeightedDraw(NamedTuple):
  """A draw of classes by their probabilities."""

  ids: Int32[Array, " S"]  # distinct classes
  log_pi: Float[Array, " N"]  # log inclusion probability of every class, drawn or not


def sample_weighted(key: jax.Array, q_N: Float[Array, " N"], size: int) -> WeightedDraw:
  """Draws distinct classes, each with its inclusion probability.

  Systematic sampling in a random order, see the module's docstring. Every place of the
  draw holds class c with the same probability, pi_c / S.

  Args:
    key: key of the draw.
    q_N: relative probabilities, see `inclusion_probabilities`.
    size: S, fewer than all classes, static.

  Returns:
    The classes, and log pi_c exactly as in the draw, rounding included.
  """
  n_classes = q_N.shape[0]
  order_key, start_key, turn_key = jax.random.split(key, 3)
  pi_N = inclusion_probabilities(q_N, size)

  # Lengths along the line. A class that float32 cannot tell from certain is always
  # picked, and gets the length 0: a length of 1 is 0 modulo 1.
  is_certain_N = pi_N > 1.0 - _NEAR
  has_rest = size > is_certain_N.sum()
  is_off_line_N = is_certain_N | ~has_rest
  length_N = jnp.where(is_off_line_N, 0.0, pi_N * _ONE).astype(jnp.uint32)
  length_N = _whole_turns(length_N)

  # The classes in random order along the line, and the start of the points.
  order_N = jax.random.permutation(order_key, n_classes)
  end_N = jnp.cumsum(length_N[order_N], dtype=jnp.uint32)
  start = jax.random.bits(start_key, (), jnp.uint32)
  # The points are the start plus 0, 1, ..: modulo 1 all of them equal the start. A
  # class has a point in [end - length, end) if the start is less than the length behind
  # end - length. Unsigned differences wrap around, as the positions do.
  distance_N = start - (end_N - length_N[order_N])
  has_point_N = distance_N < length_N[order_N]
  is_picked_N = has_point_N | is_certain_N[order_N]

  # The picked classes get the places 0 to S - 1, turned by a random number, and all
  # other classes get place S. A sort by place then moves the picked classes to the
  # front.
  turn = jax.random.randint(turn_key, (), 0, size)
  place_N = jnp.where(is_picked_N, (jnp.cumsum(is_picked_N) - 1 + turn) % size, size)
  ids_N = jax.lax.sort((place_N, order_N.astype(jnp.int32)), num_keys=1)[1]

  # Count at least one unit of length, so that the logarithm is finite.
  drawn_pi_N = jnp.maximum(length_N, 1).astype(jnp.float32) / _ONE
  ids_S = ids_N[:size]
  log_pi_N = jnp.where(is_certain_N, 0.0, jnp.log(drawn_pi_N))
  return WeightedDraw(ids_S, log_pi_N)


def _whole_turns(length_N: Array) -> Array:
  """Distributes the rounding error, so that the lengths add up to 0 modulo 1.

  A class with a length near 0 or 1 keeps its length, so no length leaves [0, 1].

  Args:
    length_N: lengths in units of 2^-32, uint32.
  """
  is_free_N = (length_N > _NEAR * _ONE) & (length_N < (1.0 - _NEAR) * _ONE)
  # Units by which the sum is short of a whole number, modulo 2^32; as a signed integer
  # they are the shorter way there, below 0 if the sum is just above the number.
  sum_of_lengths = jnp.sum(length_N, dtype=jnp.uint32)
  missing = (jnp.uint32(0) - sum_of_lengths).astype(jnp.int32)
  n_free = jnp.maximum(is_free_N.sum(), 1).astype(jnp.int32)
  share, rest = jnp.divmod(missing, n_free)
  # The first `rest` of the free classes take one unit more.
  one_more_N = (jnp.cumsum(is_free_N) <= rest).astype(jnp.int32)
  change_N = jnp.where(is_free_N, share + one_more_N, 0)
  return length_N + change_N.astype(jnp.uint32)
