"""Answers from class vectors: exact top-k in blocks, rows of fewer bits, subsets.

The rows of all classes stay on the host, and one block of rows at a time goes to the
device. A million classes thus take host memory for the rows, and device memory for one
block.

Shapes: B images, N classes, C classes of a block, E embedding, k answers, t answers of
a block.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped
import numpy as np

from pomp_jax.rooms.certainty.outputs import cosines

# Classes in a block. The scores of 256 images with a block take 64 MiB.
BLOCK = 65_536


class Rows(NamedTuple):
  """Class vectors, perhaps of fewer bits: row n is values[n], or times scales[n]."""

  values: Shaped[np.ndarray, "N E"]  # type: one of `fields.KINDS`
  scales: Float[np.ndarray, " N"] | None = None  # scale of each row of int8

  def __len__(self) -> int:
    return len(self.values)

  @property
  def n_bytes(self) -> int:
    """Bytes of values and scales."""
    scales = 0 if self.scales is None else self.scales.nbytes
    return self.values.nbytes + scales

  def part(self, kept: Any) -> "Rows":
    """Selects rows by a slice or by indices."""
    scales = None if self.scales is None else self.scales[kept]
    return Rows(self.values[kept], scales)


class Best(NamedTuple):
  """The k likeliest classes of each image, best first."""

  labels: Int[np.ndarray, "B k"]
  probabilities: Float[np.ndarray, "B k"]  # from a softmax over all classes


def rows_of(features_NxE: Float[np.ndarray, "N E"], kind: str) -> Rows:
  """Rounds unit class features to one of `fields.KINDS`; each int8 row has a scale."""
  if kind == "float32":
    return Rows(np.asarray(features_NxE, np.float32))
  if kind == "float16":
    return Rows(features_NxE.astype(np.float16))
  largest_N = np.abs(features_NxE).max(axis=1)
  # Keep the scale of a row of zeros above 0, to divide by it.
  largest_N = np.maximum(largest_N, np.finfo(np.float32).tiny)
  scales_N = (largest_N / 127).astype(np.float32)
  values_NxE = np.rint(features_NxE / scales_N[:, None])
  return Rows(values_NxE.astype(np.int8), scales_N)


def top_k(
  features_BxE: Float[np.ndarray, "B E"],
  rows: Rows,
  scale: float,
  k: int,
  block: int = BLOCK,
) -> Best:
  """The k classes with the largest cosines, exactly; lower labels first if equal.

  Rows are used as stored and not normalised again: rounding to fewer bits makes a row
  a little longer or shorter than 1.

  Args:
    features_BxE: unit features of the images.
    rows: class vectors.
    scale: factor on the cosines before the softmax.
    k: number of answers; all N classes if k is larger.
    block: number of classes that are computed at a time.
  """
  k = min(k, len(rows))
  n_images = len(features_BxE)
  features = jnp.asarray(features_BxE, jnp.float32)
  best = (
    jnp.full((n_images, k), -jnp.inf),
    jnp.zeros((n_images, k), jnp.int32),
    jnp.full(n_images, -jnp.inf),
  )
  for start, part in _blocks(rows, block):
    best = _merge(best, features, part, jnp.float32(scale), jnp.int32(start))
  logit_Bxk, label_Bxk, total_B = jax.device_get(best)
  return Best(label_Bxk, np.exp(logit_Bxk - total_B[:, None]))


@jax.jit
def _merge(
  best: tuple[jax.Array, jax.Array, jax.Array],
  features_BxE: Float[Array, "B E"],
  part: Rows,
  scale: Float[Array, ""],
  start: Int[Array, ""],
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Merges a block into the best k so far.

  `best` and the result have logits [B,k], labels [B,k], and [B] the log of the sum of
  exp(logit) over all classes so far.
  """
  logit_Bxk, label_Bxk, total_B = best
  scores_BxC = scale * _cosines(features_BxE, part)
  k = logit_Bxk.shape[1]
  n_top = min(k, scores_BxC.shape[1])
  top_Bxt, place_Bxt = jax.lax.top_k(scores_BxC, n_top)
  # Put earlier classes first, because `top_k` prefers the first of equal logits.
  logits = jnp.concatenate([logit_Bxk, top_Bxt], axis=1)
  labels = jnp.concatenate([label_Bxk, place_Bxt + start], axis=1)
  kept_Bxk, order_Bxk = jax.lax.top_k(logits, k)
  kept_labels_Bxk = jnp.take_along_axis(labels, order_Bxk, axis=1)
  of_block_B = jax.nn.logsumexp(scores_BxC, axis=1)
  return kept_Bxk, kept_labels_Bxk, jnp.logaddexp(total_B, of_block_B)


def probabilities(
  features_BxE: Float[np.ndarray, "B E"],
  rows: Rows,
  scale: float,
  block: int = BLOCK,
) -> Float[np.ndarray, "B N"]:
  """Softmax over all classes; the logits are computed in blocks of classes.

  Args:
    features_BxE: unit features of the images.
    rows: class vectors.
    scale: factor on the cosines before the softmax.
    block: number of classes that are computed at a time.
  """
  features = jnp.asarray(features_BxE, jnp.float32)
  parts = [
    np.asarray(_scores(features, part, jnp.float32(scale)))
    for _, part in _blocks(rows, block)
  ]
  logit_BxN = np.concatenate(parts, axis=1)
  logit_BxN -= logit_BxN.max(axis=1, keepdims=True)
  np.exp(logit_BxN, out=logit_BxN)
  logit_BxN /= logit_BxN.sum(axis=1, keepdims=True)
  return logit_BxN


@jax.jit
def _scores(
  features_BxE: Float[Array, "B E"], part: Rows, scale: Float[Array, ""]
) -> Float[Array, "B C"]:
  return scale * _cosines(features_BxE, part)


def _cosines(features_BxE: Float[Array, "B E"], part: Rows) -> Float[Array, "B C"]:
  cosine_BxC = cosines(features_BxE, jnp.asarray(part.values, jnp.float32))
  return cosine_BxC if part.scales is None else cosine_BxC * part.scales


def _blocks(rows: Rows, block: int) -> Iterator[tuple[int, Rows]]:
  """Yields the first label and the rows of each block."""
  for start in range(0, len(rows), block):
    yield start, rows.part(slice(start, start + block))


def agreement(
  features_BxE: Float[np.ndarray, "B E"], rows: Rows, others: Rows
) -> float:
  """Share of images with the same likeliest class under two kinds of rows.

  Args:
    features_BxE: unit features of the images.
    rows: class vectors.
    others: the same vectors in another type.
  """
  # No scale above 0 changes which class is likeliest.
  first = top_k(features_BxE, rows, 1.0, 1).labels
  second = top_k(features_BxE, others, 1.0, 1).labels
  return float(np.mean(first == second))


def size_line(rows: Rows, model_bytes: int) -> str:
  """A line such as "head 2.66 GB (int8), model 0.33 GB"."""
  kind = rows.values.dtype.name
  return f"head {_gigabytes(rows.n_bytes)} ({kind}), model {_gigabytes(model_bytes)}"


def _gigabytes(n_bytes: int) -> str:
  if n_bytes < 10**8:
    return f"{n_bytes / 1e6:.2f} MB"
  return f"{n_bytes / 1e9:.2f} GB"
