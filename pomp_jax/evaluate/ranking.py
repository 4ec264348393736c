"""Accuracy and `Tally` of classes by cosine: scores are computed on the devices, and
ranked there.

The results for a batch, a few numbers an image, are gathered on every host, so that all
processes count the same. Shapes: P prompts, N classes of a data set, B images of a
batch over all processes, E embedding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int
import numpy as np

from pomp_jax import hosts
from pomp_jax.data.source import FeatureSource, Source
from pomp_jax.data.unreadable import SkippedImages
from pomp_jax.encoder import Encoder, chunks, fetched, map_rows
from pomp_jax.evaluate.image_batches import NO_LABEL, image_batches
from pomp_jax.evaluate.metrics import Accuracy, Tally, accuracy_of_ranks, ranks
from pomp_jax.evaluate.split_features import SplitFeatures, split_features
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.prompt.mesh import CLASS, DATA, make_mesh, replicate, split_rows

# Cosines [B,N] of a batch with all classes, replicated, from the images' unit features
# under the frozen CLIP, [B,E], and the images themselves, uint8 [B,S,S,3]. A prompt
# that needs pixels reads no features, which may be None; stored features have no
# images.
Scorer = Callable[[jax.Array | None, jax.Array | None], jax.Array]

# Scores that a device computes at a time: 64 MB.
_SCORES = 2**24


def evaluate(
  encoder: Encoder,
  splits: Mapping[str, SplitFeatures],
  prompts: Mapping[str, Prompt | str],
  reference: str | None = None,
) -> dict[str, dict[str, Tally]]:
  """Counts the answers of every prompt on every split: {split: {prompt: tally}}, as
  `tally`.

  Features of a class that several splits share are computed once a prompt. A
  class-specific prompt fits only splits with exactly the classes of its training.
  """
  names = dict.fromkeys(name for split in splits.values() for name in split.names)
  row = {name: i for i, name in enumerate(names)}
  features = {
    name: encoder.class_features(list(row), prompt) for name, prompt in prompts.items()
  }
  results = {}
  for split_name, split in splits.items():
    rows = [row[name] for name in split.names]
    rows_of_split = _row_batches(split.features, split.labels, len(rows), encoder.mesh)
    batches = ((features, None, labels, n) for features, labels, n in rows_of_split)
    text_features = {name: one[rows] for name, one in features.items()}
    results[split_name] = _count(
      encoder, batches, text_features, len(rows), None, reference
    )
  return results


def topk_accuracy(
  image_features_BxE: Float[np.ndarray, "B E"],
  class_features_NxE: Float[np.ndarray, "N E"],
  labels_B: Int[np.ndarray, " B"],
  ks: Sequence[int] = (1, 5),
  *,
  mesh: Mesh | None = None,
) -> Accuracy:
  """Computes the share of images whose class is among the k most similar, on the
  devices.

  `macro_top1` is the mean of the classes' top-1. The other arguments are
  `ranks_of_images`'.
  """
  rank_B = ranks_of_images(image_features_BxE, class_features_NxE, labels_B, mesh=mesh)
  return accuracy_of_ranks(rank_B, len(class_features_NxE), ks, np.asarray(labels_B))


def ranks_of_images(
  image_features_BxE: Float[np.ndarray, "B E"],
  class_features_NxE: Float[np.ndarray, "N E"],
  labels_B: Int[np.ndarray, " B"],
  *,
  mesh: Mesh | None = None,
) -> Int[np.ndarray, " B"]:
  """Computes the rank of each image's class by cosine, on the devices; 0 is right, see
  `ranks`.

  Ties count as wrong: a constant classifier is never right.

  Args:
    image_features_BxE: unit rows, equal on all hosts.
    class_features_NxE: likewise.
    labels_B: class of each image.
    mesh: devices that divide the images; None for this process's.
  """
  mesh = make_mesh(devices=hosts.devices(local=True)) if mesh is None else mesh
  classes = replicate(np.asarray(class_features_NxE, np.float32), mesh)
  compute = rank_rows(mesh)
  batches = _row_batches(image_features_BxE, labels_B, len(class_features_NxE), mesh)
  ranked = fetched(
    (compute(classes, (features, labels)), n_images)
    for features, labels, n_images in batches
  )
  return np.concatenate([rank_B[:n_images] for rank_B, n_images in ranked])


@functools.cache
def rank_rows(mesh: Mesh) -> Callable[..., Int[jax.Array, " B"]]:
  """Compiles `ranks` of unit rows: class features [N,E], (image features [B,E], labels
  [B]) -> [B].

  Images and labels are split over the devices of the mesh; all else is on all of them.
  """

  def ranks_of_rows(
    class_features_NxE: Float[jax.Array, "N E"],
    rows: tuple[Float[jax.Array, "B E"], Int[jax.Array, " B"]],
  ) -> Int[jax.Array, " B"]:
    image_features_BxE, labels_B = rows
    # HIGHEST: accelerators would round the product to bfloat16, and thousands of
    # classes lie close.
    precision = jax.lax.Precision.HIGHEST
    scores_BxN = jnp.matmul(
      image_features_BxE, class_features_NxE.T, precision=precision
    )
    return ranks(scores_BxN, labels_B)

  return map_rows(mesh, ranks_of_rows, n_replicated=1)


def _row_batches(
  features_BxE: np.ndarray, labels_B: np.ndarray, n_classes: int, mesh: Mesh
) -> Iterator[tuple[jax.Array, jax.Array, int]]:
  """Yields features and labels in `chunks`, split over the devices; as
  `topk_accuracy`'s."""
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
  """Counts right answers over a source, one tally a prompt; arguments as of
  `split_features`.

  `classifiers` are unit rows of the source's classes, or what scores them, by prompt;
  all are compared with `reference`. `more()` makes what counts other figures, see
  `Tally`. The devices divide a batch, rounded up.
  """
  if isinstance(source, FeatureSource):
    split = split_features(encoder, source, max_corrupt=max_corrupt)
    rows = _row_batches(split.features, split.labels, len(source.names), encoder.mesh)
    without_images = ((features, None, labels, n) for features, labels, n in rows)
    return _count(
      encoder, without_images, classifiers, len(source.names), more, reference
    )
  skipped = SkippedImages(source, max_corrupt)
  images = image_batches(
    encoder, source, skipped, batch_size, threads, "scoring images"
  )
  batches = (
    (encoder.features_of_images(x.images), x.images, x.labels, x.n_images)
    for x in images
  )
  tallies = _count(encoder, batches, classifiers, len(source.names), more, reference)
  skipped.gather()
  return tallies


def _count(
  encoder: Encoder,
  batches: Iterable[tuple[jax.Array, jax.Array | None, jax.Array, int]],
  classifiers: Mapping[str, Float[np.ndarray, "N E"] | Scorer],
  n_classes: int,
  more: Callable[[], Any] | None,
  reference: str | None,
) -> dict[str, Tally]:
  """Scores batches (unit features, images, labels, number of images) under all
  prompts."""
  vectors = {
    label: one for label, one in classifiers.items() if isinstance(one, np.ndarray)
  }
  scorers = {label: one for label, one in classifiers.items() if callable(one)}
  text_PxNxE = (
    replicate(np.stack(list(vectors.values())), encoder.mesh) if vectors else None
  )
  under_vectors, under_cosines = _score(encoder.mesh, encoder.clip.logit_scale)

  def answers_of(
    features: jax.Array, images: jax.Array | None, labels: jax.Array
  ) -> list[tuple[jax.Array, ...]]:
    """Answers under the vectors together, and under each scorer."""
    together = (
      [] if text_PxNxE is None else [under_vectors(features, text_PxNxE, labels)]
    )
    apart = [
      under_cosines(scorer(features, images), labels) for scorer in scorers.values()
    ]
    return together + apart

  tallies = {label: Tally(n_classes, more and more()) for label in classifiers}
  scored = (
    (n, answers_of(features, images, labels)) for features, images, labels, n in batches
  )
  for n_images, answers in fetched(scored):
    labels_B = answers[0][0]
    counted_B = (labels_B != NO_LABEL) & (np.arange(len(labels_B)) < n_images)
    _, *kinds = zip(*answers, strict=True)
    of_prompts = zip(*map(np.concatenate, kinds), strict=True)
    answered = dict(zip([*vectors, *scorers], of_prompts, strict=True))
    right_b = answered[reference][0][counted_B] == 0 if reference else None
    for label, one in tallies.items():
      rank_b, answer_b, confidence_b = (
        of_images[counted_B] for of_images in answered[label]
      )
      other_b = None if label == reference else right_b
      one.add(labels_B[counted_B], rank_b, answer_b, confidence_b, other_b)
  return tallies


@functools.cache
def _score(
  mesh: Mesh, logit_scale: float
) -> tuple[Callable[..., tuple[jax.Array, ...]], ...]:
  """Compiles what `Tally` adds, [P,B] of P prompts, behind the labels [B].

  Returns two functions: of image features [B,E], text features [P,N,E] and labels [B];
  and of cosines [B,N] of one prompt, and labels.
  """
  rows, everywhere = NamedSharding(mesh, P((DATA, CLASS))), NamedSharding(mesh, P())

  def ranked(
    cosine_BxN: Float[jax.Array, "B N"], labels_B: Int[jax.Array, " B"]
  ) -> tuple[Int[jax.Array, " B"], Int[jax.Array, " B"], Float[jax.Array, " B"]]:
    is_right_BxN = labels_B[:, None] == jnp.arange(cosine_BxN.shape[1])
    rank_B = ranks(cosine_BxN, labels_B)
    best_of_rest_B = jnp.argmax(jnp.where(is_right_BxN, -jnp.inf, cosine_BxN), axis=1)
    answer_B = jnp.where(rank_B == 0, labels_B, best_of_rest_B)
    best_Bx1 = jnp.max(cosine_BxN, axis=1, keepdims=True)
    confidence_B = 1 / jnp.sum(jnp.exp(logit_scale * (cosine_BxN - best_Bx1)), axis=1)
    return rank_B, answer_B, confidence_B

  # The log shows the names of functions that are compiled.
  def answers(
    features_BxE: Float[jax.Array, "B E"],
    text_PxNxE: Float[jax.Array, "P N E"],
    labels_B: Int[jax.Array, " B"],
  ) -> tuple[jax.Array, ...]:
    features_BxE = jax.lax.with_sharding_constraint(features_BxE, rows)

    def of_prompt(text_NxE: Float[jax.Array, "N E"]) -> tuple[jax.Array, ...]:
      # HIGHEST: accelerators would round the product to bfloat16; thousands of classes
      # lie close.
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
    return labels_B, *(one[None] for one in ranked(cosine_BxN, labels_B))

  return (
    jax.jit(answers, out_shardings=everywhere),
    jax.jit(answers_to_cosines, out_shardings=everywhere),
  )
