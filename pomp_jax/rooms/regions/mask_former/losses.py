"""Losses of MaskFormer: each target mask is matched with one query (Cheng et al.,
NeurIPS 2021).

Each decoder layer has a matching of its own. Losses are divided by counts of the whole
batch. Shapes: J decoder layers, B images, Q queries, T target masks of an image with
padding, N classes, the last of which is "no object", H, W sides of a target mask, h, w
sides of a predicted mask, P pixels of a mask.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pomp_jax.array_types import Array, Bool, Float, Int32

# Focal loss (Lin et al., 2017).
_ALPHA = 0.25  # weight of the pixels inside a mask
_GAMMA = 2  # exponent
# Bound on a cost. It also replaces NaN, since the matching might never end with NaN.
_MAX_COST = 1e10


@dataclasses.dataclass(frozen=True)
class LossWeights:
  """Weights of the terms of the loss; the defaults are MaskFormer's."""

  classes: float = 1.0  # weight of the cross-entropy
  focal: float = 20.0
  dice: float = 1.0
  no_object: float = 0.1  # weight in the cross-entropy of a query without a target


class Predictions(NamedTuple):
  """Logits of the decoder layers; the last column of `classes` is "no object"."""

  classes: Float[Array, "J B Q _"]
  masks: Float[Array, "J B Q h w"]


class Targets(NamedTuple):
  """Target masks, some of which are padding."""

  labels: Int32[Array, "B T"]
  masks: Bool[Array, "B T H W"]
  valid: Bool[Array, "B T"]  # False: padding


class MaskLosses(NamedTuple):
  """Losses of a batch: `loss` is summed over all layers, the others are the last's."""

  loss: Float[Array, ""]  # weighted sum of the three losses
  class_loss: Float[Array, ""]  # cross-entropy, nats
  focal_loss: Float[Array, ""]
  dice_loss: Float[Array, ""]
  # share of the target masks whose query has the right class
  accuracy: Float[Array, ""]


def mask_losses(
  predictions: Predictions,
  targets: Targets,
  queries_JxBxT: Int32[Array, "J B T"],
  weights: LossWeights,
) -> MaskLosses:
  """Sums the losses of matched queries and targets over all layers.

  A pixel has the predicted probability p and the target t, 0 or 1.

  - classes: weighted mean of the queries' cross-entropies. The class of a query is that
    of its target, or "no object" without a target.
  - focal: mean over targets and pixels of -a_t (1 - p_t)^2 log p_t, where p_t is p and
    a_t 0.25 inside the target; outside p_t is 1 - p and a_t 0.75.
  - dice: mean over targets of 1 - (2 sum p t + 1) / (sum p + sum t + 1), with sums over
    the pixels.

  Predicted masks are enlarged to the size of the targets (bilinear). Layers are
  rematerialised in the backward pass.

  Args:
    predictions: logits of all layers.
    targets: target masks and their classes.
    queries_JxBxT: query of each target in each layer, from `match`.
    weights: weights of the terms.
  """
  losses_of_layer = jax.checkpoint(functools.partial(_losses_of_layer, weights=weights))

  def layer_losses(layer: tuple[Predictions, jax.Array]) -> MaskLosses:
    predictions_of_layer, queries_BxT = layer
    return losses_of_layer(predictions_of_layer, queries_BxT, targets)

  layers = jax.lax.map(layer_losses, (predictions, queries_JxBxT))
  last = jax.tree.map(lambda values_J: values_J[-1], layers)
  return last._replace(loss=jnp.sum(layers.loss))


def match(
  predictions: Predictions, targets: Targets, weights: LossWeights
) -> Int32[Array, "J B T"]:
  """Finds the query of each target: the assignment of the lowest cost.

  A query is assigned to one target of an image at most. The cost of a query for a
  target is the weighted sum of the three losses, with -p instead of -log p of the
  class, and with target masks reduced to h x w pixels (nearest). A padding mask has the
  same cost for all queries, and there are at least as many queries as masks, so padding
  never takes a query that a real mask needs. No gradient flows through the matching.

  Args:
    predictions: logits of all layers.
    targets: target masks and their classes.
    weights: weights of the three costs.
  """

  def of_layer(layer: Predictions) -> jax.Array:
    cost_BxQxT = _costs(layer, targets, weights)
    cost_BxQxT = jnp.nan_to_num(
      cost_BxQxT, nan=_MAX_COST, posinf=_MAX_COST, neginf=-_MAX_COST
    )
    cost_BxQxT = jnp.where(targets.valid[:, None], cost_BxQxT, 0.0)
    queries, matched_targets = jax.vmap(optax.assignment.hungarian_algorithm)(
      cost_BxQxT
    )
    # Sort the pairs by target.
    order = jnp.argsort(matched_targets, axis=1)
    return jnp.take_along_axis(queries, order, axis=1).astype(jnp.int32)

  return jax.vmap(of_layer)(jax.lax.stop_gradient(predictions))


def _costs(
  layer: Predictions, targets: Targets, weights: LossWeights
) -> Float[Array, "B Q T"]:
  """Cost of each query for each target under one layer."""
  probability_BxQxN = jax.nn.softmax(layer.classes)
  p_class_BxQxT = jnp.take_along_axis(
    probability_BxQxN, targets.labels[:, None], axis=2
  )
  # Reduce target masks to the size of predicted masks, as
  # F.interpolate(mode="nearest") does.
  masks = targets.masks
  for axis in (-2, -1):
    size = layer.masks.shape[axis]
    full_size = masks.shape[axis]
    masks = jnp.take(masks, jnp.arange(size) * full_size // size, axis=axis)
  logits_BxQxP = _pixels(layer.masks)
  masks_BxTxP = _pixels(masks)
  inside, outside = _focal_terms(logits_BxQxP)
  # Sum of inside * t + outside * (1 - t) over the pixels.
  focal_sums_BxQxT = _products(inside - outside, masks_BxTxP) + jnp.sum(
    outside, axis=-1, keepdims=True
  )
  focal_BxQxT = focal_sums_BxQxT / logits_BxQxP.shape[-1]
  p_BxQxP = jax.nn.sigmoid(logits_BxQxP)
  areas_BxQxT = (
    jnp.sum(p_BxQxP, axis=-1)[:, :, None] + jnp.sum(masks_BxTxP, axis=-1)[:, None]
  )
  overlap_BxQxT = _products(p_BxQxP, masks_BxTxP)
  dice_BxQxT = 1 - (2 * overlap_BxQxT + 1) / (areas_BxQxT + 1)
  return (
    weights.focal * focal_BxQxT
    + weights.dice * dice_BxQxT
    - weights.classes * p_class_BxQxT
  )


def _losses_of_layer(
  layer: Predictions, queries_BxT: jax.Array, targets: Targets, *, weights: LossWeights
) -> MaskLosses:
  """Losses of one layer; the field `loss` is their weighted sum."""
  valid_BxT = targets.valid
  n_valid = jnp.sum(valid_BxT, dtype=jnp.float32)
  n_masks = jnp.maximum(n_valid, 1.0)

  def mean_of_targets(values_BxT: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(valid_BxT, values_BxT, 0.0)) / n_masks

  log_p_BxQxN = jax.nn.log_softmax(layer.classes)
  matched_log_p_BxTxN = jnp.take_along_axis(log_p_BxQxN, queries_BxT[..., None], axis=1)
  class_loss = _class_loss(log_p_BxQxN, matched_log_p_BxTxN, targets, n_valid, weights)
  is_right_BxT = jnp.argmax(matched_log_p_BxTxN, axis=2) == targets.labels

  masks_BxTxhxw = jnp.take_along_axis(layer.masks, queries_BxT[..., None, None], axis=1)
  # Enlarge as torch's F.interpolate(mode="bilinear", align_corners=False) does.
  enlarged_BxTxHxW = jax.image.resize(
    masks_BxTxhxw.astype(jnp.float32),
    targets.masks.shape,
    "bilinear",
    antialias=False,
  )
  logits_BxTxP = _pixels(enlarged_BxTxHxW)
  t_BxTxP = _pixels(targets.masks)
  inside, outside = _focal_terms(logits_BxTxP)
  focal_BxT = jnp.mean(t_BxTxP * inside + (1 - t_BxTxP) * outside, axis=-1)
  p_BxTxP = jax.nn.sigmoid(logits_BxTxP)
  overlap_BxT = jnp.sum(p_BxTxP * t_BxTxP, axis=-1)
  areas_BxT = jnp.sum(p_BxTxP, axis=-1) + jnp.sum(t_BxTxP, axis=-1)
  dice_BxT = 1 - (2 * overlap_BxT + 1) / (areas_BxT + 1)

  focal = mean_of_targets(focal_BxT)
  dice = mean_of_targets(dice_BxT)
  return MaskLosses(
    loss=weights.classes * class_loss + weights.focal * focal + weights.dice * dice,
    class_loss=class_loss,
    focal_loss=focal,
    dice_loss=dice,
    accuracy=mean_of_targets(is_right_BxT),
  )


def _class_loss(
  log_p_BxQxN: jax.Array,
  matched_log_p_BxTxN: jax.Array,
  targets: Targets,
  n_valid: jax.Array,
  weights: LossWeights,
) -> jax.Array:
  """Weighted mean of the queries' cross-entropies.

  First all queries are summed up as "no object". For each query with a target a
  correction then replaces this term by that of the target's class.
  """
  log_p_class_BxTx1 = jnp.take_along_axis(
    matched_log_p_BxTxN, targets.labels[..., None], axis=2
  )
  log_p_class_BxT = log_p_class_BxTx1[..., 0]
  log_p_none_BxT = matched_log_p_BxTxN[..., -1]
  corrections_BxT = jnp.where(
    targets.valid, log_p_class_BxT - weights.no_object * log_p_none_BxT, 0.0
  )
  log_p_none_BxQ = log_p_BxQxN[..., -1]
  loss = -(jnp.sum(corrections_BxT) + weights.no_object * jnp.sum(log_p_none_BxQ))
  sum_of_weights = n_valid + weights.no_object * (log_p_none_BxQ.size - n_valid)
  return loss / sum_of_weights


def _pixels(masks: jax.Array) -> jax.Array:
  """[..,H,W] -> float32 [..,H*W]."""
  return masks.reshape(*masks.shape[:-2], -1).astype(jnp.float32)


def _focal_terms(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Focal loss of each pixel if it is inside the target, and if it is outside."""
  p = jax.nn.sigmoid(logits)
  inside = _ALPHA * (1 - p) ** _GAMMA * jax.nn.softplus(-logits)
  outside = (1 - _ALPHA) * p**_GAMMA * jax.nn.softplus(logits)
  return inside, outside


def _products(rows_BxQxP: jax.Array, targets_BxTxP: jax.Array) -> jax.Array:
  precision = jax.lax.Precision.HIGHEST
  return jnp.einsum("bqp,btp->bqt", rows_BxQxP, targets_BxTxP, precision=precision)
