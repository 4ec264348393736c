"""Tip-Adapter: against NumPy in float64, key by key; its tuning against torch's AdamW."""

from closeness import assert_close
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pomp_jax.baselines.tip_adapter import TipAdapter, cross_entropy, tune

N_CLASSES, WIDTH, SCALE = 5, 8, 20.0


def unit(rng, n):
  """Random unit rows."""
  rows = rng.standard_normal((n, WIDTH))
  return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def adapter():
  """Twelve keys in no order; class 3 has none."""
  rng = np.random.default_rng(0)
  labels = np.array([2, 0, 1, 4, 0, 0, 2, 1, 4, 2, 0, 1])
  return TipAdapter(unit(rng, 12), labels, unit(rng, N_CLASSES), SCALE, alpha=1.7, beta=3.0)


@pytest.fixture(scope="module")
def images():
  """Forty unit features and labels."""
  rng = np.random.default_rng(1)
  return unit(rng, 40), rng.integers(0, N_CLASSES, 40)


def plain_scores(adapter, features, alpha, beta):
  """The formula, in float64, one key at a time."""
  scores = np.zeros((len(features), N_CLASSES))
  for i, feature in enumerate(features.astype(np.float64)):
    for c in range(N_CLASSES):
      scores[i, c] = SCALE * feature @ adapter.class_features[c]
    for key, label in zip(adapter.keys.astype(np.float64), adapter.labels, strict=True):
      scores[i, label] += alpha * np.exp(-beta * (1 - feature @ key))
  return scores


def test_scores_are_the_formula(adapter, images):
  assert_close(adapter.scores(images[0]), plain_scores(adapter, images[0], 1.7, 3.0), 1e-6)
  none = adapter._replace(alpha=0.0)
  assert_close(none.scores(images[0]), SCALE * images[0] @ adapter.class_features.T, 1e-6)


def test_the_search_finds_the_first_best_of_the_grid(adapter, images):
  features, labels = images
  # A cache that knows the images: its weight matters.
  knowing = adapter._replace(keys=features[:12], labels=labels[:12])
  alphas, betas = (0.1, 1.0, 30.0), (0.5, 5.0, 12.0)
  expected = max(
    ((beta, alpha) for beta in betas for alpha in alphas),
    key=lambda pair: np.mean(plain_scores(knowing, features, pair[1], pair[0]).argmax(1) == labels),
  )
  found = knowing.searched(features, labels, np.array(alphas), np.array(betas))
  assert (found.beta, found.alpha) == expected
  assert expected != (betas[0], alphas[0])


def test_tuning_is_torchs_adamw_with_a_cosine(adapter, images):
  """Batches of all images, whose order does not matter; the last epoch is kept."""
  features, labels = images
  epochs, rate = 5, 0.01
  keys = torch.tensor(adapter.keys.astype(np.float64), requires_grad=True)
  optimizer = torch.optim.AdamW([keys], lr=rate, eps=1e-4)
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
  onehot = torch.nn.functional.one_hot(torch.tensor(adapter.labels), N_CLASSES).double()
  x = torch.tensor(features.astype(np.float64))
  text = torch.tensor(adapter.class_features.astype(np.float64))
  losses = []
  for _ in range(epochs):
    logits = SCALE * x @ text.T + 1.7 * torch.exp(-3.0 * (1 - x @ keys.T)) @ onehot
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    optimizer.zero_grad()
    loss.backward()
    if not losses:
      first_gradient = keys.grad.clone()
    losses.append(loss.item())
    optimizer.step()
    schedule.step()
  arguments = adapter.keys, adapter.labels, adapter.class_features, features, labels
  arguments = [jnp.asarray(argument) for argument in arguments]
  loss, gradient = jax.value_and_grad(cross_entropy)(*arguments, scale=SCALE, alpha=1.7, beta=3.0)
  assert_close(loss, losses[0], 1e-6)
  assert_close(gradient, first_gradient, 1e-5)

  rising = iter(range(100))
  tuned = tune(
    adapter, features, labels,
    epochs=epochs, batch_size=1000, rate=rate, seed=0, validate=lambda _: float(next(rising)),
  )  # fmt: skip
  assert losses[-1] < losses[0]
  assert_close(tuned.keys - adapter.keys, keys.detach().numpy() - adapter.keys, 1e-3)


def test_the_best_epoch_by_validation_is_kept(adapter, images):
  seen = []

  def validate(tuned):
    seen.append(tuned.keys)
    return [0.5, 0.1, 0.9, 0.9, 0.2][len(seen) - 1]

  tuned = tune(adapter, *images, epochs=4, batch_size=16, rate=0.01, seed=0, validate=validate)
  np.testing.assert_array_equal(tuned.keys, seen[2])
  assert len(seen) == 5 and not np.array_equal(seen[1], seen[2])


def test_an_epoch_that_is_not_finite_is_not_kept(adapter, images, caplog):
  """At this rate the keys leave the float's range at once; a validation that likes that."""
  with pytest.raises(FloatingPointError, match="not finite after epoch 1 of 4 at a rate of 1e.06"):
    tune(adapter, *images, epochs=4, batch_size=16, rate=1e6, seed=0, validate=lambda _: 1.0)

  # The second epoch breaks: what came before is kept, and the third is not tried.
  seen, (features, labels) = [], images
  features = features.copy()

  def validate(tuned):
    seen.append(tuned.keys.copy())
    if len(seen) == 2:
      features[:] = np.nan
    return float(len(seen))

  tuned = tune(
    adapter, features, labels, epochs=4, batch_size=16, rate=0.01, seed=0, validate=validate
  )
  assert len(seen) == 2
  np.testing.assert_array_equal(tuned.keys, seen[1])
  assert "not finite after epoch 2 of 4" in caplog.text


def test_the_search_takes_no_weight_with_which_scores_overflow(adapter, images):
  """Right about all: class 0, which argmax answers where all is NaN."""
  features, _ = images
  labels = np.zeros(len(features), int)
  with np.errstate(over="ignore", invalid="ignore"):
    found = adapter.searched(features, labels, np.array([np.inf, np.nan, 0.5]), np.array([3.0]))
  assert (found.alpha, found.beta) == (0.5, 3.0)
