"""Image features and accuracy of data sets; each image is read once, by one process or by many.

Each process decodes only the images of its own devices. The results for a batch, a few numbers an
image, are then gathered on every host, so that all processes count the same.

Shapes: P prompts, N classes of a data set, n images of it, B images of a batch over all processes,
E embedding, S image side.
"""

from collections.abc import Callable, Iterator, Mapping
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
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import ArrayCache
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.terminal import steps_of
from pomp_jax.inference.metrics import (
  Accuracy,
  Answers,
  Hierarchy,
  Tally,
  accuracy_of_scores,
  check_finite,
  ranks,
)
from pomp_jax.inference.stored_features import StoredFeatures
from pomp_jax.prompt.mesh import CLASS, DATA, replicate, split_rows

# Images rendered or decoded at a time, over all processes.
_BATCH = 256
# Scores that a device computes at a time, under each prompt in turn: 64 MB.
_SCORES = 2**24
# The label of an image that can't be read.
_UNREADABLE = -1


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
  cache: ArrayCache | None = None,
) -> SplitFeatures:
  """Computes the features of the readable images of a split; all processes call it together.

  Unreadable images are dropped, with one warning for all of them.

  Args:
    encoder: CLIP on the devices of all processes.
    source: images; the same list in every process.
    threads: number of prefetching threads in each process.
    max_corrupt: share of the images that may be unreadable; above 0, one image always may.
    cache: cache whose folder has features of earlier starts, and gets those computed now.

  Raises:
    CorruptDataError: too many images are unreadable.
    EvaluationError: features are not finite (broken weights, or overflow of the compute type).
    Preempted: one of several processes received SIGTERM.
  """
  if isinstance(source, StoredImages):
    source = source.sized(encoder.clip.image_size)
  skipped, stored = SkippedImages(source, max_corrupt), StoredFeatures(cache, encoder, source)

  mark = jax.jit(_nan_where_unreadable, out_shardings=NamedSharding(encoder.mesh, P()))
  # Fetched one batch late, so that the devices can work on the next meanwhile.
  pending: list[tuple[jax.Array, int]] = []
  for batch in image_batches(
    encoder, source, skipped, _BATCH, threads, "features of images", stored.missing
  ):
    features_BxE = encoder.features_of_images(batch.images)
    pending.append((mark(features_BxE, batch.labels), batch.n_images))
    if len(pending) > 1:
      stored.add(_fetched(*pending.pop(0)))
    hosts.raise_if_preempted()
  for late in pending:
    stored.add(_fetched(*late))
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
  """Counts the answers of every prompt on every split, over all classes of the split.

  Features of a class that several splits share are computed once a prompt. A class-specific prompt
  fits only splits with exactly the classes of its training. The other prompts are compared with the
  one that is named `reference`.

  Returns:
    {split: {prompt: tally}}.

  Raises:
    EvaluationError: features are not finite.
  """
  names = dict.fromkeys(name for split in splits.values() for name in split.names)
  row = {name: i for i, name in enumerate(names)}
  features = {name: encoder.class_features(list(row), prompt) for name, prompt in prompts.items()}
  results = {}
  for split_name, split in splits.items():
    rows, n_images = [row[name] for name in split.names], len(split.labels)
    scorer = _Scorer(encoder, {name: one[rows] for name, one in features.items()}, None, reference)
    at_a_time = min(encoder.mesh.size * max(_SCORES // len(rows), 1), n_images)
    size = encoder.mesh.size * -(-at_a_time // encoder.mesh.size)
    for start in steps_of(range(0, n_images, size), "scoring", "parts"):
      images_BxE, labels_B = (x[start : start + size] for x in (split.features, split.labels))
      missing = size - len(labels_B)
      padded = (
        np.pad(images_BxE.astype(np.float32), ((0, missing), (0, 0))),
        np.pad(labels_B.astype(np.int32), (0, missing), constant_values=_UNREADABLE),
      )
      scorer.add(*split_rows(padded, encoder.mesh), size)
    results[split_name] = scorer.finish()
  return results


def classifier_accuracy(classifier: Any, split: SplitFeatures) -> Accuracy:
  """Top-1 and top-5 of a classifier with a method `scores`: features [n,E] -> [n,N]."""
  return accuracy_of_scores(lambda part: classifier.scores(split.features[part]), split.labels)


def tally(
  encoder: Encoder,
  source: Source,
  text_features: Mapping[str, Float[np.ndarray, "N E"]],
  *,
  hierarchy: Hierarchy | None = None,
  reference: str | None = None,
  batch_size: int = 512,
  threads: int = 2,
  max_corrupt: float = 0.0,
) -> dict[str, Tally]:
  """Counts right answers over a source, one tally a prompt; all processes call it together.

  Unreadable images are dropped, with one warning for all of them.

  Args:
    encoder: CLIP on the devices of all processes.
    source: images; the same list in every process.
    text_features: unit features of the source's classes by prompt.
    hierarchy: WordNet relations of these classes, for errors on the tree.
    reference: prompt with which the others are compared; None: none.
    batch_size: images per batch over all devices, rounded up to a multiple of their number.
    threads: number of prefetching threads in each process.
    max_corrupt: share of the images that may be unreadable; above 0, one image always may.

  Raises:
    EvaluationError: features are not finite.
    CorruptDataError: too many images are unreadable.
  """
  scorer, skipped = (
    _Scorer(encoder, text_features, hierarchy, reference),
    SkippedImages(source, max_corrupt),
  )
  for batch in image_batches(encoder, source, skipped, batch_size, threads, "scoring images"):
    scorer.add(encoder.features_of_images(batch.images), batch.labels, batch.n_images)
  tallies = scorer.finish()
  skipped.gather()
  return tallies


class _Scorer:
  """Scores images under several prompts, and counts the answers."""

  def __init__(
    self,
    encoder: Encoder,
    text_features: Mapping[str, Float[np.ndarray, "N E"]],
    hierarchy: Hierarchy | None,
    reference: str | None,
  ):
    self._text_PxNxE = replicate(np.stack(list(text_features.values())), encoder.mesh)
    self._score = _score(encoder.mesh, encoder.clip.logit_scale)
    n_classes = self._text_PxNxE.shape[1]
    self._tallies = {label: Tally(n_classes, hierarchy) for label in text_features}
    self._reference, self._pending = reference, None

  def add(self, features_BxE: jax.Array, labels_B: jax.Array, n_images: int) -> None:
    """Scores a batch, and counts the one before it, so that the devices can work meanwhile.

    Rows from n_images on, which pad the last batch, and those of unreadable images do not count.
    """
    found = self._score(features_BxE, self._text_PxNxE, labels_B)
    self._count()
    self._pending = n_images, *found

  def finish(self) -> dict[str, Tally]:
    """Counts the last batch; the tallies by prompt."""
    self._count()
    return self._tallies

  def _count(self) -> None:
    if self._pending is None:
      return
    n, labels, *answers = self._pending
    self._pending = None
    labels_B = np.asarray(labels)[:n]
    read = labels_B != _UNREADABLE
    of_prompts = zip(*(np.asarray(x)[:, :n][:, read] for x in answers), strict=True)
    answered = dict(zip(self._tallies, map(Answers._make, of_prompts), strict=True))
    right_B = answered[self._reference].rank == 0 if self._reference else None
    for label, one in self._tallies.items():
      one.add(labels_B[read], answered[label], None if label == self._reference else right_B)


@functools.cache
def _score(mesh: Mesh, logit_scale: float) -> Callable[..., tuple[jax.Array, ...]]:
  """Compiles `_answers`, whose rows are split over the devices of the mesh."""
  rows = NamedSharding(mesh, P((DATA, CLASS)))
  answers = functools.partial(_answers, logit_scale=logit_scale, rows=rows)
  return jax.jit(answers, out_shardings=NamedSharding(mesh, P()))


class Batch(NamedTuple):
  """Images of a batch and their labels, the rows split over all devices."""

  images: UInt8[jax.Array, "B S S 3"]
  labels: Int[jax.Array, " B"]  # -1 for unreadable images, which are black
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
  # Also of some of the images, so that features do not depend on which these are.
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
    labels = np.where(np.isin(shown, list(reasons)), _UNREADABLE, np.asarray(source.labels)[shown])
    n_images = min(size, len(indices) - number * size)
    yield Batch(over_devices(images), over_devices(labels), n_images)


def _nan_where_unreadable(features_BxE: jax.Array, labels_B: jax.Array) -> jax.Array:
  return jnp.where((labels_B == _UNREADABLE)[:, None], jnp.nan, features_BxE)


def _fetched(array: jax.Array, n: int) -> np.ndarray:
  return np.asarray(array)[:n]


def _answers(
  features_BxE: jax.Array,
  text_PxNxE: jax.Array,
  labels_B: jax.Array,
  *,
  logit_scale: float,
  rows: NamedSharding,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Returns labels [B], and rank, answer and confidence [P,B] (see `metrics.Answers`)."""
  features_BxE = jax.lax.with_sharding_constraint(features_BxE, rows)
  is_right_BxN = labels_B[:, None] == jnp.arange(text_PxNxE.shape[1])

  def of_prompt(text_NxE):
    # HIGHEST: accelerators would round the product to bfloat16, and thousands of classes lie close.
    cosine_BxN = jnp.matmul(features_BxE, text_NxE.T, precision=jax.lax.Precision.HIGHEST)
    rank_B = ranks(cosine_BxN, labels_B)
    best_of_rest_B = jnp.argmax(jnp.where(is_right_BxN, -jnp.inf, cosine_BxN), axis=1)
    answer_B = jnp.where(rank_B == 0, labels_B, best_of_rest_B)
    best_Bx1 = jnp.max(cosine_BxN, axis=1, keepdims=True)
    confidence_B = 1 / jnp.sum(jnp.exp(logit_scale * (cosine_BxN - best_Bx1)), axis=1)
    return rank_B, answer_B, confidence_B

  # A sequential map: [B,N] of only one prompt is in memory.
  return labels_B, *jax.lax.map(of_prompt, text_PxNxE)
