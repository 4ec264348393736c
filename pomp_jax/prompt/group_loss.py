"""The loss of one group of images over its draw, whatever the sampler.

Shapes: B images, K negatives drawn, C = B + K classes of a step, N classes, E embedding.
"""

import dataclasses
from typing import NamedTuple

import jax

from pomp_jax.annotations import Array, Bool, Float, Int32
from pomp_jax.prompt.loss import Ancestors, Contrast, Weights, local_contrast
from pomp_jax.prompt.sampling import (
  Draw,
  Sampling,
  SamplingArrays,
  rejected,
  weights_of_available,
  with_batch_positives,
)


@dataclasses.dataclass(frozen=True)
class ContrastSettings:
  """The numbers of the method.

  Attributes:
    k: K, 2..N; N is the full softmax.
    n_classes: N.
    correction: one of `contrast.CORRECTIONS`; or, traced, what `contrast.SCALES` has for it.
    logit_scale: what multiplies the cosine.
    sampling: how the negatives are chosen.
    ancestors_weight: of the loss over kinds of classes; 0: none.
  """

  k: int
  n_classes: int
  correction: str | jax.Array
  logit_scale: float
  sampling: Sampling = Sampling()
  ancestors_weight: float = 0.0


class Negatives(NamedTuple):
  """What a group's images are contrasted with; see `contrast.local_contrast`.

  Attributes:
    ids: the classes: those drawn, K; with the batch's own before them, B + K.
    available: which of them count; None: all.
    weights: None after the plain uniform draw.
    ancestors: None without a loss over kinds of classes.
  """

  ids: Int32[Array, " K"]
  available: Bool[Array, " K"] | None
  weights: Weights | None
  ancestors: Ancestors | None


def negatives_of(
  settings: ContrastSettings,
  arrays: SamplingArrays,
  draw: Draw,
  labels_B: Int32[Array, " B"],
  available_K: Bool[Array, " K"] | None = None,
) -> Negatives:
  """The negatives that a draw gives a group.

  Args:
    settings: the method's numbers.
    arrays: what the sampler knows of the classes.
    draw: from `sampling.draw_negatives`.
    labels_B: y.
    available_K: negatives whose features are there; all if None.
  """
  sampling, ids, weights, ancestors = settings.sampling, draw.ids, None, None
  if draw.log_weights is not None:
    log_weights = draw.log_weights
    if available_K is not None:
      log_weights = weights_of_available(log_weights, available_K)
    if sampling.batch_positives:
      ids, log_weights, available_K = with_batch_positives(labels_B, ids, log_weights, available_K)
    reject_BxK = rejected(
      sampling.exclude,
      labels_B,
      ids,
      bank_NxE=arrays.bank,
      threshold=sampling.exclude_threshold,
      kin_NxD=arrays.kin,
    )
    weights = Weights(log_weights, draw.own_log_weights, reject_BxK)
  if settings.ancestors_weight:
    ancestors = Ancestors(settings.ancestors_weight, arrays.levels[labels_B], arrays.levels[ids])
  return Negatives(ids, available_K, weights, ancestors)


def group_contrast(
  settings: ContrastSettings,
  negatives: Negatives,
  image_features_BxE: Float[Array, "B E"],
  positive_features_BxE: Float[Array, "B E"],
  class_features_CxE: Float[Array, "C E"] | Float[Array, "C B E"],
  labels_B: Int32[Array, " B"],
) -> Contrast:
  """Loss and accuracy of a group.

  Args:
    settings: the method's numbers.
    negatives: from `negatives_of`.
    image_features_BxE: f(x), any length.
    positive_features_BxE: g(t_y) of each image's own class.
    class_features_CxE: those of the images' classes, then those of the draw; [C,B,E] where they
      depend on the image.
    labels_B: y.
  """
  return local_contrast(
    image_features_BxE,
    positive_features_BxE,
    class_features_CxE[len(class_features_CxE) - negatives.ids.size :],
    labels_B,
    negatives.ids,
    logit_scale=settings.logit_scale,
    n_classes=settings.n_classes,
    correction=settings.correction,
    available_K=negatives.available,
    weights=negatives.weights,
    ancestors=negatives.ancestors,
  )
