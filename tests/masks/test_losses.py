"""Losses of masks against HuggingFace's torch MaskFormerLoss, and the matching against SciPy."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
import torch
from transformers.models.maskformer import modeling_maskformer

from pomp_jax.masks.losses import (
  LossWeights,
  Predictions,
  Targets,
  mask_losses,
  match,
)

LAYERS, IMAGES, QUERIES, TARGETS, CLASSES = 3, 4, 7, 5, 6
SMALL, FULL = (8, 6), (32, 24)
# Real targets of each image: all, some, and none.
COUNTS = np.array([5, 2, 0, 3])
WEIGHTS = LossWeights()


def random_predictions(seed=0):
  rng = np.random.default_rng(seed)
  classes = rng.normal(0, 2, (LAYERS, IMAGES, QUERIES, CLASSES + 1))
  masks = rng.normal(0, 2, (LAYERS, IMAGES, QUERIES, *SMALL))
  return Predictions(classes.astype(np.float32), masks.astype(np.float32))


def random_targets(counts=COUNTS, seed=1):
  rng = np.random.default_rng(seed)
  labels = rng.integers(CLASSES, size=(IMAGES, TARGETS)).astype(np.int32)
  masks = rng.random((IMAGES, TARGETS, *FULL)) < 0.3
  return Targets(labels, masks, np.arange(TARGETS) < counts[:, None])


@functools.partial(jax.jit, static_argnums=2)
def losses_of(predictions, targets, weights=WEIGHTS):
  return mask_losses(predictions, targets, match(predictions, targets, weights), weights)


@functools.partial(jax.jit, static_argnums=2)
def gradient_of(predictions, targets, weights=WEIGHTS):
  return jax.grad(lambda given: losses_of(given, targets, weights).total)(predictions)


def torch_losses(predictions, targets, weights=WEIGHTS):
  """Total and the three losses of the last layer, and the gradients."""
  classes = torch.tensor(predictions.classes, requires_grad=True)
  masks = torch.tensor(predictions.masks, requires_grad=True)
  matcher = modeling_maskformer.MaskFormerHungarianMatcher(
    weights.classes, weights.focal, weights.dice
  )
  loss = modeling_maskformer.MaskFormerLoss(CLASSES, matcher, {}, weights.no_object)
  auxiliary = [
    {"masks_queries_logits": masks[layer], "class_queries_logits": classes[layer]}
    for layer in range(LAYERS - 1)
  ]
  own = [torch.tensor(row[valid]) for row, valid in zip(targets.masks, targets.valid, strict=True)]
  labels = [
    torch.tensor(row[valid], dtype=torch.int64)
    for row, valid in zip(targets.labels, targets.valid, strict=True)
  ]
  found = loss(masks[-1], classes[-1], [m.float() for m in own], labels, auxiliary)
  factors = {"cross": weights.classes, "mask": weights.focal, "dice": weights.dice}
  total = sum(factors[name.split("_")[1]] * value for name, value in found.items())
  total.backward()
  names = ("loss_cross_entropy", "loss_mask", "loss_dice")
  last = [found[name].item() for name in names]
  return [total.item(), *last], Predictions(classes.grad.numpy(), masks.grad.numpy())


@pytest.mark.parametrize("weights", [WEIGHTS, LossWeights(2.0, 5.0, 3.0, 0.4)])
def test_losses_and_gradients_equal_torch(weights):
  predictions, targets = random_predictions(), random_targets()
  expected, expected_gradient = torch_losses(predictions, targets, weights)
  np.testing.assert_allclose(losses_of(predictions, targets, weights)[:4], expected, rtol=2e-6)
  gradient = gradient_of(predictions, targets, weights)
  for ours, theirs in zip(gradient, expected_gradient, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7 * np.abs(theirs).max() + 1e-9)


def cost_of(classes, masks, targets, image):
  """Costs [Q,T] of the real targets of an image, by HuggingFace's functions."""
  valid = targets.valid[image]
  logits = torch.tensor(masks[image]).flatten(1)
  masks = torch.tensor(targets.masks[image, valid]).float()[:, None]
  masks = torch.nn.functional.interpolate(masks, SMALL, mode="nearest")[:, 0].flatten(1)
  p = torch.tensor(classes[image]).softmax(-1)[:, targets.labels[image, valid]]
  focal = modeling_maskformer.pair_wise_sigmoid_focal_loss(logits, masks)
  return (20 * focal + modeling_maskformer.pair_wise_dice_loss(logits, masks) - p).numpy()


@pytest.mark.parametrize("seed", range(4))
def test_matching_costs_what_scipys_costs_and_padding_takes_no_query(seed):
  """Real targets first, last and in between: padding is anywhere."""
  predictions = random_predictions(seed)
  targets = random_targets(seed=seed)
  shuffled = np.random.default_rng(seed).permuted(targets.valid, axis=1)
  targets = targets._replace(valid=shuffled)
  queries_JxBxT = np.asarray(jax.jit(match)(predictions, targets))
  for j, image in np.ndindex(LAYERS, IMAGES):
    queries, valid = queries_JxBxT[j], targets.valid[image]
    assert len(set(queries[image].tolist())) == TARGETS
    cost = cost_of(predictions.classes[j], predictions.masks[j], targets, image)
    best = cost[linear_sum_assignment(cost)].sum()
    own = cost[queries[image, valid], np.arange(valid.sum())].sum()
    np.testing.assert_allclose(own, best, rtol=1e-5, atol=1e-6)


def test_as_many_targets_as_queries():
  predictions, targets = random_predictions(), random_targets(np.full(IMAGES, TARGETS))
  fewer = jax.tree.map(lambda rows: rows[:, :, :TARGETS], predictions)
  queries = np.asarray(match(fewer, targets))
  assert (np.sort(queries, axis=-1) == np.arange(TARGETS)).all()


def test_padding_changes_nothing():
  """Labels and masks of padding, and its number."""
  predictions, targets = random_predictions(), random_targets()
  other = random_targets(seed=2)
  changed = Targets(
    np.where(targets.valid, targets.labels, other.labels),
    np.where(targets.valid[..., None, None], targets.masks, other.masks),
    targets.valid,
  )
  padded = jax.tree.map(lambda a, b: np.concatenate([a, b[:, :2]], axis=1), targets, other)
  padded.valid[:, TARGETS:] = False
  expected = losses_of(predictions, targets)
  for same in (changed, padded):
    np.testing.assert_allclose(losses_of(predictions, same), expected, rtol=1e-6)


def test_without_a_target_every_query_learns_no_object():
  predictions, targets = random_predictions(), random_targets(np.zeros(IMAGES, int))
  losses = losses_of(predictions, targets)
  log_p = jax.nn.log_softmax(predictions.classes)[..., -1]
  np.testing.assert_allclose(losses.total, -log_p.mean((1, 2)).sum(), rtol=1e-5)
  assert losses.focal == losses.dice == losses.accuracy == 0
  gradient = gradient_of(predictions, targets)
  assert not gradient.masks.any()
  assert np.isfinite(gradient.classes).all()


def test_accuracy_is_that_of_the_last_layers_matched_queries():
  predictions, targets = random_predictions(), random_targets()
  queries = np.asarray(match(predictions, targets))[-1]
  right = 0
  for image, valid in enumerate(targets.valid):
    for target in np.flatnonzero(valid):
      best = predictions.classes[-1, image, queries[image, target]].argmax()
      right += best == targets.labels[image, target]
  np.testing.assert_allclose(losses_of(predictions, targets).accuracy, right / COUNTS.sum())


def test_a_diverged_network_ends_and_its_loss_is_not_finite():
  predictions, targets = random_predictions(), random_targets()
  broken = jax.tree.map(lambda rows: np.full_like(rows, np.nan), predictions)
  assert not np.isfinite(losses_of(broken, targets).total)


def test_more_targets_than_queries_is_an_error():
  predictions, targets = random_predictions(), random_targets()
  fewer = jax.tree.map(lambda rows: rows[:, :, : TARGETS - 1], predictions)
  with pytest.raises(ValueError, match="at most 4"):
    match(fewer, targets)


def test_defaults_are_the_published_weights():
  assert dataclasses.astuple(LossWeights()) == (1, 20, 1, 0.1)
