"""Accuracy and `Tally` of a classification by cosine; the devices compute and rank the
scores.

The results for a batch, a few numbers an image, are gathered on every host, so that all
processes count the same. Shapes: P prompts, N classes of a data set, B images of a
batch over all processes, b of them that count, E embedding, S side of an image in
pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int
import numpy as np

from pomp_jax import hosts
from pomp_jax.data.skipped_images import SkippedImages
from pomp_jax.data.source import FeatureSource, Source
from pomp_jax.encoder import Encoder, chunks, fetched, map_rows
from pomp_jax.evaluate.image_batches import NO_LABEL, Batch, image_batches
from pomp_jax.evaluate.metrics import Accuracy, Tally, accuracy_of_ranks, ranks
from pomp_jax.evaluate.split_features import SplitFeatures, split_features
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.prompt.mesh import CLASS, DATA, make_mesh, replicate, split_rows

# Function from the images' unit features under the frozen CLIP, [B,E], and the images
# themselves, uint8 [B,S,S,3], to the cosines [B,N] with all classes, replicated. The
# features may be None for a prompt that needs pixels. The images are None if features
# are stored.
Scorer = Callable[[jax.Array | None, jax.Array | None], jax.Array]

# Scores that a device computes at a time: 64 MB as float32.
_SCORES = 2**24


class _Batch(NamedTuple):
  """Images to score, the rows split over the devices."""

  features: jax.Array  # unit features [B,E]
  images: jax.Array | None  # uint8 [B,S,S,3]; None for stored features
  labels: jax.Array  # [B]
  n_images: int  # number of images without padding


def evaluate(
  encoder: Encoder,
  splits: Mapping[str, SplitFeatures],
  prompts: Mapping[str, Prompt | str],
  reference: str | None = None,
) -> dict[str, dict[str, Tally]]:
  """Counts the answers of every prompt on every split: {split: {prompt: tally}}.

  A class that several splits share is encoded only once under each prompt.

  Args:
    encoder: CLIP of the features.
    splits: features of images by split. A class-specific prompt fits only splits with
      exactly the classes of its training.
    prompts: learned prompts or templates by label.
    reference: label of the prompt with which all others are compared; None for no
      comparison.
  """
  all_names: dict[str, None] = {}
  for split in splits.values():
    all_names |= dict.fromkeys(split.names)
  row_of = {name: row for row, name in enumerate(all_names)}
  features = {
    label: encoder.class_features(list(row_of), prompt)
    for label, prompt in prompts.items()
  }
  tallies = {}
  for split_name, split in splits.items():
    rows = [row_of[name] for name in split.names]
    text_features = {label: all_rows[rows] for label, all_rows in features.items()}
    tallies[split_name] = _count(
      encoder,
      _stored_batches(split, encoder.mesh),
      text_features,
      n_classes=len(rows),
      more=None,
      reference=reference,
    )
  return tallies


def _stored_batches(split: SplitFeatures, mesh: Mesh) -> Iterator[_Batch]:
  """Yields the stored features of a split, which has no images."""
  batches = _row_batches(split.features, split.labels, len(split.names), mesh)
  for features, labels, n_images in batches:
    yield _Batch(features, None, labels, n_images)


def topk_accuracy(
  image_features_BxE: Float[np.ndarray, "B E"],
  class_features_NxE: Float[np.ndarray, "N E"],
  labels_B: Int[np.ndarray, " B"],
  ks: Sequence[int] = (1, 5),
  *,
  mesh: Mesh | None = None,
) -> Accuracy:
  """Computes the share of images whose class is among the k most similar.

  The similarities are computed on the devices, in parts.

  Args:
    image_features_BxE: unit rows, equal on all hosts.
    class_features_NxE: unit rows, equal on all hosts.
    labels_B: class of each image.
    ks: the k of each share, `top1`, `top5` and so on.
    mesh: devices that divide the images; None for the devices of this process.

  Returns:
    The shares, and `macro_top1`, the mean of the classes' top-1; see
    `metrics.accuracy_of_ranks`.
  """
  n_classes = len(class_features_NxE)
  rank_B = ranks_of_images(image_features_BxE, class_features_NxE, labels_B, mesh=mesh)
  return accuracy_of_ranks(rank_B, n_classes, ks, np.asarray(labels_B))


def ranks_of_images(
  image_features_BxE: Float[np.ndarray, "B E"],
  class_features_NxE: Float[np.ndarray, "N E"],
  labels_B: Int[np.ndarray, " B"],
  *,
  mesh: Mesh | None = None,
) -> Int[np.ndarray, " B"]:
  """Computes the rank of each image's class by cosine, on the devices.

  Rank 0 is right, see `ranks`. Ties count as wrong: a constant classifier is never
  right.

  Args:
    image_features_BxE: unit rows, equal on all hosts.
    class_features_NxE: unit rows, equal on all hosts.
    labels_B: class of each image.
    mesh: devices that divide the images; None for the devices of this process.
  """
  mesh = make_mesh(devices=hosts.devices(local=True)) if mesh is None else mesh
  classes = replicate(np.asarray(class_features_NxE, np.float32), mesh)
  compute = rank_rows(mesh)
  batches = _row_batches(image_features_BxE, labels_B, len(class_features_NxE), mesh)

  def padded_ranks() -> Iterator[tuple[jax.Array, int]]:
    for features, labels, n_images in batches:
      yield compute(classes, (features, labels)), n_images

  # `fetched` computes the next chunk while one is copied to the host.
  ranks_of_chunks = [rank_B[:n_images] for rank_B, n_images in fetched(padded_ranks())]
  return np.concatenate(ranks_of_chunks)


@functools.cache
def rank_rows(mesh: Mesh) -> Callable[..., Int[jax.Array, " B"]]:
  """Compiles `ranks` of unit rows: class features [N,E], (image features [B,E], labels
  [B]) -> [B].

  Images and labels are split over the devices of the mesh; class features are on all.
  """

  def ranks_of_rows(
    class_features_NxE: Float[jax.Array, "N E"],
    rows: tuple[Float[jax.Array, "B E"], Int[jax.Array, " B"]],
  ) -> Int[jax.Array, " B"]:
    image_features_BxE, labels_B = rows
    # HIGHEST: otherwise accelerators round the product to bfloat16, which is too coarse
    # to rank thousands of close classes.
    precision = jax.lax.Precision.HIGHEST
    scores_BxN = jnp.matmul(
      image_features_BxE, class_features_NxE.T, precision=precision
    )
    return ranks(scores_BxN, labels_B)

  return map_rows(mesh, ranks_of_rows, n_replicated=1)


def _row_batches(
  features_BxE: np.ndarray, labels_B: np.ndarray, n_classes: int, mesh: Mesh
) -> Iterator[tuple[jax.Array, jax.Array, int]]:
  """Yields chunks of features and labels, split over the devices, with the number of
  images in each chunk without padding."""
  rows = np.asarray(features_BxE, np.float32), np.asarray(labels_B, np.int32)
  most = mesh.size * max(_SCORES // n_classes, 1)
  for chunk, n_images in chunks(rows, most, mesh, "scoring"):
    yield *split_rows(chunk, mesh), n_images


def tally(
  encoder: Encoder,
  source: Source,
  classifiers: Mapping[str, Float[np.ndarray, "N E"] | Scorer],
  *,
  more: Callable[[], Any] | None = None,
  reference: str | None = None,
  batch_size: int = 512,
  threads: int = 2,
  max_corrupt: float = 0.0,
) -> dict[str, Tally]:
  """Counts right answers over a source, one tally a prompt; all processes call it
  together.

  Args:
    encoder: CLIP that computes the features of images.
    source: images, or features of a file.
    classifiers: label of each prompt -> unit features of the source's classes, or a
      function that scores images.
    more: function that makes a counter of other figures, see `Tally`.
    reference: label of the prompt with which all others are compared; None for no
      comparison.
    batch_size: images that the devices share, rounded up to a multiple of the devices.
    threads: threads that read images in each process.
    max_corrupt: share of the images that may be unreadable.

  Raises:
    CorruptDataError: too many images can't be read.
    EvaluationError: features that are not finite.
  """
  n_classes = len(source.names)
  if isinstance(source, FeatureSource):
    split = split_features(encoder, source, max_corrupt=max_corrupt)
    batches = _stored_batches(split, encoder.mesh)
    return _count(encoder, batches, classifiers, n_classes, more, reference)
  skipped = SkippedImages(source, max_corrupt)
  images = image_batches(
    encoder, source, skipped, batch_size, threads, "scoring images"
  )
  batches = _encoded_batches(encoder, images)
  tallies = _count(encoder, batches, classifiers, n_classes, more, reference)
  skipped.gather()
  return tallies


def _encoded_batches(encoder: Encoder, batches: Iterable[Batch]) -> Iterator[_Batch]:
  """Yields images with their features, which are dispatched asynchronously."""
  for batch in batches:
    features = encoder.features_of_images(batch.images)
    yield _Batch(features, batch.images, batch.labels, batch.n_images)


def _count(
  encoder: Encoder,
  batches: Iterable[_Batch],
  classifiers: Mapping[str, Float[np.ndarray, "N E"] | Scorer],
  n_classes: int,
  more: Callable[[], Any] | None,
  reference: str | None,
) -> dict[str, Tally]:
  """Scores batches under all prompts, and counts the answers in a tally for each."""
  vectors = {}
  scorers = {}
  for label, classifier in classifiers.items():
    if isinstance(classifier, np.ndarray):
      vectors[label] = classifier
    else:
      scorers[label] = classifier
  text_PxNxE = None
  if vectors:
    text_PxNxE = replicate(np.stack(list(vectors.values())), encoder.mesh)
  under_vectors, under_cosines = _score(encoder.mesh, encoder.clip.logit_scale)

  def answered(batch: _Batch) -> list[tuple[jax.Array, ...]]:
    """Answers under all class vectors together, and under each scorer."""
    answers = []
    if text_PxNxE is not None:
      answers.append(under_vectors(batch.features, text_PxNxE, batch.labels))
    for scorer in scorers.values():
      cosine_BxN = scorer(batch.features, batch.images)
      answers.append(under_cosines(cosine_BxN, batch.labels))
    return answers

  tallies = {}
  for label in classifiers:
    counter = more() if more else None
    tallies[label] = Tally(n_classes, counter)
  scored = ((batch.n_images, answered(batch)) for batch in batches)
  for n_images, answers in fetched(scored):
    labels_B = answers[0][0]
    is_image_B = np.arange(len(labels_B)) < n_images
    counted_B = is_image_B & (labels_B != NO_LABEL)
    labels_b = labels_B[counted_B]
    rank_PxB, answer_PxB, confidence_PxB = _of_all_prompts(answers)
    place_of = {label: place for place, label in enumerate([*vectors, *scorers])}
    reference_b = None
    if reference:
      reference_b = rank_PxB[place_of[reference]][counted_B] == 0
    for label, counts in tallies.items():
      place = place_of[label]
      counts.add(
        labels_b,
        rank_PxB[place][counted_B],
        answer_PxB[place][counted_B],
        confidence_PxB[place][counted_B],
        reference_B=None if label == reference else reference_b,
      )
  return tallies


def _of_all_prompts(answers: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
  """Joins the results of all programs: ranks, answers and confidences, [P,B] each."""
  # The first array of each program holds the labels.
  of_programs = [arrays[1:] for arrays in answers]
  return [np.concatenate(parts) for parts in zip(*of_programs, strict=True)]


@functools.cache
def _score(
  mesh: Mesh, logit_scale: float
) -> tuple[Callable[..., tuple[jax.Array, ...]], ...]:
  """Compiles two functions that compute what `Tally.add` takes.

  The first takes image features [B,E], text features [P,N,E] and labels [B]; the second
  the cosines [B,N] of one prompt and labels [B]. Both return the labels, and the ranks,
  answers and confidences, [P,B] each.
  """
  rows = NamedSharding(mesh, P((DATA, CLASS)))
  everywhere = NamedSharding(mesh, P())

  def ranked(
    cosine_BxN: Float[jax.Array, "B N"], labels_B: Int[jax.Array, " B"]
  ) -> tuple[Int[jax.Array, " B"], Int[jax.Array, " B"], Float[jax.Array, " B"]]:
    is_right_BxN = labels_B[:, None] == jnp.arange(cosine_BxN.shape[1])
    rank_B = ranks(cosine_BxN, labels_B)
    cosine_of_rest_BxN = jnp.where(is_right_BxN, -jnp.inf, cosine_BxN)
    best_of_rest_B = jnp.argmax(cosine_of_rest_BxN, axis=1)
    answer_B = jnp.where(rank_B == 0, labels_B, best_of_rest_B)
    # Softmax of the best class, whose own term is exp(0) = 1.
    best_Bx1 = jnp.max(cosine_BxN, axis=1, keepdims=True)
    terms_BxN = jnp.exp(logit_scale * (cosine_BxN - best_Bx1))
    confidence_B = 1 / jnp.sum(terms_BxN, axis=1)
    return rank_B, answer_B, confidence_B

  # JAX logs this name when it compiles the function.
  def answers(
    features_BxE: Float[jax.Array, "B E"],
    text_PxNxE: Float[jax.Array, "P N E"],
    labels_B: Int[jax.Array, " B"],
  ) -> tuple[jax.Array, ...]:
    """Ranks all prompts that are class vectors.

    Args:
      features_BxE: unit features of the images.
      text_PxNxE: unit features of the classes under each prompt.
      labels_B: class of each image.
    """
    features_BxE = jax.lax.with_sharding_constraint(features_BxE, rows)

    def of_prompt(text_NxE: Float[jax.Array, "N E"]) -> tuple[jax.Array, ...]:
      # HIGHEST: otherwise accelerators round the product to bfloat16, which is too
      # coarse to rank thousands of close classes.
      cosine_BxN = jnp.matmul(
        features_BxE, text_NxE.T, precision=jax.lax.Precision.HIGHEST
      )
      return ranked(cosine_BxN, labels_B)

    # A sequential map keeps the scores [B,N] of only one prompt in memory.
    return labels_B, *jax.lax.map(of_prompt, text_PxNxE)

  def answers_to_cosines(
    cosine_BxN: Float[jax.Array, "B N"], labels_B: Int[jax.Array, " B"]
  ) -> tuple[jax.Array, ...]:
    cosine_BxN = jax.lax.with_sharding_constraint(cosine_BxN, rows)
    with_prompt_axis = [answer_B[None] for answer_B in ranked(cosine_BxN, labels_B)]
    return labels_B, *with_prompt_axis

  return (
    jax.jit(answers, out_shardings=everywhere),
    jax.jit(answers_to_cosines, out_shardings=everywhere),
  )
