"""Measures learners that encode images themselves, or have class features per image.

Shapes: n images, N classes, B images of a shard, P chunks of R classes, S image size, E
embedding.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int
import numpy as np

from pomp_jax.config.fields import Data
from pomp_jax.data.skipped_images import SkippedImages
from pomp_jax.data.source import Source
from pomp_jax.encoder import Encoder, fetched, map_rows
from pomp_jax.evaluate.image_batches import image_batches
from pomp_jax.evaluate.metrics import Accuracy, accuracy_of_ranks, ranks
from pomp_jax.evaluate.ranking import rank_rows, topk_accuracy
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.learner import Frozen, Learner
from pomp_jax.prompt.loss import normalize
from pomp_jax.prompt.mesh import replicate
from pomp_jax.train.methods import Pomp

# Classes in a chunk, for per-image class features.
_CLASSES = 256
# Images decoded at a time over all processes.
_IMAGES = 512
# Images scored at a time, with per-image class features.
_IMAGES_WITH_CLASSES = 32
# Images that a classifier of features scores at a time.
_ROWS = 512


class Baseline(Pomp):
  """A method that trains by steps and learns no prompt."""

  def accuracy(
    self, encoder: Encoder, learner: Learner, data: Data
  ) -> Callable[[Any, Frozen, SplitFeatures, Source], Accuracy]:
    """See `Pomp` and `learner_accuracy`.

    Args:
      encoder: the CLIP.
      learner: the learner, without a token budget.
      data: threads that read images, and how many may be unreadable.
    """
    return learner_accuracy(encoder, learner, self.per_image_text, data)


class CompiledLearner:
  """A learner's features and scores, compiled for a mesh.

  The learner has no token budget. Rows are split over the devices, as in
  `ranking.rank_rows`. Each function takes parameters and frozen arrays on the mesh; the
  frozen arrays hold the classes to choose from.
  """

  def __init__(self, learner: Learner, mesh: Mesh):
    """Wraps the learner's functions; each compiles on first use."""
    # `images` is called only if the learner has `image_features` (`learns_images`).
    pixel_learner: Any = learner

    def of_images(
      params: Any, frozen: Frozen, images_B: jax.Array
    ) -> Float[jax.Array, "B E"]:
      return normalize(pixel_learner.image_features(params, frozen, images_B))

    def of_classes(
      params: Any, frozen: Frozen, ids_R: Int[jax.Array, " R"]
    ) -> Float[jax.Array, "R E"]:
      no_images = jnp.zeros((0, 1))
      return normalize(learner.text_features(params, frozen, ids_R, no_images).features)

    def cosines_of_pairs(
      params: Any,
      frozen: Frozen,
      ids_N: Int[jax.Array, " N"],
      features_BxE: Float[jax.Array, "B E"],
    ) -> Float[jax.Array, "B N"]:
      unit_BxE = normalize(features_BxE)
      # Fill the last chunk of R = `_CLASSES` classes with class 0; its extra scores are
      # dropped below.
      ids_PxR = jnp.pad(ids_N, (0, -ids_N.size % _CLASSES)).reshape(-1, _CLASSES)

      def of_chunk(ids_R: Int[jax.Array, " R"]) -> Float[jax.Array, "B R"]:
        classes = learner.text_features(params, frozen, ids_R, features_BxE)
        return jnp.einsum(
          "be,rbe->br",
          unit_BxE,
          normalize(classes.features),
          precision=jax.lax.Precision.HIGHEST,
        )

      scores_PxBxR = jax.lax.map(of_chunk, ids_PxR)
      scores_BxPxR = jnp.moveaxis(scores_PxBxR, 0, 1)
      scores_BxN = scores_BxPxR.reshape(features_BxE.shape[0], -1)
      return scores_BxN[:, : ids_N.size]

    def cosines_in_parts(
      params: Any,
      frozen: Frozen,
      ids_N: Int[jax.Array, " N"],
      features_BxE: Float[jax.Array, "B E"],
    ) -> Float[jax.Array, "B N"]:
      def of_image(feature_E: Float[jax.Array, " E"]) -> Float[jax.Array, " N"]:
        return cosines_of_pairs(params, frozen, ids_N, feature_E[None])[0]

      return jax.lax.map(of_image, features_BxE, batch_size=_IMAGES_WITH_CLASSES)

    def ranks_of_pairs(
      params: Any,
      frozen: Frozen,
      ids_N: Int[jax.Array, " N"],
      rows: tuple[Float[jax.Array, "B E"], Int[jax.Array, " B"]],
    ) -> Int[jax.Array, " B"]:
      features_BxE, labels_B = rows
      return ranks(cosines_of_pairs(params, frozen, ids_N, features_BxE), labels_B)

    # (params, frozen, images [B,S,S,3]) -> unit features [B,E], for a learner that
    # encodes images.
    self.images = map_rows(mesh, of_images, n_replicated=2, gather=False)
    # (params, frozen, ids [R]) -> unit features [R,E], equal for all images.
    self.classes = map_rows(mesh, of_classes, n_replicated=2)
    # (params, frozen, ids [N], features [B,E]) -> cosines [B,N], with class features
    # for each image.
    self.cosines = map_rows(mesh, cosines_in_parts, n_replicated=3)
    # (params, frozen, ids [N], (features [B,E], labels [B])) -> ranks [B], with class
    # features for each image.
    self.ranks = map_rows(mesh, ranks_of_pairs, n_replicated=3)


def learner_accuracy(
  encoder: Encoder, learner: Learner, per_image: bool, data: Data
) -> Callable[[Any, Frozen, SplitFeatures, Source], Accuracy]:
  """Returns a function that computes the accuracy of any parameters on any split.

  It compiles only once. It takes parameters on the mesh, frozen arrays with the split's
  classes, features of the split, and the split's images, which are read only if the
  learner encodes images.

  Args:
    encoder: the CLIP.
    learner: the learner, which has no token budget.
    per_image: whether the learner's class features depend on the image.
    data: threads that read images, and how many may be unreadable.
  """
  mesh = encoder.mesh
  compiled = CompiledLearner(learner, mesh)

  def ranks_of_images(
    params: Any,
    frozen: Frozen,
    split: SplitFeatures,
    source: Source,
    classes_NxE: np.ndarray,
  ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Reads the images again, and returns their ranks and labels.

    Images that can't be read any more are dropped.
    """
    skipped = SkippedImages(source, data.max_corrupt)
    replicated_NxE = replicate(classes_NxE, mesh)
    batches = image_batches(
      encoder,
      source,
      skipped,
      _IMAGES,
      data.threads,
      "features of images",
      split.indices,
    )

    def ranked() -> Iterator[tuple[jax.Array, int]]:
      for batch in batches:
        features_BxE = compiled.images(params, frozen, batch.images)
        rank_B = rank_rows(mesh)(replicated_NxE, (features_BxE, batch.labels))
        yield rank_B, batch.n_images

    # Drop the padding at the end of each batch.
    rank_n = np.concatenate(
      [rank_B[:n_images] for rank_B, n_images in fetched(ranked())]
    )
    skipped.gather()
    is_read_n = ~np.isin(split.indices, list(skipped.reasons))
    return rank_n[is_read_n], split.labels[is_read_n]

  def ranks_with_classes(
    params: Any, frozen: Frozen, split: SplitFeatures, ids_N: np.ndarray
  ) -> Int[np.ndarray, " n"]:
    """Ranks of images that have class features of their own, a few images at a time."""
    of_rows = functools.partial(compiled.ranks, params, frozen, ids_N)
    starts = range(0, len(split.labels), _IMAGES_WITH_CLASSES)
    parts = []
    for start in steps_of(starts, "scoring", "parts"):
      part = slice(start, start + _IMAGES_WITH_CLASSES)
      rows = (split.features[part], split.labels[part].astype(np.int32))
      parts.append(encoder.in_chunks(of_rows, rows, "features"))
    return np.concatenate(parts)

  def accuracy(
    params: Any, frozen: Frozen, split: SplitFeatures, source: Source
  ) -> Accuracy:
    ids_N = np.arange(len(split.names), dtype=np.int32)
    if per_image:
      rank_n = ranks_with_classes(params, frozen, split, ids_N)
      return accuracy_of_ranks(rank_n, ids_N.size, labels_B=split.labels)
    of_ids = functools.partial(compiled.classes, params, frozen)
    classes_NxE = encoder.in_chunks(of_ids, ids_N, "features")
    if not learner.learns_images:
      return topk_accuracy(split.features, classes_NxE, split.labels, mesh=mesh)
    rank_n, labels_n = ranks_of_images(params, frozen, split, source, classes_NxE)
    return accuracy_of_ranks(rank_n, ids_N.size, labels_B=labels_n)

  return accuracy


def classifier_accuracy(classifier: Any, split: SplitFeatures) -> Accuracy:
  """Computes top-1 and top-5 of a classifier on features, in NumPy.

  An image with a score that is not finite counts as wrong for every k.

  Args:
    classifier: object with a method `scores`, from features [n,E] to scores [n,N].
    split: features of the images, their labels, and the names of the classes.
  """
  n_images = len(split.labels)
  n_classes = len(split.names)
  ranks_of_parts = []
  # Score in parts: the scores of all images at once may not fit into memory.
  for start in steps_of(range(0, n_images, _ROWS), "scoring", "parts"):
    part = slice(start, start + _ROWS)
    scores_nxN = classifier.scores(split.features[part])
    ranks_of_parts.append(ranks(scores_nxN, split.labels[part]))
  rank_n = np.concatenate(ranks_of_parts)
  return accuracy_of_ranks(rank_n, n_classes, labels_B=split.labels)
