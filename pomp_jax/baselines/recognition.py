"""Accuracy of the parameters of any learner, over any classes.

Shapes: n images, N classes, B images of a shard, R classes of a chunk, E embedding.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.data.source import Source, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.files.terminal import steps_of
from pomp_jax.inference.evaluate import SplitFeatures
from pomp_jax.inference.metrics import Accuracy, accuracy_of_scores, topk_accuracy
from pomp_jax.prompt.learner import Frozen, ImageLearner, Learner
from pomp_jax.prompt.loss import normalize

# Classes in a chunk, for per-image class features.
_CLASSES = 256
# Images decoded at a time, and images with per-image class features scored at a time.
_IMAGES = 512
_IMAGES_WITH_CLASSES = 32


class Recognition:
  """A learner's forward functions, compiled once for all splits and parameters."""

  def __init__(self, encoder: Encoder, learner: Learner, *, per_image: bool):
    """Wraps the functions; compilation follows with the first call.

    Args:
      encoder: CLIP.
      learner: learner without a token budget.
      per_image: whether class features depend on the image.
    """
    self._learner, self._per_image = learner, per_image
    self._image_size = encoder.clip.image_size
    self._images = encoder.over_rows(self._image_features, 2)
    self._classes = encoder.over_rows(self._class_features, 2)
    self._scores = encoder.over_rows(self._scores_of_images, 3)

  def accuracy(self, params: Any, frozen: Frozen, split: SplitFeatures, source: Source) -> Accuracy:
    """Computes top-1 and top-5 over all classes of a split.

    Args:
      params: parameters of the learner, on the mesh.
      frozen: frozen arrays with the split's classes.
      split: image features of the frozen tower.
      source: images of the split, for learners with a prompted image tower.
    """
    features_nxE = split.features
    if isinstance(self._learner, ImageLearner):
      if isinstance(source, StoredImages):
        source = source.sized(self._image_size)
      starts = range(0, len(split.indices), _IMAGES)
      parts = [split.indices[start : start + _IMAGES] for start in starts]
      features_nxE = np.concatenate(
        [
          self._images(params, frozen, source.images(part))
          for part in steps_of(parts, "features of images", "batches")
        ]
      )
    ids_N = np.arange(len(split.names), dtype=np.int32)
    if not self._per_image:
      classes_NxE = self._classes(params, frozen, ids_N)
      return topk_accuracy(features_nxE, classes_NxE, split.labels)
    n_parts = -(-ids_N.size // _CLASSES)
    # The last chunk is padded with the first class.
    ids_PxR = np.pad(ids_N, (0, n_parts * _CLASSES - ids_N.size)).reshape(n_parts, _CLASSES)

    def scores(part):
      return self._scores(params, frozen, ids_PxR, features_nxE[part])[:, : ids_N.size]

    return accuracy_of_scores(scores, split.labels, chunk=_IMAGES_WITH_CLASSES)

  def _image_features(self, params, frozen, images):
    return normalize(self._learner.image_features(params, frozen, images))

  def _class_features(self, params, frozen, ids_R):
    no_images = jnp.zeros((0, 1))
    return normalize(self._learner.text_features(params, frozen, ids_R, no_images).features)

  def _scores_of_images(self, params, frozen, ids_PxR, features_BxE):
    unit_BxE = normalize(features_BxE)

    def of_part(ids_R):
      classes = self._learner.text_features(params, frozen, ids_R, features_BxE)
      return jnp.einsum(
        "be,rbe->br", unit_BxE, normalize(classes.features), precision=jax.lax.Precision.HIGHEST
      )

    scores_PxBxR = jax.lax.map(of_part, ids_PxR)
    return jnp.moveaxis(scores_PxBxR, 0, 1).reshape(features_BxE.shape[0], -1)


def classifier_accuracy(classifier: Any, split: SplitFeatures) -> Accuracy:
  """Top-1 and top-5 of a classifier with a method `scores`: features [n,E] -> [n,N]."""
  return accuracy_of_scores(lambda part: classifier.scores(split.features[part]), split.labels)
