"""The temperature and the calibration error, against SciPy and scikit-learn in float64."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from pomp_jax.rooms.certainty import outputs as module
from pomp_jax.rooms.certainty.outputs import moments, outputs
from pomp_jax.rooms.certainty.temperature import (
  TemperatureError,
  calibration_figures,
  fit_temperature,
)
from tests.rooms.certainty.answers import unit_rows

SCALE = 20.0


@pytest.fixture(scope="module")
def case():
  """Features of 300 images and 12 classes whose right class is often the nearest."""
  rng = np.random.default_rng(0)
  rows = unit_rows(rng.normal(size=(12, 16)))
  labels = rng.integers(0, 12, 300).astype(np.int32)
  features = unit_rows(rows[labels] + 0.5 * rng.normal(size=(300, 16)))
  return features, rows, labels


def loss_of(case, scale):
  """Mean negative log-likelihood in float64."""
  features, rows, labels = case
  logits = scale * features.astype(np.float64) @ rows.astype(np.float64).T
  right = logits[np.arange(len(labels)), labels]
  return np.mean(scipy.special.logsumexp(logits, axis=1) - right)


def test_the_temperature_is_the_minimum_of_the_loss(case):
  found = fit_temperature(*case, SCALE)
  best = scipy.optimize.minimize_scalar(
    lambda log_t: loss_of(case, SCALE / np.exp(log_t)),
    bounds=(-4, 4),
    method="bounded",
    options={"xatol": 1e-9},
  )
  assert found == pytest.approx(np.exp(best.x), rel=1e-4)


class _Logits(ClassifierMixin, BaseEstimator):
  """A fitted classifier whose inputs are its logits."""

  def fit(self, X, y):
    self.classes_ = np.arange(12)
    self.n_features_in_ = 12
    return self

  def decision_function(self, X):
    return X

  def predict(self, X):
    return X.argmax(axis=1)


def test_probabilities_are_those_of_scikit_learn(case):
  features, rows, labels = case
  logits = SCALE * features.astype(np.float64) @ rows.astype(np.float64).T
  oracle = CalibratedClassifierCV(
    FrozenEstimator(_Logits().fit(None, None)), method="temperature"
  ).fit(logits, labels)
  temperature = fit_temperature(*case, SCALE)
  expected = oracle.predict_proba(logits)
  ours = scipy.special.softmax(logits / temperature, axis=1)
  np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_derivatives_are_those_of_the_likelihood(case):
  at = moments(*case, SCALE)
  step = 1e-3
  low, here, high = (-loss_of(case, SCALE + d) for d in (-step, 0, step))
  assert at.log_likelihood == pytest.approx(here, abs=1e-5)
  assert at.first == pytest.approx((high - low) / (2 * step), rel=1e-3)
  assert at.second == pytest.approx((high - 2 * here + low) / step**2, rel=1e-2)
  assert at.second < 0


def test_blocks_change_nothing(case, monkeypatch):
  whole = outputs(*case, SCALE)
  monkeypatch.setattr(module, "_SCORES", 12 * 7)
  for one, other in zip(whole, outputs(*case, SCALE), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_outputs_are_those_of_float64(case):
  features, rows, labels = case
  cosines = features.astype(np.float64) @ rows.astype(np.float64).T
  probabilities = scipy.special.softmax(SCALE * cosines, axis=1)
  of_right = probabilities[np.arange(len(labels)), labels]
  above = probabilities > of_right[:, None]
  found = outputs(*case, SCALE)
  np.testing.assert_array_equal(found.answer, cosines.argmax(1))
  np.testing.assert_array_equal(found.rank, above.sum(1))
  for name, expected in {
    "confidence": probabilities.max(1),
    "probability": of_right,
    "mass_above": (probabilities * above).sum(1),
    "max_cosine": cosines.max(1),
    "energy": scipy.special.logsumexp(SCALE * cosines, axis=1),
    "mcm": scipy.special.softmax(cosines, axis=1).max(1),
  }.items():
    np.testing.assert_allclose(getattr(found, name), expected, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["always right", "never better than chance"])
def test_images_that_fix_no_temperature(kind):
  rows = np.eye(4, dtype=np.float32)
  labels = np.arange(4, dtype=np.int32)
  features = rows if kind == "always right" else rows[[1, 2, 3, 0]]
  with pytest.raises(TemperatureError, match="4 validation images"):
    fit_temperature(features, rows, labels, SCALE)


def test_calibration_error_against_a_loop():
  rng = np.random.default_rng(1)
  confidence = rng.uniform(0, 1, 500).astype(np.float32)
  right = rng.uniform(0, 1, 500) < confidence**2
  total = 0.0
  for s in range(15):
    inside = (confidence > s / 15) & (confidence <= (s + 1) / 15)
    if inside.any():
      gap = right[inside].mean() - confidence[inside].mean(dtype=np.float64)
      total += inside.sum() / 500 * abs(gap)
  found = calibration_figures(confidence, right)
  assert found["ece"] == pytest.approx(total, abs=1e-9)
  assert sum(found["reliability"]["images"]) == found["images"] == 500
