"""Local contrast and its correction against torch; `test_step_mesh` has the path to
it."""

import functools
import math

import jax
import numpy as np
import pytest
import torch

from pomp_jax.prompt.loss import (
  CORRECTIONS,
  ContrastSettings,
  correction_margin,
  kept_with_margin,
  local_contrast,
)
from pomp_jax.prompt.sampling.samplers import Negatives
from tests.support.checks import assert_close
from tests.support.oracles import torch_losses, unit

pytestmark = pytest.mark.usefixtures("rows_of_studies")

N_CLASSES = 12
# The corrections that a margin says all of.
PLAIN = ("log", "log10", "none")
# Class 3 twice; 3 and 7 are drawn as well, so that images 0, 1 and 2 reject one each.
LABELS = np.array([3, 3, 7, 0], np.int32)
DRAWN = np.array([5, 3, 11, 7, 1], np.int32)
NEGATIVES = Negatives(DRAWN)


@functools.partial(
  jax.jit, static_argnames=("scale", "n_classes", "correction", "ancestors")
)
def _evaluate(
  features,
  labels,
  negatives,
  *,
  scale=10.0,
  n_classes=N_CLASSES,
  correction,
  ancestors=0.0,
):
  """The contrast, and the gradients of its loss; in float32."""
  settings = ContrastSettings(
    2, n_classes, correction, scale, ancestors_weight=ancestors
  )

  def loss(features):
    contrast = local_contrast(settings, *features, labels, negatives)
    return contrast.loss, contrast

  (_, contrast), gradients = jax.value_and_grad(loss, has_aux=True)(features)
  return contrast, gradients


def _features(n_images=4, n_negatives=5, width=6, seed=0):
  """Float32 numbers held in float64, so that both sides start from the same."""
  rng = np.random.default_rng(seed)
  shapes = [(n_images, width), (n_images, width), (n_negatives, width)]
  return [
    rng.normal(size=shape).astype(np.float32).astype(np.float64) for shape in shapes
  ]


def _plain(features, labels=LABELS, drawn=DRAWN, *, scale=10.0, correction):
  """Losses and hits of the images, and the gradients of the mean loss."""
  leaves = [torch.tensor(rows, requires_grad=True) for rows in features]
  losses, hits = torch_losses(
    *leaves, labels, drawn, scale=scale, n_classes=N_CLASSES, correction=correction
  )
  losses.mean().backward()
  return losses.detach().numpy(), hits, [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("correction", PLAIN)
def test_a_factor_that_is_traced_is_the_correction_of_its_name(correction):
  """An ablation trains several as lanes of one program: loss and gradient, also with
  weights."""

  def loss(features, factor, negatives, **more):
    settings = ContrastSettings(2, N_CLASSES, factor, 10.0, **more)
    return local_contrast(
      settings, *features, jax.numpy.asarray(LABELS), negatives
    ).loss

  features, rng = _features(), np.random.default_rng(1)
  weighted = NEGATIVES._replace(
    log_weights=rng.normal(size=5), own_log_weights=rng.normal(size=4)
  )
  for negatives in (NEGATIVES, weighted):
    negatives = jax.tree.map(jax.numpy.asarray, negatives)
    for kind in ("softmax", "sigmoid"):
      with_factor = functools.partial(loss, negatives=negatives, loss=kind)
      with_name = functools.partial(with_factor, factor=correction)
      found = jax.jit(jax.value_and_grad(with_factor))(
        features, CORRECTIONS[correction].scale
      )
      expected = jax.jit(jax.value_and_grad(with_name))(features)
      jax.tree.map(lambda one, other: assert_close(one, other, 1e-5), found, expected)


@pytest.mark.parametrize("correction", PLAIN)
@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_loss_accuracy_and_gradients_equal_torch(correction, scale):
  features = _features()
  # Image 0 is close to its class: without it no image would be right.
  features[1][0] = features[0][0] + features[1][0] / 4
  contrast, gradients = _evaluate(
    features, LABELS, NEGATIVES, scale=scale, correction=correction
  )
  losses, hits, expected = _plain(features, scale=scale, correction=correction)
  assert_close(contrast.loss, losses.mean())
  assert contrast.accuracy == hits.mean()
  assert 0 < hits.mean() < 1
  for found, plain in zip(gradients, expected, strict=True):
    assert_close(found, plain)


def test_an_image_as_near_to_another_class_is_not_right():
  """One-hot features: exact ties of all images, image 1 with a negative that is its
  own class."""
  images, positives, negatives = np.eye(6)[:4], np.eye(6)[:4], np.eye(6)[:5]
  contrast, _ = _evaluate(
    [images, positives, negatives], LABELS, NEGATIVES, correction="log"
  )
  assert contrast.accuracy == 1 / 4


@pytest.mark.parametrize(
  "correction, factor", [("log", 1.0), ("log10", 1 / math.log(10)), ("none", 0)]
)
def test_the_margin_is_the_log_of_all_negatives_for_each_that_is_kept(
  correction, factor
):
  expected = [0.0, factor * math.log(11 / 1), factor * math.log(11 / 5)]
  n_kept = jax.numpy.array([0, 1, 5])
  assert_close(correction_margin(n_kept, N_CLASSES, correction), np.array(expected))


@pytest.mark.parametrize("correction", ["log", "none"])
def test_the_sigmoid_loss_equals_torch(correction):
  features, bias, scale = _features(), -3.0, 10.0
  settings = ContrastSettings(
    2, N_CLASSES, correction, scale, loss="sigmoid", logit_bias=bias
  )

  def loss(features):
    labels, negatives = jax.tree.map(jax.numpy.asarray, (LABELS, NEGATIVES))
    return local_contrast(settings, *features, labels, negatives).loss

  found, gradients = jax.jit(jax.value_and_grad(loss))(
    [np.float32(rows) for rows in features]
  )
  leaves = [torch.tensor(rows, requires_grad=True) for rows in features]
  image, positive, negative = (torch.nn.functional.normalize(leaf) for leaf in leaves)
  total = 0
  for i, label in enumerate(LABELS):
    kept = DRAWN != label
    weight = (N_CLASSES - 1) / kept.sum() if correction == "log" else 1.0
    logits = (
      scale * torch.cat([image[i] @ positive[i][:, None], negative[kept] @ image[i]])
      + bias
    )
    signs = torch.tensor([1.0] + [-1.0] * int(kept.sum()))
    weights = torch.tensor([1.0] + [weight] * int(kept.sum()))
    total -= (weights * torch.nn.functional.logsigmoid(signs * logits)).sum() / len(
      LABELS
    )
  total.backward()
  assert_close(found, total.detach().numpy())
  for gradient, leaf in zip(gradients, leaves, strict=True):
    assert_close(gradient, leaf.grad)


@pytest.mark.parametrize(
  "kind, torch_loss",
  {"l1": torch.nn.functional.l1_loss, "l2": torch.nn.MSELoss()}.items(),
)
def test_distances_equal_torch(kind, torch_loss):
  """ProText's two losses, as `forward_backward` in trainers/protext.py of its code
  calls them."""
  features = _features()
  settings = ContrastSettings(2, N_CLASSES, "log", 10.0, loss=kind)
  loss = lambda features: (
    local_contrast(
      settings, *features, *jax.tree.map(jax.numpy.asarray, (LABELS, NEGATIVES))
    ).loss
  )
  found, gradients = jax.jit(jax.value_and_grad(loss))(
    [np.float32(rows) for rows in features]
  )
  leaves = [torch.tensor(rows, requires_grad=True) for rows in features]
  image, positive = (torch.nn.functional.normalize(leaf) for leaf in leaves[:2])
  expected = torch_loss(positive, image)
  expected.backward()
  assert_close(found, expected.detach().numpy())
  assert_close(gradients[1], leaves[1].grad)
  assert not gradients[2].any()


@pytest.mark.parametrize("correction", PLAIN)
def test_an_image_with_no_negative_left_adds_nothing(correction):
  features = _features(n_images=3, n_negatives=1)
  drawn = np.array([4], np.int32)
  labels = np.array([4] * 3, np.int32)
  settings = {"scale": 2.0, "correction": correction}
  contrast, gradients = _evaluate(features, labels, Negatives(drawn), **settings)
  assert contrast.loss == 0
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)

  # Beside another image it still counts in the mean, and only the other one moves
  # anything.
  labels = np.array([4, 2, 4], np.int32)
  contrast, gradients = _evaluate(features, labels, Negatives(drawn), **settings)
  losses, _, _ = _plain(features, labels, drawn, **settings)
  assert losses[0] == losses[2] == 0
  assert losses[1] > 0
  assert_close(contrast.loss, losses.sum() / 3)
  for gradient in gradients[:2]:
    np.testing.assert_array_equal(gradient[::2], 0)
    assert np.abs(gradient[1]).sum() > 0
  assert np.isfinite(gradients[2]).all()


def test_the_refined_loss_has_the_gradient_of_log():
  """And its value is (1 - P) log((1 - P) / P), P held fixed in the gradient."""
  features = _features()
  plain, gradients = _evaluate(features, LABELS, NEGATIVES, correction="log")
  refined, refined_gradients = _evaluate(
    features, LABELS, NEGATIVES, correction="refined"
  )
  for found, expected in zip(refined_gradients, gradients, strict=True):
    assert_close(found, expected)
  losses, _, _ = _plain(features, correction="log")
  p = np.exp(-losses)
  assert_close(refined.loss, np.mean((1 - p) * np.log((1 - p) / p)))
  assert refined.loss != plain.loss
  # Without any negative left it is nothing, and moves nothing.
  lonely = _features(n_images=1, n_negatives=1)
  four = np.array([4], np.int32)
  empty, gradients = _evaluate(lonely, four, Negatives(four), correction="refined")
  assert empty.loss == 0
  assert all(np.all(np.asarray(gradient) == 0) for gradient in gradients)


def test_correcting_the_positive_undoes_the_correction_of_a_uniform_draw():
  features = _features()
  classic, _ = _evaluate(features, LABELS, NEGATIVES, correction="logq")
  assert_close(classic.loss, _plain(features, correction="none")[0].mean())


# Class 9 has no kind on the second level, nor has class 11, which is drawn.
KIND_LABELS = np.array([3, 7, 9, 0], np.int32)
WEIGHTS = np.array([0.3, 2.0, 1.2, 0.0, 0.7])
OWN = np.array([0.5, 0.5, 1.0, 0.1])
REJECTED = np.array(
  [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool
)
KIND_OF = np.array(
  [[c // 4, c // 2 if c < 8 else -1] for c in range(N_CLASSES)], np.int32
)


@pytest.mark.parametrize("correction", [*PLAIN, "logq"])
def test_weights_rejections_and_ancestors_equal_plain_numpy(correction):
  features = _features()
  negatives = Negatives(
    DRAWN,
    log_weights=WEIGHTS,
    own_log_weights=OWN,
    rejected=REJECTED,
    own_kinds=KIND_OF[KIND_LABELS],
    kinds=KIND_OF[DRAWN],
  )
  # its row has the loss of the classes alone
  ancestors = 0.0 if correction == "logq" else 0.5
  settings = {"scale": 5.0, "correction": correction, "ancestors": ancestors}
  contrast, _ = _evaluate(features, KIND_LABELS, negatives, **settings)
  factor = {"log": 1.0, "logq": 1.0, "log10": 1 / math.log(10), "none": 0.0}[correction]
  images, positives, classes = map(unit, features)
  logits = 5.0 * images @ classes.T
  total = 0.0
  for i, label in enumerate(KIND_LABELS):
    own = 5.0 * images[i] @ positives[i] + (OWN[i] if correction == "logq" else 0.0)
    masses = [(label, math.exp(own))]
    masses += [
      (c, math.exp(logits[i, k] + factor * WEIGHTS[k]))
      for k, c in enumerate(DRAWN)
      if c != label and not REJECTED[i, k]
    ]
    whole = sum(mass for _, mass in masses)
    total += math.log(whole) - own
    for level in range(2):
      kind = KIND_OF[label, level]
      if kind >= 0:
        below = sum(mass for c, mass in masses if KIND_OF[c, level] == kind)
        total += ancestors / 2 * (math.log(whole) - math.log(below))
  assert_close(contrast.loss, total / 4)


@pytest.mark.parametrize("weights", ["uniform", "of classes", "of images"])
@pytest.mark.parametrize("m", [0.0, 0.5, 1.5, -2.0])
def test_a_fixed_margin_equals_plain_numpy(m, weights):
  """Table 12 of the paper: the same m on every negative, whichever the draw.

  The gradients are NumPy's by the chain rule: (p_ic - [c = y_i]) scale f_i / B, through
  the normalisation of each row.
  """
  features, scale = _features(seed=3), 7.0
  log_weights = {
    "uniform": None,
    "of classes": np.linspace(-1, 1, 5).astype(np.float32),
    "of images": np.where(np.arange(20).reshape(4, 5) % 7, 0.3, -np.inf),
  }[weights]
  is_drawn_BxS = np.ones((4, 5), bool)
  if weights == "of images":
    is_drawn_BxS = np.isfinite(log_weights)
    log_weights = log_weights.astype(np.float32)
  settings = ContrastSettings(2, N_CLASSES, "none", scale, margin=m)
  negatives = jax.tree.map(jax.numpy.asarray, Negatives(DRAWN, log_weights=log_weights))

  def loss(features):
    labels = jax.numpy.asarray(LABELS)
    return local_contrast(settings, *features, labels, negatives).loss

  found, gradients = jax.jit(jax.value_and_grad(loss))(
    [np.float32(rows) for rows in features]
  )
  images, positives, classes = map(unit, features)
  own_B = scale * np.sum(images * positives, axis=-1)
  kept_BxS = is_drawn_BxS & (DRAWN != LABELS[:, None])
  negative_BxS = np.where(kept_BxS, scale * images @ classes.T + m, -np.inf)
  whole_B = np.log(np.exp(own_B) + np.exp(negative_BxS).sum(axis=-1))
  assert_close(found, np.mean(whole_B - own_B))
  share_BxS = np.exp(negative_BxS - whole_B[:, None]) * scale / len(LABELS)
  share_B = (np.exp(own_B - whole_B) - 1) * scale / len(LABELS)
  of_unit = [
    share_BxS @ classes + share_B[:, None] * positives,
    share_B[:, None] * images,
    share_BxS.T @ images,
  ]
  for rows, gradient, raw in zip(of_unit, gradients, features, strict=True):
    units = unit(raw)
    tangent = rows - units * np.sum(rows * units, axis=-1, keepdims=True)
    expected = tangent / np.linalg.norm(raw, axis=-1, keepdims=True)
    assert_close(gradient, expected, 1e-5)


def test_a_fixed_margin_counts_no_negatives():
  """Unlike `log`'s, it is the same whether an image has one negative or five."""
  settings = ContrastSettings(2, N_CLASSES, "none", 1.0, margin=0.75)
  negatives = jax.tree.map(jax.numpy.asarray, NEGATIVES)
  labels = jax.numpy.asarray(LABELS)
  _, margins = kept_with_margin(settings, labels, negatives)
  np.testing.assert_array_equal(np.broadcast_to(margins, (4, 5)), 0.75)
