"""Evaluation of images: each is read by the process of its device and scored there.

The results for a batch, a few numbers an image, are gathered on every host, so that all processes
count the same.
Shapes: P prompts, N classes of a data set, n images of it, B images of a batch over all processes,
E embedding, S image side.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int, UInt8
import numpy as np

from pomp_jax import hosts
from pomp_jax.data.loader import SkippedImages, ordered_batches
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.encoder import Encoder, fetched, map_rows
from pomp_jax.evaluate.metrics import (
  Accuracy,
  Answers,
  Tally,
  accuracy_of_ranks,
  check_finite,
  ranks,
)
from pomp_jax.evaluate.stored_features import StoredFeatures
from pomp_jax.files.paths import Path
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.mesh import CLASS, DATA, make_mesh, replicate, split_rows

# Images rendered or decoded at a time, over all processes.
_BATCH = 256
# Scores that a device computes at a time: 64 MB.
_SCORES = 2**24
# The label of a row that does not count: padding, or an image that can't be read.
NO_LABEL = -1


class SplitFeatures(NamedTuple):
  """Features of the n readable images of a split."""

  names: tuple[str, ...]  # of the N classes
  labels: Int[np.ndarray, " n"]
  features: Float[np.ndarray, "n E"]  # unit rows
  indices: Int[np.ndarray, " n"]  # of the images in their source, ascending


def split_features(
  encoder: Encoder,
  source: Source,
  *,
  threads: int = 2,
  max_corrupt: float = 0.0,
  store: Path | None = None,
) -> SplitFeatures:
  """Computes the features of the readable images of a split; all processes call it together.

  Args:
    encoder: CLIP on the devices of all processes.
    source: images; the same list in every process.
    threads: number of prefetching threads in each process.
    max_corrupt: share of the images that may be unreadable; above 0, one image always may. They
      are dropped, with one warning for all of them.
    store: folder of features of earlier starts, which gets those computed now.

  CorruptDataError if too many images are unreadable, EvaluationError if features are not finite.
  """
  if isinstance(source, StoredImages):
    source = source.sized(encoder.clip.image_size)
  skipped, stored = SkippedImages(source, max_corrupt), StoredFeatures(store, encoder, source)
  mark = jax.jit(_nan_where_unreadable, out_shardings=NamedSharding(encoder.mesh, P()))

  def computed():
    task = "features of images"
    for batch in image_batches(encoder, source, skipped, _BATCH, threads, task, stored.missing):
      yield mark(encoder.features_of_images(batch.images), batch.labels), batch.n_images
      hosts.raise_if_preempted()

  for features_BxE, n_images in fetched(computed()):
    stored.add(features_BxE[:n_images])
  skipped.gather()
  readable = np.delete(np.arange(len(source)), list(skipped.reasons))
  features = stored.features[readable]
  check_finite(features, "images")
  return SplitFeatures(tuple(source.names), np.asarray(source.labels)[readable], features, readable)


def evaluate(
  encoder: Encoder,
  splits: Mapping[str, SplitFeatures],
  prompts: Mapping[str, Prompt | str],
  reference: str | None = None,
) -> dict[str, dict[str, Tally]]:
  """Counts the answers of every prompt on every split: {split: {prompt: tally}}, as `tally`.

  Features of a class that several splits share are computed once a prompt. A class-specific prompt
  fits only splits with exactly the classes of its training.
  """
  names = dict.fromkeys(name for split in splits.values() for name in split.names)
  row = {name: i for i, name in enumerate(names)}
  features = {name: encoder.class_features(list(row), prompt) for name, prompt in prompts.items()}
  results = {}
  for split_name, split in splits.items():
    rows = [row[name] for name in split.names]
    batches = row_batches(split.features, split.labels, len(rows), encoder.mesh)
    text_features = {name: one[rows] for name, one in features.items()}
    results[split_name] = _count(encoder, batches, text_features, None, reference)
  return results


def topk_accuracy(
  image_features_BxE: Float[np.ndarray, "B E"],
  class_features_NxE: Float[np.ndarray, "N E"],
  labels_B: Int[np.ndarray, " B"],
  ks: Sequence[int] = (1, 5),
  *,
  mesh: Mesh | None = None,
  chunk: int = 0,
) -> Accuracy:
  """Computes the share of images whose class is among the k most similar, on the devices.

  Ties count as wrong: a constant classifier scores 0. Features are unit rows, equal on all hosts.

  Args:
    image_features_BxE: features of the images.
    class_features_NxE: features of the classes.
    labels_B: right classes.
    ks: values of k.
    mesh: devices, each of which scores its share of the images; this process's if None.
    chunk: images scored at a time, over all devices; 0: 64 MB of scores on each device.
  """
  mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
  classes, compute = replicate(np.asarray(class_features_NxE, np.float32), mesh), rank_rows(mesh)
  batches = row_batches(image_features_BxE, labels_B, len(class_features_NxE), mesh, chunk)
  found = fetched((compute(classes, rows), n) for *rows, n in batches)
  rank_B = np.concatenate([ranks_B[:n] for ranks_B, n in found])
  return accuracy_of_ranks(rank_B, len(class_features_NxE), ks)


@functools.cache
def rank_rows(mesh: Mesh) -> Callable[..., Int[jax.Array, " B"]]:
  """Compiles `ranks` of unit rows: class features [N,E], (image features [B,E], labels [B]) -> [B].

  Images and labels are split over the devices of the mesh; all else is on all of them.
  """

  def ranks_of_rows(class_features_NxE, rows):
    image_features_BxE, labels_B = rows
    # HIGHEST: accelerators would round the product to bfloat16, and thousands of classes lie close.
    precision = jax.lax.Precision.HIGHEST
    scores_BxN = jnp.matmul(image_features_BxE, class_features_NxE.T, precision=precision)
    return ranks(scores_BxN, labels_B)

  return map_rows(mesh, ranks_of_rows, n_replicated=1)


def row_batches(
  features_BxE: Float[np.ndarray, "B E"],
  labels_B: Int[np.ndarray, " B"],
  n_classes: int,
  mesh: Mesh,
  chunk: int = 0,
) -> Iterator[tuple[jax.Array, jax.Array, int]]:
  """Yields features and labels in parts of one size, split over the devices, and their number.

  Arguments as `topk_accuracy`'s. The last part is padded with rows that have `NO_LABEL`.
  """
  n_images = len(labels_B)
  at_a_time = min(chunk or mesh.size * max(_SCORES // n_classes, 1), n_images)
  size = mesh.size * -(-at_a_time // mesh.size)
  for start in steps_of(range(0, n_images, size), "scoring", "parts"):
    features, labels = (rows[start : start + size] for rows in (features_BxE, labels_B))
    missing = size - len(labels)
    features = np.pad(features.astype(np.float32), ((0, missing), (0, 0)))
    labels = np.pad(labels.astype(np.int32), (0, missing), constant_values=NO_LABEL)
    yield *split_rows((features, labels), mesh), size - missing


def classifier_accuracy(
  classifier: Any, split: SplitFeatures, ks: Sequence[int] = (1, 5), chunk: int = 512
) -> Accuracy:
  """Accuracy of a classifier with a method `scores`: features [n,E] -> [n,N], in NumPy.

  An image with a score that is not finite counts as wrong for every k.
  """
  rank_n = []
  for start in steps_of(range(0, len(split.labels), chunk), "scoring", "parts"):
    part = slice(start, start + chunk)
    rank_n.append(ranks(classifier.scores(split.features[part]), split.labels[part]))
  return accuracy_of_ranks(np.concatenate(rank_n), len(split.names), ks)


def tally(
  encoder: Encoder,
  source: Source,
  text_features: Mapping[str, Float[np.ndarray, "N E"]],
  *,
  more: Callable[[], Any] | None = None,
  reference: str | None = None,
  batch_size: int = 512,
  threads: int = 2,
  max_corrupt: float = 0.0,
) -> dict[str, Tally]:
  """Counts right answers over a source, one tally a prompt; see `split_features`.

  Args:
    encoder: CLIP on the devices of all processes.
    source: images; the same list in every process.
    text_features: unit features of the source's classes by prompt.
    more: makes what counts other figures of a prompt, see `Tally`.
    reference: prompt with which the others are compared; None: none.
    batch_size: images per batch over all devices, rounded up to a multiple of their number.
    threads: number of prefetching threads in each process.
    max_corrupt: share of images that may be unreadable.
  """
  skipped = SkippedImages(source, max_corrupt)
  images = image_batches(encoder, source, skipped, batch_size, threads, "scoring images")
  batches = ((encoder.features_of_images(x.images), x.labels, x.n_images) for x in images)
  tallies = _count(encoder, batches, text_features, more, reference)
  skipped.gather()
  return tallies


def _count(
  encoder: Encoder,
  batches: Iterable[tuple[jax.Array, jax.Array, int]],
  text_features: Mapping[str, Float[np.ndarray, "N E"]],
  more: Callable[[], Any] | None,
  reference: str | None,
) -> dict[str, Tally]:
  """Scores batches (unit features, labels, number of images) under all prompts."""
  text_PxNxE = replicate(np.stack(list(text_features.values())), encoder.mesh)
  score = _score(encoder.mesh, encoder.clip.logit_scale)
  tallies = {label: Tally(text_PxNxE.shape[1], more and more()) for label in text_features}
  scored = ((n, *score(features, text_PxNxE, labels)) for features, labels, n in batches)
  for n_images, labels_B, *answers in fetched(scored):
    counted_B = (labels_B != NO_LABEL) & (np.arange(len(labels_B)) < n_images)
    of_prompts = zip(*(one_PxB[:, counted_B] for one_PxB in answers), strict=True)
    answered = dict(zip(tallies, map(Answers._make, of_prompts), strict=True))
    right_b = answered[reference].rank == 0 if reference else None
    for label, one in tallies.items():
      one.add(labels_B[counted_B], answered[label], None if label == reference else right_b)
  return tallies


@functools.cache
def _score(mesh: Mesh, logit_scale: float) -> Callable[..., tuple[jax.Array, ...]]:
  """Compiles (image features [B,E], text features [P,N,E], labels [B]) -> labels, `Answers`."""
  rows = NamedSharding(mesh, P((DATA, CLASS)))

  def answers(features_BxE, text_PxNxE, labels_B):
    features_BxE = jax.lax.with_sharding_constraint(features_BxE, rows)
    is_right_BxN = labels_B[:, None] == jnp.arange(text_PxNxE.shape[1])

    def of_prompt(text_NxE):
      # HIGHEST: accelerators would round the product to bfloat16; thousands of classes lie close.
      cosine_BxN = jnp.matmul(features_BxE, text_NxE.T, precision=jax.lax.Precision.HIGHEST)
      rank_B = ranks(cosine_BxN, labels_B)
      best_of_rest_B = jnp.argmax(jnp.where(is_right_BxN, -jnp.inf, cosine_BxN), axis=1)
      answer_B = jnp.where(rank_B == 0, labels_B, best_of_rest_B)
      best_Bx1 = jnp.max(cosine_BxN, axis=1, keepdims=True)
      confidence_B = 1 / jnp.sum(jnp.exp(logit_scale * (cosine_BxN - best_Bx1)), axis=1)
      return rank_B, answer_B, confidence_B

    # A sequential map keeps the scores [B,N] of only one prompt in memory.
    return labels_B, *jax.lax.map(of_prompt, text_PxNxE)

  return jax.jit(answers, out_shardings=NamedSharding(mesh, P()))


class Batch(NamedTuple):
  """Images of a batch and their labels, the rows split over all devices."""

  images: UInt8[jax.Array, "B S S 3"]
  labels: Int[jax.Array, " B"]  # NO_LABEL for unreadable images, which are black
  n_images: int  # without those that pad the batch


def image_batches(
  encoder: Encoder,
  source: Source,
  skipped: SkippedImages,
  batch_size: int,
  threads: int,
  task: str,
  indices: Int[np.ndarray, " n"] | None = None,
) -> Iterator[Batch]:
  """Yields images by index, or all, in batches of one size; each process reads its devices' rows.

  The last batch is padded with the last image. Adds unreadable images to `skipped`.
  """
  indices = np.arange(len(source)) if indices is None else indices
  n_devices = encoder.mesh.size
  # A part of the images has the same size, so that features do not depend on which part it is.
  size = n_devices * -(-min(batch_size, len(source)) // n_devices)
  sharding = NamedSharding(encoder.mesh, P((DATA, CLASS)))
  shards = sharding.addressable_devices_indices_map((size,)).values()
  own = np.unique(np.concatenate([np.arange(size)[shard] for shard in shards]))

  def over_devices(part: np.ndarray) -> jax.Array:
    """Assembles the global array from this process's rows."""
    return jax.make_array_from_callback(
      (size, *part.shape[1:]),
      sharding,
      lambda index: part[np.searchsorted(own, np.arange(size)[index[0]])],
    )

  batches = ordered_batches(source, indices, batch_size=size, rows=own, threads=threads)
  n_batches = -(-len(indices) // size)
  for number, (shown, images, reasons) in enumerate(steps_of(batches, task, "batches", n_batches)):
    skipped.add(reasons)
    labels = np.where(np.isin(shown, list(reasons)), NO_LABEL, np.asarray(source.labels)[shown])
    n_images = min(size, len(indices) - number * size)
    yield Batch(over_devices(images), over_devices(labels), n_images)


def _nan_where_unreadable(features_BxE: jax.Array, labels_B: jax.Array) -> jax.Array:
  return jnp.where((labels_B == NO_LABEL)[:, None], jnp.nan, features_BxE)
