"""Tip-Adapter against NumPy in float64 and torch's AdamW; the linear probe against
scikit-learn."""

import math
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
import torch

from pomp_jax.config import defaults
from pomp_jax.data.source import StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.baselines import learner_accuracy, linear_probe, tip_adapter
from pomp_jax.rooms.baselines.classifiers import Training
from pomp_jax.rooms.baselines.fields import Tip
from pomp_jax.rooms.baselines.linear_probe import COARSE, LinearProbe, fit, search
from pomp_jax.rooms.baselines.tip_adapter import TipAdapter, grid, mean_keys, tune
from tests.support.checks import assert_close
from tests.support.oracles import unit

N_CLASSES, WIDTH, SCALE = 5, 8, 20.0


def unit_rows(rng, n):
  return unit(rng.standard_normal((n, WIDTH))).astype(np.float32)


@pytest.fixture(scope="module")
def adapter():
  """Twelve keys in no order; class 3 has none."""
  rng = np.random.default_rng(0)
  labels = np.array([2, 0, 1, 4, 0, 0, 2, 1, 4, 2, 0, 1])
  return TipAdapter(
    unit_rows(rng, 12), labels, unit_rows(rng, N_CLASSES), SCALE, alpha=1.7, beta=3.0
  )


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(1)
  return unit_rows(rng, 40), rng.integers(0, N_CLASSES, 40)


def plain_scores(adapter, features, alpha, beta):
  """Computes the formula in float64, one key at a time."""
  scores = np.zeros((len(features), N_CLASSES))
  for i, feature in enumerate(features.astype(np.float64)):
    for c in range(N_CLASSES):
      scores[i, c] = SCALE * feature @ adapter.text_features[c]
    for key, label in zip(adapter.keys.astype(np.float64), adapter.labels, strict=True):
      scores[i, label] += alpha * np.exp(-beta * (1 - feature @ key))
  return scores


def test_scores_are_the_formula(adapter, images):
  assert_close(
    adapter.scores(images[0]), plain_scores(adapter, images[0], 1.7, 3.0), 1e-6
  )
  none = adapter._replace(alpha=0.0)
  assert_close(
    none.scores(images[0]), SCALE * images[0] @ adapter.text_features.T, 1e-6
  )


def test_the_search_finds_the_first_best_of_the_grid(adapter, images):
  features, labels = images
  # A cache that knows the images: its weight matters.
  knowing = adapter._replace(keys=features[:12], labels=labels[:12])
  alphas, betas = (0.1, 1.0, 30.0), (0.5, 5.0, 12.0)
  expected = max(
    ((beta, alpha) for beta in betas for alpha in alphas),
    key=lambda pair: np.mean(
      plain_scores(knowing, features, pair[1], pair[0]).argmax(1) == labels
    ),
  )
  found = knowing.searched(features, labels, np.array(alphas), np.array(betas))
  assert (found.beta, found.alpha) == expected
  assert expected != (betas[0], alphas[0])


def test_of_equal_pairs_the_first_wins_beta_by_beta():
  """Images that are their own keys, under texts of which two are swapped.

  These two are right where alpha (1 - exp(-beta)) is above the text logit of 2, the
  third always.
  """
  eye = np.eye(3, dtype=np.float32)
  adapter = TipAdapter(eye, np.arange(3), eye[[1, 0, 2]], 2.0, alpha=-1.0, beta=-1.0)
  search = lambda *grids: adapter.searched(eye, np.arange(3), *map(np.array, grids))[
    -2:
  ]
  assert search((0.1, 30.0, 20.0), (9.0, 5.0, 7.0)) == (30.0, 9.0)
  assert search((30.0, 0.1, 20.0), (9.0, 5.0, 7.0)) == (30.0, 9.0)
  # None is better than the first.
  assert search((0.1, 0.2), (9.0, 5.0)) == (0.1, 9.0)
  # A tie of the own class with another is wrong.
  assert search((1.0, 2.0), (1e4,)) == (1.0, 1e4)
  assert search((2.5,), (0.0, 0.1, 9.0, 5.0)) == (2.5, 9.0)


@pytest.fixture
def fit_tip(monkeypatch):
  """A function: epochs of features, labels, fields -> the adapter, which searches
  nothing.

  The keywords are fields of `config.tip` and `config.data` by full name, and `tuned`.
  """
  monkeypatch.setattr(
    TipAdapter, "searched", lambda self, features, labels, *grids: self
  )
  for name in ("open_fetch", "features_under"):
    monkeypatch.setattr(tip_adapter, name, lambda *_: None)
  monkeypatch.setattr(tip_adapter.opening, "class_list", lambda *_: None)

  def fit_one(epochs, labels, *, tuned=False, **changes):
    monkeypatch.setattr(tip_adapter, "view_features", lambda *_: iter(epochs))
    coop = {"data.source": "coop", "data.dataset": "eurosat"}
    config = defaults().replace(coop | changes)
    validation = np.zeros(1, int), np.ones((1, WIDTH)), np.zeros(1, int)
    training = Training(
      data=config.data,
      encoder=mock.Mock(spec=Encoder, clip=SimpleNamespace(logit_scale=SCALE)),
      folder=RunFolder("run"),
      source=mock.Mock(spec=StoredImages, names=("a",), labels=labels),
      validation=SplitFeatures(("a",), *validation),
    )
    settings = {"tuned": tuned, "batch_size": 1, "rate": 0.1, "seed": 0}
    adapter, _ = tip_adapter.fit_classifier(training, config.of(Tip), "", **settings)
    return adapter

  return fit_one


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ({}, (10.0, 12.0)),  # EuroSAT's of the published configs
    ({"alpha_max": 2.0}, (2.0, 12.0)),
    ({"beta_max": 3.0}, (10.0, 3.0)),
  ],
)
def test_the_search_has_the_published_ends_or_those_of_the_config(
  monkeypatch, fit_tip, given, expected
):
  searched = []
  monkeypatch.setattr(
    TipAdapter,
    "searched",
    lambda self, features, labels, *grids: searched.append(grids) or self,
  )
  given = {f"tip.{name}": value for name, value in given.items()}
  epoch = tip_adapter.Epoch(np.ones((1, 1, WIDTH)), np.ones(1, bool))
  fit_tip([epoch], [0], **given, **{"tip.alpha_steps": 4, "tip.beta_steps": 5})
  [(alphas, betas)] = searched
  for values, most, count in zip((alphas, betas), expected, (4, 5), strict=True):
    np.testing.assert_allclose(values, np.linspace(0.1, most, count, endpoint=False))


def test_an_image_that_one_epoch_could_not_read_has_neither_key_nor_label(
  monkeypatch, fit_tip
):
  """The other labels stay beside their features, in the cache and in the tuning."""
  rng, labels = np.random.default_rng(3), np.array([4, 0, 3, 1, 2, 1])
  epochs = [
    tip_adapter.Epoch(
      rng.normal(size=(6, 2, WIDTH)).astype(np.float32), np.arange(6) != unread
    )
    for unread in (1, 3, 6, 6)
  ]
  given = {}

  def tune_nothing(adapter, epochs, labels, **settings):
    given.update(epochs=list(epochs), labels=labels)
    return adapter

  monkeypatch.setattr(tip_adapter, "tune", tune_nothing)
  fields = {"data.augment": "recipe", "data.views": 2, "tip.views": 2, "tip.epochs": 2}
  adapter = fit_tip(epochs, labels, tuned=True, **fields)
  kept = [0, 2, 4, 5]
  expected = [
    unit(np.concatenate([e.features[i] for e in epochs[:2]]).sum(0)) for i in kept
  ]
  assert_close(adapter.keys, np.stack(expected), 1e-6)
  assert adapter.labels.tolist() == labels[kept].tolist()
  # A row of the tuning is a view of an image.
  assert given["labels"].tolist() == [label for label in labels[kept] for _ in range(2)]
  for found, epoch in zip(given["epochs"], epochs[2:], strict=True):
    rows = [unit(epoch.features[i, view]) for i in kept for view in range(2)]
    assert_close(found, np.stack(rows), 1e-6)


def test_the_grid_has_equal_steps_from_a_tenth_and_leaves_out_its_end():
  np.testing.assert_allclose(grid(7.0, 3), [0.1, 2.4, 4.7])


def test_keys_are_the_mean_over_views_before_it_is_normalised():
  """The published cache in torch: the mean over all passes, normalised."""
  rng = np.random.default_rng(4)
  passes = [
    rng.normal(0, rng.uniform(1, 9, (6, 1, 1)), (6, 2, WIDTH)) for _ in range(5)
  ]
  views = torch.tensor(np.concatenate(passes, axis=1))
  mean = views.permute(1, 0, 2).mean(dim=0)
  expected = mean / mean.norm(dim=-1, keepdim=True)
  found = mean_keys(features.astype(np.float32) for features in passes)
  assert found.dtype == np.float32
  assert_close(found, expected.numpy(), 1e-6)
  # The mean of unit features is another.
  assert (
    np.abs(found - torch.nn.functional.normalize(views, dim=-1).mean(1).numpy()).max()
    > 0.05
  )


def test_tuning_is_torchs_adamw_with_a_cosine_over_steps(adapter):
  """With new features in every epoch, and a smaller last batch."""
  rng = np.random.default_rng(2)
  n_epochs, rate, seed = 3, 0.01, 7
  epochs = [unit_rows(rng, 40) for _ in range(n_epochs)]
  labels = rng.integers(0, N_CLASSES, 40)
  alpha, beta = adapter.alpha, adapter.beta
  keys = torch.tensor(adapter.keys.T.astype(np.float64), requires_grad=True)
  values = torch.nn.functional.one_hot(torch.tensor(adapter.labels), N_CLASSES).double()
  weights = torch.tensor(adapter.text_features.T.astype(np.float64))
  optimizer = torch.optim.AdamW([keys], lr=rate, eps=1e-4)
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_epochs * 3)
  order, after = np.random.default_rng(seed), []
  for features in epochs:
    permuted = order.permutation(40)
    for rows in (permuted[:16], permuted[16:32], permuted[32:]):
      images = torch.tensor(features[rows].astype(np.float64))
      affinity = images @ keys
      cache_logits = (-(beta - beta * affinity)).exp() @ values
      logits = SCALE * images @ weights + cache_logits * alpha
      loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[rows]))
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      schedule.step()
    after.append(keys.detach().numpy().T.copy())

  tuned, seen = tuned_of(adapter, epochs, labels, [1, 2, 3], rate=rate, seed=seed)
  np.testing.assert_array_equal(tuned, seen[-1])
  for found, expected in zip(seen, after, strict=True):
    assert_close(found - adapter.keys, expected - adapter.keys, 1e-3)


def tuned_of(adapter, epochs, labels, accuracies, rate=0.01, seed=0):
  """The keys returned, and those of each epoch, which validation gives these
  accuracies."""
  validate = mock.Mock(side_effect=accuracies)
  settings = {"n_epochs": len(epochs), "batch_size": 16, "rate": rate, "seed": seed}
  tuned = tune(adapter, iter(epochs), labels, validate=validate, **settings)
  return tuned.keys, [call.args[0].keys for call in validate.mock_calls]


def test_the_best_epoch_by_validation_is_kept(adapter, images):
  """The training-free adapter is not a candidate."""
  features, labels = images
  found, seen = tuned_of(adapter, [features] * 4, labels, [0.1, 0.9, 0.9, 0.2])
  np.testing.assert_array_equal(found, seen[1])
  assert len(seen) == 4 and not np.array_equal(seen[0], adapter.keys)
  found, _ = tuned_of(adapter, [features], labels, [0.0])
  assert not np.array_equal(found, adapter.keys)


def test_an_epoch_that_is_not_finite_is_not_kept(adapter, images, caplog):
  """Even if validation prefers broken keys."""
  features, labels = images
  with pytest.raises(FloatingPointError, match="epoch 1 of 4.*1e"):
    tuned_of(adapter, [features] * 4, labels, [1.0] * 4, rate=1e6)
  # The second epoch breaks: the first is returned, and the third is not tried.
  epochs = [features, np.full_like(features, np.nan), features]
  found, seen = tuned_of(adapter, epochs, labels, [1, 2, 3])
  assert len(seen) == 1
  np.testing.assert_array_equal(found, seen[0])
  assert "epoch 2 of 3" in caplog.text


def test_the_search_skips_weights_with_which_scores_overflow(adapter, images):
  """All labels are class 0, which argmax returns where all scores are NaN."""
  features, _ = images
  labels = np.zeros(len(features), int)
  with np.errstate(over="ignore", invalid="ignore"):
    found = adapter.searched(
      features, labels, np.array([np.inf, np.nan, 0.5]), np.array([3.0])
    )
  assert (found.alpha, found.beta) == (0.5, 3.0)


@pytest.fixture(scope="module")
def data():
  """Ninety noisy points of four classes in six dimensions."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 4, 90)
  centres = rng.standard_normal((4, 6))
  return (centres[labels] + rng.standard_normal((90, 6))).astype(np.float32), labels


@pytest.mark.parametrize(
  ("strength", "started"), [(0.03, False), (1.0, True), (40.0, False)]
)
def test_it_is_logistic_regression(data, strength, started):
  """From zeros, and from another probe."""
  features, labels = data
  rows = np.random.default_rng(1).standard_normal((7, 4)).astype(np.float32)
  start = LinearProbe(rows[:6], rows[6], 9.0) if started else None
  probe = fit(features, labels, 4, strength, start=start)
  oracle = LogisticRegression(C=1 / strength, tol=1e-12, max_iter=10_000)
  oracle.fit(features.astype(np.float64), labels)
  assert_close(probe.kernel.T, oracle.coef_, 2e-3)
  # Biases are determined up to a constant.
  intercept = oracle.intercept_ - oracle.intercept_.mean()
  assert_close(probe.bias - probe.bias.mean(), intercept, 2e-3)
  assert_close(probe.scores(features).argmax(1), oracle.predict(features), 0.0)


@pytest.mark.parametrize("best_power", [-5.4, 0.0, 1.3, 5.9])
def test_the_search_finds_the_best_eighth_of_a_decade(best_power):
  starts = []

  def fit_with(strength, start):
    starts.append(start)
    return _probe(0.0, strength)

  def accuracy(probe):
    return 1 / (1 + abs(math.log10(probe.strength) - best_power))

  found, tried = search(fit_with, accuracy)
  assert abs(math.log10(found.strength) - best_power) <= 1 / 8
  assert set(COARSE) <= set(tried) and len(tried) == len(starts) <= len(COARSE) + 8
  assert tried[found.strength] == max(tried.values())
  assert starts[0] is None and None not in starts[1:]


def _probe(value, strength):
  return LinearProbe(
    np.full((1, 1), value, np.float32), np.zeros(1, np.float32), strength
  )


def test_a_probe_that_is_not_finite_is_neither_best_nor_initial():
  starts = []

  def fit_with(strength, start):
    starts.append(start)
    return _probe(np.nan if strength > 1 else 0.0, strength)

  found, _ = search(fit_with, lambda probe: 1.0 if probe.strength > 1 else 0.5)
  assert found.strength == 1.0
  assert all(start is None or np.isfinite(start.kernel).all() for start in starts)
  with pytest.raises(FloatingPointError, match="1e-06, .* finite"):
    search(lambda strength, start: _probe(np.nan, strength), lambda probe: 1.0)


def test_the_strength_is_chosen_by_the_validation_images(data, monkeypatch):
  """Two thirds of the points train, the others validate; the accuracies are
  scikit-learn's."""
  features, labels = data
  split = lambda rows: SplitFeatures(
    tuple("abcd"), labels[rows], features[rows], np.arange(90)[rows]
  )
  train, validation = split(slice(60)), split(slice(60, None))
  asked = []

  def fit_and_record(*given, iterations, start):
    asked.append(iterations)
    return fit(*given, iterations=iterations, start=start)

  monkeypatch.setattr(linear_probe, "fit", fit_and_record)
  training = mock.Mock(spec=Training, features=lambda: train, validation=validation)
  probe, facts = linear_probe.fit_classifier(training, 500)
  assert set(asked) == {500}
  assert facts["validation_images"] == 30 and facts["strength"] == probe.strength
  of_strength = {}
  for strength in COARSE[2:-2]:
    oracle = LogisticRegression(C=1 / strength, max_iter=10_000).fit(
      train.features, train.labels
    )
    of_strength[f"{strength:.4g}"] = oracle.score(
      validation.features, validation.labels
    )
    # Otherwise the test could not tell the images apart.
    assert oracle.score(train.features, train.labels) != of_strength[f"{strength:.4g}"]
  assert {key: facts["validation_top1"][key] for key in of_strength} == of_strength
  assert facts["validation_top1"][f"{probe.strength:.4g}"] == max(
    facts["validation_top1"].values()
  )


def test_a_classifier_scores_images_in_parts(monkeypatch):
  """A score that is not finite is wrong, also where k is not below the number of
  classes."""
  monkeypatch.setattr(learner_accuracy, "_ROWS", 3)
  labels = np.array([0, 1, 2, 2])
  scores = np.eye(3, dtype=np.float32)[labels]
  scores[1, 0] = np.nan
  # The scores are the features of a classifier that returns them.
  split = SplitFeatures(("a", "b", "c"), labels, scores, np.arange(4))
  classifier = SimpleNamespace(scores=lambda rows: rows)
  accuracy = learner_accuracy.classifier_accuracy(classifier, split)
  assert (accuracy["top1"], accuracy["top5"]) == (0.75, 0.75)
