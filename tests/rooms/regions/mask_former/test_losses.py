"""Losses of masks, and their matching, against HuggingFace's torch MaskFormerLoss
with SciPy."""

import functools

import jax
import numpy as np
import pytest
import torch
from transformers.models.maskformer import modeling_maskformer

from pomp_jax.rooms.regions.mask_former.losses import (
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
OTHERS = LossWeights(classes=2.0, focal=5.0, dice=3.0, no_object=0.4)


def random_predictions(seed=0):
  rng = np.random.default_rng(seed)
  classes = rng.normal(0, 2, (LAYERS, IMAGES, QUERIES, CLASSES + 1))
  masks = rng.normal(0, 2, (LAYERS, IMAGES, QUERIES, *SMALL))
  return Predictions(classes.astype(np.float32), masks.astype(np.float32))


def random_targets(counts=COUNTS, seed=1):
  """Real targets are first, last and in between; padding has random labels and
  masks."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(CLASSES, size=(IMAGES, TARGETS)).astype(np.int32)
  masks = rng.random((IMAGES, TARGETS, *FULL)) < 0.3
  return Targets(
    labels, masks, rng.permuted(np.arange(TARGETS) < counts[:, None], axis=1)
  )


matched = jax.jit(functools.partial(match, weights=WEIGHTS))


@functools.partial(jax.jit, static_argnums=2)
def losses_and_gradient(predictions, targets, weights=WEIGHTS):
  def loss(given):
    losses = mask_losses(given, targets, match(predictions, targets, weights), weights)
    return losses.loss, losses

  gradient, losses = jax.grad(loss, has_aux=True)(predictions)
  return losses, gradient


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
  own = [
    torch.tensor(row[valid])
    for row, valid in zip(targets.masks, targets.valid, strict=True)
  ]
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


@pytest.mark.parametrize("weights", [WEIGHTS, OTHERS])
@pytest.mark.parametrize("seed", range(3))
def test_losses_and_gradients_equal_torch(seed, weights):
  """Which they do only where each matching costs no more than SciPy's."""
  predictions, targets = random_predictions(seed), random_targets(seed=seed)
  expected, expected_gradient = torch_losses(predictions, targets, weights)
  losses, gradient = losses_and_gradient(predictions, targets, weights)
  np.testing.assert_allclose(losses[:4], expected, rtol=2e-6)
  for ours, theirs in zip(gradient, expected_gradient, strict=True):
    np.testing.assert_allclose(
      ours, theirs, rtol=1e-4, atol=1e-7 * np.abs(theirs).max() + 1e-9
    )


def test_accuracy_is_that_of_the_last_layers_matched_queries():
  predictions, targets = random_predictions(), random_targets()
  queries = np.asarray(matched(predictions, targets))[-1]
  # Padding takes no query of a target.
  assert all(len(set(own)) == TARGETS for own in queries.tolist())
  best = np.take_along_axis(predictions.classes[-1].argmax(-1), queries, axis=1)
  right = (best == targets.labels)[targets.valid].mean()
  losses, _ = losses_and_gradient(predictions, targets)
  np.testing.assert_allclose(losses.accuracy, right)
  assert 0 < right < 1


def test_as_many_targets_as_queries():
  predictions, targets = random_predictions(), random_targets(np.full(IMAGES, TARGETS))
  first = lambda n: jax.tree.map(lambda rows: rows[:, :, :n], predictions)
  queries = np.asarray(matched(first(TARGETS), targets))
  assert (np.sort(queries, axis=-1) == np.arange(TARGETS)).all()


def test_without_a_target_every_query_learns_no_object():
  predictions, targets = random_predictions(), random_targets(np.zeros(IMAGES, int))
  losses, gradient = losses_and_gradient(predictions, targets)
  log_p = jax.nn.log_softmax(predictions.classes)[..., -1]
  np.testing.assert_allclose(losses.loss, -log_p.mean((1, 2)).sum(), rtol=1e-5)
  assert losses.focal_loss == losses.dice_loss == losses.accuracy == 0
  assert not gradient.masks.any()
  assert np.isfinite(gradient.classes).all()


def test_a_diverged_network_ends_and_its_loss_is_not_finite():
  predictions, targets = random_predictions(), random_targets()
  broken = jax.tree.map(lambda rows: np.full_like(rows, np.nan), predictions)
  assert not np.isfinite(losses_and_gradient(broken, targets)[0].loss)
