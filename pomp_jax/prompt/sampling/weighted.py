"""A draw of fixed size without replacement, with inclusion probabilities that are given.

Systematic sampling in a random order (Madow, 1949; Hartley & Rao, 1962): the classes lie in random
order along a line, each as long as its inclusion probability pi_c, and points at distance 1 from a
random start pick K of them. Each class is picked with probability pi_c exactly, so that with the
weights 1 / pi_c every sum over all classes is estimated without bias (Horvitz & Thompson, 1952);
where the summands are as the pi_c are, without variance as well.

Shapes: N classes, K drawn.
"""

import jax
import jax.numpy as jnp

from pomp_jax.annotations import Array, Float, Int32

# Lengths along the line are whole multiples of 2^-32, and positions are kept modulo 1, in the
# arithmetic of unsigned integers: no rounding piles up over thousands of classes.
_ONE = 2.0**32


def inclusion_probabilities(q_N: Float[Array, " N"], size: int) -> Float[Array, " N"]:
  """pi_c = min(1, t q_c), with t such that they add up to the size of the draw.

  Args:
    q_N: how likely each class should be relative to the others; not negative, at least `size` of
      them above 0.
    size: K, static.
  """
  ordered_N = jnp.sort(q_N, descending=True)
  # t_j if the j likeliest are drawn for certain; it is the right one once the next is below 1.
  rest_K = jnp.cumsum(ordered_N[::-1])[::-1][:size]
  t_K = (size - jnp.arange(size)) / rest_K
  n_certain = jnp.argmax(t_K * ordered_N[:size] <= 1.0)
  certain_N = q_N > ordered_N[n_certain]
  # Once more, for a sum that is rounded less.
  t = (size - certain_N.sum()) / jnp.sum(jnp.where(certain_N, 0.0, q_N))
  return jnp.where(certain_N, 1.0, jnp.minimum(1.0, t * q_N))


def sample_weighted(
  key: jax.Array, q_N: Float[Array, " N"], size: int
) -> tuple[Int32[Array, " K"], Float[Array, " N"]]:
  """Draws distinct classes, each with its inclusion probability.

  Every place of the draw holds class c with the same probability, pi_c / K.

  Args:
    key: of the draw.
    q_N: see `inclusion_probabilities`.
    size: K, static, below N.

  Returns:
    The classes [K]; and of all classes log pi_c [N], exactly those of the draw.
  """
  n_classes = q_N.shape[0]
  order_key, start_key, turn_key = jax.random.split(key, 3)
  pi_N = inclusion_probabilities(q_N, size)
  certain_N = pi_N >= 1.0
  # A certain class is a whole turn: 0 modulo 1.
  length_N = jnp.where(certain_N, 0.0, pi_N * _ONE).astype(jnp.uint32)
  # What rounding left over makes the turns whole again; the class in the middle can take it.
  middle = jnp.argmin(jnp.where(certain_N, 1.0, jnp.abs(pi_N - 0.5)))
  length_N = length_N.at[middle].add(jnp.uint32(0) - jnp.sum(length_N, dtype=jnp.uint32))
  order_N = jax.random.permutation(order_key, n_classes)
  ends_N = jnp.cumsum(length_N[order_N], dtype=jnp.uint32)
  start = jax.random.bits(start_key, (), jnp.uint32)
  # A point lies in [end - length, end) where its distance from the beginning is below the length.
  picked_N = (start - (ends_N - length_N[order_N]) < length_N[order_N]) | certain_N[order_N]
  turn = jax.random.randint(turn_key, (), 0, size)
  place_N = jnp.where(picked_N, (jnp.cumsum(picked_N) - 1 + turn) % size, size)
  ids_K = jnp.zeros(size, jnp.int32).at[place_N].set(order_N.astype(jnp.int32), mode="drop")
  drawn_N = jnp.maximum(length_N, 1).astype(jnp.float32) / _ONE
  return ids_K, jnp.where(certain_N, 0.0, jnp.log(drawn_N))
