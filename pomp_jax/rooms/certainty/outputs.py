"""A few numbers for each image under class vectors, computed in blocks of images.

Only one block's matrix [b,N] exists at a time, on the device, so memory does not grow
with the number of images.

Shapes: B images, b images of a block, N classes, E embedding.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from pomp_jax.files.calibration import Sets
from pomp_jax.rooms.certainty.promises import rank_penalties

# Number of scores in a block: 64 MiB in float32.
_SCORES = 2**24
_HIGHEST = jax.lax.Precision.HIGHEST


class Outputs(NamedTuple):
  """Numbers of each image under one classifier and one factor on its cosines."""

  answer: Int[np.ndarray, " B"]  # the likeliest class
  confidence: Float[np.ndarray, " B"]  # probability of the likeliest class
  probability: Float[np.ndarray, " B"]  # probability of the right class
  # sum of the probabilities of all classes that are likelier than the right class
  mass_above: Float[np.ndarray, " B"]
  rank: Int[np.ndarray, " B"]  # number of classes that are likelier
  max_cosine: Float[np.ndarray, " B"]
  energy: Float[np.ndarray, " B"]  # log of the sum of exp(scale * cosine)
  mcm: Float[np.ndarray, " B"]  # largest softmax of the cosines themselves


class Moments(NamedTuple):
  """Log-likelihood of the right classes, and derivatives by the factor on cosines."""

  log_likelihood: float  # mean over the images
  first: float  # first derivative of the log-likelihood
  second: float  # second derivative of the log-likelihood, never above 0


def blocks(n_images: int, n_classes: int) -> Iterator[slice]:
  """Yields the slice of images of each block of scores."""
  size = max(_SCORES // n_classes, 1)
  for start in range(0, n_images, size):
    yield slice(start, min(start + size, n_images))


def cosines(
  features_BxE: Float[jax.Array, "B E"], rows_NxE: Float[jax.Array, "N E"]
) -> Float[jax.Array, "B N"]:
  """Cosines of unit rows, in float32: accelerators round to bfloat16 by default."""
  return jnp.matmul(features_BxE, rows_NxE.T, precision=_HIGHEST)


def outputs(
  features_BxE: Float[np.ndarray, "B E"],
  rows_NxE: Float[np.ndarray, "N E"],
  labels_B: Int[np.ndarray, " B"],
  scale: float,
) -> Outputs:
  """Computes the numbers of all images.

  Args:
    features_BxE: unit features of the images.
    rows_NxE: unit features of the classes.
    labels_B: right class of each image, or any class if the right class is unknown.
    scale: factor on the cosines before the softmax.
  """

  def of_block(
    features_bxE: jax.Array, rows: jax.Array, labels_b: jax.Array
  ) -> Outputs:
    return _outputs(features_bxE, rows, labels_b, jnp.float32(scale))

  return Outputs(*_by_blocks(of_block, features_BxE, rows_NxE, labels_B))


@jax.jit
def _outputs(
  features_BxE: Float[Array, "B E"],
  rows_NxE: Float[Array, "N E"],
  labels_B: Int[Array, " B"],
  scale: Float[Array, ""],
) -> Outputs:
  cosine_BxN = cosines(features_BxE, rows_NxE)
  label_Bx1 = labels_B[:, None]
  right_Bx1 = jnp.take_along_axis(cosine_BxN, label_Bx1, axis=1)
  is_above_BxN = cosine_BxN > right_Bx1
  probability_BxN = jax.nn.softmax(scale * cosine_BxN, axis=1)
  probability_Bx1 = jnp.take_along_axis(probability_BxN, label_Bx1, axis=1)
  above_BxN = jnp.where(is_above_BxN, probability_BxN, 0)
  numbers: dict[str, Any] = {
    "answer": jnp.argmax(cosine_BxN, axis=1),
    "confidence": jnp.max(probability_BxN, axis=1),
    "probability": probability_Bx1[:, 0],
    "mass_above": jnp.sum(above_BxN, axis=1),
    "rank": jnp.sum(is_above_BxN, axis=1),
    "max_cosine": jnp.max(cosine_BxN, axis=1),
    "energy": jax.nn.logsumexp(scale * cosine_BxN, axis=1),
    "mcm": jnp.max(jax.nn.softmax(cosine_BxN, axis=1), axis=1),
  }
  return Outputs(**numbers)


def moments(
  features_BxE: Float[np.ndarray, "B E"],
  rows_NxE: Float[np.ndarray, "N E"],
  labels_B: Int[np.ndarray, " B"],
  scale: float,
) -> Moments:
  """Computes the log-likelihood of the right classes, and its derivatives by `scale`.

  The sums over the images are in float64.

  Args:
    features_BxE: unit features of the images.
    rows_NxE: unit features of the classes.
    labels_B: right class of each image.
    scale: factor on the cosines before the softmax.
  """

  def of_block(features_bxE: jax.Array, rows: jax.Array, labels_b: jax.Array) -> Any:
    return _moments(features_bxE, rows, labels_b, jnp.float32(scale))

  value_B, first_B, variance_B = _by_blocks(of_block, features_BxE, rows_NxE, labels_B)
  return Moments(
    log_likelihood=float(np.mean(value_B, dtype=np.float64)),
    first=float(np.mean(first_B, dtype=np.float64)),
    second=-float(np.mean(variance_B, dtype=np.float64)),
  )


@jax.jit
def _moments(
  features_BxE: Float[Array, "B E"],
  rows_NxE: Float[Array, "N E"],
  labels_B: Int[Array, " B"],
  scale: Float[Array, ""],
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
  cosine_BxN = cosines(features_BxE, rows_NxE)
  right_Bx1 = jnp.take_along_axis(cosine_BxN, labels_B[:, None], axis=1)
  # Subtract the right class's cosine, so that nothing is lost to rounding if the right
  # class has a probability near 1.
  deviation_BxN = cosine_BxN - right_Bx1
  logit_BxN = scale * deviation_BxN
  probability_BxN = jax.nn.softmax(logit_BxN, axis=1)
  mean_Bx1 = jnp.sum(probability_BxN * deviation_BxN, axis=1, keepdims=True)
  square_BxN = (deviation_BxN - mean_Bx1) ** 2
  variance_B = jnp.sum(probability_BxN * square_BxN, axis=1)
  log_likelihood_B = -jax.nn.logsumexp(logit_BxN, axis=1)
  return log_likelihood_B, -mean_Bx1[:, 0], variance_B


def set_sizes(
  features_BxE: Float[np.ndarray, "B E"],
  rows_NxE: Float[np.ndarray, "N E"],
  scale: float,
  least_N: Float[np.ndarray, " N"],
) -> Int[np.ndarray, " B"]:
  """Counts the classes of each image whose probability is at least `least_N`.

  Args:
    features_BxE: unit features of the images.
    rows_NxE: unit features of the classes.
    scale: factor on the cosines before the softmax.
    least_N: smallest probability at which a class is in the set.
  """
  return _counts(_at_least, features_BxE, rows_NxE, scale=scale, bound_N=least_N)


def adaptive_set_sizes(
  features_BxE: Float[np.ndarray, "B E"],
  rows_NxE: Float[np.ndarray, "N E"],
  scale: float,
  sets: Sets,
) -> Int[np.ndarray, " B"]:
  """Counts the classes in each image's set of the kind `raps`.

  Args:
    features_BxE: unit features of the images.
    rows_NxE: unit features of the classes.
    scale: factor on the cosines before the softmax.
    sets: threshold, penalty and free ranks.
  """
  ranks_N = np.arange(len(rows_NxE))
  # The score of a class is its summed probability plus the penalty of its rank. Move
  # the penalty to the other side: a bound on the summed probability at each rank.
  bound_N = sets.threshold - rank_penalties(ranks_N, sets.penalty, sets.free_ranks)
  return _counts(_within_mass, features_BxE, rows_NxE, scale=scale, bound_N=bound_N)


def _counts(
  is_member: Callable[[jax.Array, jax.Array], jax.Array],
  features_BxE: np.ndarray,
  rows_NxE: np.ndarray,
  *,
  scale: float,
  bound_N: np.ndarray,
) -> np.ndarray:
  """Counts the classes of each image that `is_member` accepts.

  Args:
    is_member: function of the probabilities [B,N] and the bounds [N].
    features_BxE: unit features of the images.
    rows_NxE: unit features of the classes.
    scale: factor on the cosines before the softmax.
    bound_N: bound of each class, or of each rank.
  """
  bounds = jnp.asarray(bound_N, jnp.float32)

  def of_block(features_bxE: jax.Array, rows: jax.Array, _: jax.Array) -> Any:
    return (_count(is_member, features_bxE, rows, jnp.float32(scale), bounds),)

  unused_B = np.zeros(len(features_BxE), np.int32)
  (sizes_B,) = _by_blocks(of_block, features_BxE, rows_NxE, unused_B)
  return sizes_B


@functools.partial(jax.jit, static_argnums=0)
def _count(
  is_member: Callable[[jax.Array, jax.Array], jax.Array],
  features_BxE: Float[Array, "B E"],
  rows_NxE: Float[Array, "N E"],
  scale: Float[Array, ""],
  bound_N: Float[Array, " N"],
) -> Int[Array, " B"]:
  probability_BxN = jax.nn.softmax(scale * cosines(features_BxE, rows_NxE), axis=1)
  return jnp.sum(is_member(probability_BxN, bound_N), axis=1)


def _at_least(
  probability_BxN: Float[Array, "B N"], least_N: Float[Array, " N"]
) -> Bool[Array, "B N"]:
  return probability_BxN >= least_N


def _within_mass(
  probability_BxN: Float[Array, "B N"], room_N: Float[Array, " N"]
) -> Bool[Array, "B N"]:
  """Whether the probability summed down to each rank is at most `room_N`."""
  sorted_BxN = -jnp.sort(-probability_BxN, axis=1)
  return jnp.cumsum(sorted_BxN, axis=1) <= room_N


def _by_blocks(
  compute: Callable[..., tuple[Any, ...]],
  features_BxE: np.ndarray,
  rows_NxE: np.ndarray,
  labels_B: np.ndarray,
) -> list[np.ndarray]:
  """Concatenates each result of `compute` over blocks of images, to [B].

  `compute` takes a block's features [b,E], all rows [N,E] and the block's labels [b].
  """
  rows = jnp.asarray(rows_NxE, jnp.float32)
  parts = []
  for block in blocks(len(features_BxE), len(rows_NxE)):
    features = jnp.asarray(features_BxE[block], jnp.float32)
    labels = jnp.asarray(labels_B[block], jnp.int32)
    parts.append(jax.device_get(compute(features, rows, labels)))
  return [np.concatenate(column) for column in zip(*parts, strict=True)]


def is_right(
  outputs_of: Outputs, labels_B: Int[np.ndarray, " B"]
) -> Bool[np.ndarray, " B"]:
  """Whether each answer is the right class."""
  return outputs_of.answer == labels_B
