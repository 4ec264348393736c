"""The weighted draw: of fixed size, each class with its inclusion probability, sums unbiased.

Every statistical test here has the level 1e-3 over all its comparisons (Bonferroni), two-sided;
the seeds are fixed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from pomp_jax.prompt.sampling.weighted import inclusion_probabilities, sample_weighted

LEVEL = 1e-3


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draws(q_N, size, n_draws, seed):
  keys = jax.random.split(jax.random.key(seed), n_draws)
  ids, log_pi = jax.vmap(lambda key: sample_weighted(key, q_N, size))(keys)
  return ids, log_pi[0]


def _q(kind: str, n: int) -> np.ndarray:
  rng = np.random.default_rng(0)
  return {
    "equal": np.full(n, 1 / n),
    "skewed": rng.dirichlet(np.full(n, 0.3)) * 0.5 + 0.5 / n,
    "some certain": np.concatenate([np.full(3, 0.25), np.full(n - 3, 0.25 / (n - 3))]),
    "one rules": np.concatenate([[1.0], np.full(n - 1, 1e-6)]),
  }[kind]


KINDS = ["equal", "skewed", "some certain", "one rules"]


def _plain_inclusion(q_N: np.ndarray, size: int) -> np.ndarray:
  """By the root of sum min(1, t q) = K, in float64."""

  def excess(log_t):
    return np.minimum(1, np.exp(log_t) * q_N).sum() - size

  log_t = scipy.optimize.brentq(excess, -20, np.log(1 / q_N.min()) + 1, xtol=1e-14)
  return np.minimum(1, np.exp(log_t) * q_N)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 8, 29])
def test_inclusion_probabilities_are_capped_and_add_up(kind, size):
  q_N = _q(kind, 30)
  found = np.asarray(inclusion_probabilities(jnp.asarray(q_N, jnp.float32), size))
  np.testing.assert_allclose(found, _plain_inclusion(q_N, size), rtol=2e-5)
  assert found.sum() == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_classes", "size"), [(30, 1), (30, 8), (30, 29), (20_000, 999)])
def test_a_draw_has_its_size_and_holds_what_is_certain(kind, n_classes, size):
  q_N = _q(kind, n_classes)
  ids, log_pi = (np.asarray(part) for part in _draws(jnp.asarray(q_N), size, 50, 1))
  assert ids.min() >= 0
  assert ids.max() < n_classes
  assert all(len(set(row)) == size for row in ids.tolist())
  certain = np.flatnonzero(log_pi == 0)
  assert all(set(certain) <= set(row) for row in ids.tolist())
  # The weights are of the draw that was made: its lengths add up to its size.
  assert np.exp(log_pi.astype(np.float64)).sum() == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("kind", ["equal", "skewed", "some certain"])
def test_every_class_is_drawn_as_often_as_it_should_be(kind):
  n_classes, size, n_draws = 30, 8, 20_000
  q_N = _q(kind, n_classes)
  ids = np.asarray(_draws(jnp.asarray(q_N), size, n_draws, 2)[0])
  pi_N = _plain_inclusion(q_N, size)
  counts = np.bincount(ids.ravel(), minlength=n_classes)
  p_N = [
    scipy.stats.binomtest(int(count), n_draws, min(p, 1.0)).pvalue
    for count, p in zip(counts, pi_N, strict=True)
  ]
  assert min(p_N) > LEVEL / n_classes
  # At any place of the draw, so that leaving out the last ones leaves a draw of the same kind.
  for place in (0, size - 1):
    counts = np.bincount(ids[:, place], minlength=n_classes)
    assert scipy.stats.chisquare(counts, n_draws * pi_N / pi_N.sum()).pvalue > LEVEL / 2


def test_sums_over_all_classes_are_unbiased():
  n_classes, size, n_draws = 40, 10, 20_000
  q_N = _q("some certain", n_classes)
  ids, log_pi = (np.asarray(part) for part in _draws(jnp.asarray(q_N), size, n_draws, 3))
  rng = np.random.default_rng(1)
  values_FxN = np.stack(
    [rng.random(n_classes), np.exp(rng.normal(size=n_classes)), rng.normal(size=n_classes)]
  )

  def p_values(weights_N):
    estimates = (values_FxN * weights_N)[:, ids].sum(axis=-1)
    return [
      scipy.stats.ttest_1samp(row, total).pvalue
      for row, total in zip(estimates, values_FxN.sum(axis=1), strict=True)
    ]

  assert min(p_values(np.exp(-log_pi))) > LEVEL / 3
  # The usual 1 / (K q), which forgets that nothing is drawn twice, is seen to be wrong.
  assert min(p_values(1 / (size * q_N))) < 1e-6


def test_a_sum_that_goes_as_q_has_no_variance():
  q_N = np.random.default_rng(0).uniform(1, 2, 200)
  ids, log_pi = (np.asarray(part) for part in _draws(jnp.asarray(q_N), 20, 100, 4))
  estimates = (q_N * np.exp(-log_pi))[ids].sum(axis=1)
  np.testing.assert_allclose(estimates, q_N.sum(), rtol=1e-5)
