"""The linear probe: against scikit-learn's logistic regression, and its search."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pomp_jax.baselines.linear_probe import COARSE, LinearProbe, fit, search
from tests.support.checks import assert_close


@pytest.fixture(scope="module")
def data():
  """Ninety noisy points of four classes in six dimensions."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 4, 90)
  centres = rng.standard_normal((4, 6))
  return (centres[labels] + rng.standard_normal((90, 6))).astype(np.float32), labels


@pytest.mark.parametrize("strength", [0.03, 1.0, 40.0])
def test_it_is_logistic_regression(data, strength):
  features, labels = data
  probe = fit(features, labels, 4, strength)
  oracle = LogisticRegression(C=1 / strength, tol=1e-12, max_iter=10_000)
  oracle.fit(features.astype(np.float64), labels)
  assert_close(probe.kernel.T, oracle.coef_, 2e-3)
  # Biases are determined up to a constant.
  intercept = oracle.intercept_ - oracle.intercept_.mean()
  assert_close(probe.bias - probe.bias.mean(), intercept, 2e-3)
  assert_close(probe.scores(features).argmax(1), oracle.predict(features), 0.0)


def test_another_initial_probe_converges_to_the_same(data):
  features, labels = data
  rng = np.random.default_rng(1)
  start = LinearProbe(
    rng.standard_normal((6, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32), 9.0
  )
  probe, other = fit(features, labels, 4, 1.0), fit(features, labels, 4, 1.0, start=start)
  assert_close(other.kernel, probe.kernel, 2e-3)


@pytest.mark.parametrize("best_power", [-5.4, 0.0, 1.3, 5.9])
def test_the_search_finds_the_best_eighth_of_a_decade(best_power):
  starts = []

  def fit_with(strength, start):
    starts.append(start)
    return LinearProbe(np.zeros((1, 1), np.float32), np.zeros(1, np.float32), strength)

  def accuracy(probe):
    return 1 / (1 + abs(math.log10(probe.strength) - best_power))

  found, tried = search(fit_with, accuracy)
  assert abs(math.log10(found.strength) - best_power) <= 1 / 8
  assert set(COARSE) <= set(tried) and len(tried) == len(starts) <= len(COARSE) + 8
  assert tried[found.strength] == max(tried.values())
  assert starts[0] is None and None not in starts[1:]


def _probe(value, strength):
  return LinearProbe(np.full((1, 1), value, np.float32), np.zeros(1, np.float32), strength)


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
