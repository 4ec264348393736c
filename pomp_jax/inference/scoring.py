"""A data set under several prompts, read once, in batches, by one process or by many.

Each process decodes only the images of its own devices; the answers of a whole batch, a few numbers
an image, then are on every host, so that all count the same and nothing is left to add up.

Shapes: P prompts, N classes, B images of a batch over all processes, E embedding, S image side.
"""

from collections.abc import Mapping, Sequence
import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float
import numpy as np

from pomp_jax.data.loader import SkippedImages, ordered_batches
from pomp_jax.data.source import Source
from pomp_jax.encoder import Encoder
from pomp_jax.files.progress import steps_of
from pomp_jax.inference.classify import ranks
from pomp_jax.inference.hierarchy import Hierarchy
from pomp_jax.inference.metrics import Answers, Tally
from pomp_jax.prompt.step import CLASS, DATA, replicate

# The label of an image that can't be read.
_UNREADABLE = -1


def tally(
  encoder: Encoder,
  source: Source,
  class_features: Mapping[str, Float[np.ndarray, "N E"]],
  *,
  hierarchy: Hierarchy | None = None,
  batch_size: int = 512,
  threads: int = 2,
  max_corrupt: float = 0.0,
) -> dict[str, Tally]:
  """Counts over the images of a source, a tally for each prompt; all processes call it alike.

  An image that can't be read is left out, with one warning for all of them.

  Args:
    encoder: the CLIP, on the devices of all processes.
    source: the images; the same list in every process.
    class_features: by prompt, unit rows of the source's classes.
    hierarchy: of these classes, for the figures on the tree.
    batch_size: images at a time, over all devices; rounded up to a multiple of these.
    threads: that decode ahead, in each process.
    max_corrupt: share of the images that may be unreadable; one always may, unless this is 0.

  Raises:
    EvaluationError: features that are not finite.
    CorruptDataError: more images can't be read.
  """
  n_images, n_devices = len(source), encoder.mesh.size
  size = n_devices * -(-min(batch_size, n_images) // n_devices)
  rows = NamedSharding(encoder.mesh, P((DATA, CLASS)))
  own = own_rows(rows, size)
  classes_PxNxE = replicate(np.stack(list(class_features.values())), encoder.mesh)
  everywhere = NamedSharding(encoder.mesh, P())
  score = jax.jit(
    functools.partial(_answers, logit_scale=encoder.clip.logit_scale, rows=rows),
    out_shardings=everywhere,
  )
  tallies = {prompt: Tally(len(source.names), hierarchy) for prompt in class_features}

  skipped = SkippedImages(source, max_corrupt)

  def count(n: int, labels: jax.Array, answers: Sequence[jax.Array]) -> None:
    # The last batch was filled up with images that have been counted.
    labels_B = np.asarray(labels)[:n]
    read = labels_B != _UNREADABLE
    rank_PxB, answer_PxB, confidence_PxB = (np.asarray(x)[:, :n][:, read] for x in answers)
    for i, one in enumerate(tallies.values()):
      one.add(labels_B[read], Answers(rank_PxB[i], answer_PxB[i], confidence_PxB[i]))

  pending = None
  batches = ordered_batches(source, batch_size=size, rows=own, threads=threads)
  n_batches = -(-n_images // size)
  for start, images, reasons in steps_of(batches, "scoring images", "batches", n_batches):
    skipped.add(reasons)
    indices_B = np.minimum(start + np.arange(size), n_images - 1)
    # Each process marks what it could not read; all of them get the labels of the whole batch.
    labels_B = np.where(np.isin(indices_B, list(reasons)), _UNREADABLE, source.labels[indices_B])
    images_BxSxSx3 = place(images, own, size, rows)
    features_BxE = encoder.features_of_images(images_BxSxSx3)
    labels, *answers = score(features_BxE, classes_PxNxE, place(labels_B[own], own, size, rows))
    # Counted one batch late, so that the devices have the next to work on meanwhile.
    if pending is not None:
      count(*pending)
    pending = (n_images - start, labels, answers)
  count(*pending)
  skipped.gather()
  return tallies


def _answers(
  features_BxE: jax.Array,
  classes_PxNxE: jax.Array,
  labels_B: jax.Array,
  *,
  logit_scale: float,
  rows: NamedSharding,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """The labels [B]; rank, answer and confidence [P,B], see `metrics.Answers`."""
  features_BxE = jax.lax.with_sharding_constraint(features_BxE, rows)
  is_right_BxN = labels_B[:, None] == jnp.arange(classes_PxNxE.shape[1])

  def one(classes_NxE):
    # HIGHEST: accelerators would round the product to bfloat16, and thousands of classes lie close.
    cosine_BxN = jnp.matmul(features_BxE, classes_NxE.T, precision=jax.lax.Precision.HIGHEST)
    rank_B = ranks(cosine_BxN, labels_B)
    best_of_rest_B = jnp.argmax(jnp.where(is_right_BxN, -jnp.inf, cosine_BxN), axis=1)
    answer_B = jnp.where(rank_B == 0, labels_B, best_of_rest_B)
    best_Bx1 = jnp.max(cosine_BxN, axis=1, keepdims=True)
    confidence_B = 1 / jnp.sum(jnp.exp(logit_scale * (cosine_BxN - best_Bx1)), axis=1)
    return rank_B, answer_B, confidence_B

  # One prompt after the other: [B,N] of one of them is in memory.
  return labels_B, *jax.lax.map(one, classes_PxNxE)


def own_rows(rows: NamedSharding, size: int) -> np.ndarray:
  """The rows of a batch of so many that lie on this process's devices, in order."""
  indices = rows.addressable_devices_indices_map((size,)).values()
  return np.unique(np.concatenate([np.arange(size)[index] for index in indices]))


def place(part: np.ndarray, own: np.ndarray, size: int, rows: NamedSharding) -> jax.Array:
  """A batch on all devices, from the part of it that this process holds."""
  return jax.make_array_from_callback(
    (size, *part.shape[1:]),
    rows,
    lambda index: part[np.searchsorted(own, np.arange(size)[index[0]])],
  )
