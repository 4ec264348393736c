"""Posterior draws of a few classes, all of them enumerated in NumPy's float64.

A draw is an order of the classes and a start on the line. For each order, the unit interval of the
start falls into pieces of one set each, so the probability of a set is a finite sum. Statistical
tests have the level 1e-3, two-sided; seeds are fixed.
"""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from pomp_jax.prompt.bank import Bank
from pomp_jax.prompt.loss import ContrastSettings, local_contrast
from pomp_jax.prompt.sampling import (
  SamplingArrays,
  SamplingSettings,
  complete_negatives,
  draw_negatives,
)

LEVEL = 1e-3
N, K, E, SCALE, MIX = 6, 4, 3, 5.0, 0.1
S = K - 1
LABELS = np.array([0, 0, 4], np.int32)
N_DRAWS = 40_000
SETTINGS = SamplingSettings("posterior", mix=MIX, logit_scale=SCALE)


def _unit(rows):
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


RNG = np.random.default_rng(4)
# The features of the classes have moved since they were written into the bank.
BANK = _unit(RNG.normal(size=(N, E))).astype(np.float32)
CLASSES = _unit(BANK + 0.3 * RNG.normal(size=(N, E))).astype(np.float32)
IMAGES = _unit(CLASSES[LABELS] + 0.4 * RNG.normal(size=(3, E))).astype(np.float32)


def _inclusion_probabilities() -> np.ndarray:
  """Of the posterior over the bank, mixed with the uniform distribution, at most 1 each."""
  share_BxN = scipy.special.softmax(SCALE * IMAGES.astype(float) @ BANK.T.astype(float), axis=1)
  share_BxN[LABELS[:, None] == np.arange(N)] = 0.0
  q_N = MIX / N + (1 - MIX) * share_BxN.sum(axis=0) / share_BxN.sum()
  t = scipy.optimize.brentq(lambda t: np.minimum(1, t * q_N).sum() - S, 0, S / q_N.min())
  return np.minimum(1, t * q_N)


def _sets() -> dict[tuple[int, ...], float]:
  """Probability of every set of S classes under systematic sampling in a random order."""
  pi_N = _inclusion_probabilities()
  orders = list(itertools.permutations(range(N)))
  found: dict[tuple[int, ...], float] = collections.defaultdict(float)
  for order in orders:
    ends = np.concatenate([[0.0], np.cumsum(pi_N[list(order)])])
    edges = np.unique(np.concatenate([[0.0, 1.0], ends % 1.0]))
    for low, high in itertools.pairwise(edges):
      if high - low < 1e-12:
        continue
      places = np.searchsorted(ends, (low + high) / 2 + np.arange(S), side="right") - 1
      found[tuple(sorted(order[place] for place in places))] += (high - low) / len(orders)
  return found


def _weighted_terms(members: tuple[int, ...], features_NxE: np.ndarray) -> np.ndarray:
  """exp(s_ic - s_iy) / pi_c of each image and each class of a set, 0 elsewhere [B,N]."""
  logits_BxN = SCALE * IMAGES.astype(float) @ features_NxE.T.astype(float)
  gap_BxN = logits_BxN - logits_BxN[np.arange(3), LABELS][:, None]
  weight_N = np.isin(np.arange(N), members) / _inclusion_probabilities()
  return np.where(LABELS[:, None] == np.arange(N), 0.0, np.exp(gap_BxN) * weight_N)


def _gradient(terms_BxN: np.ndarray) -> np.ndarray:
  """Of the mean of log(1 + sum terms), by the logits [B,N]."""
  share_BxN = terms_BxN / (1 + terms_BxN.sum(axis=1, keepdims=True)) / len(LABELS)
  share_BxN[np.arange(3), LABELS] = -share_BxN.sum(axis=1)
  return share_BxN


def test_the_expected_denominator_is_the_sum_over_all_classes():
  sets = _sets()
  assert sum(sets.values()) == pytest.approx(1, rel=1e-12)
  assert len(sets) > N
  expected_B = sum(p * _weighted_terms(members, CLASSES).sum(axis=1) for members, p in sets.items())
  logits_BxN = SCALE * IMAGES.astype(float) @ CLASSES.T.astype(float)
  odds_B = 1 / scipy.special.softmax(logits_BxN, axis=1)[np.arange(3), LABELS] - 1
  np.testing.assert_allclose(expected_B, odds_B, rtol=1e-9)


@pytest.fixture(scope="module")
def draws():
  """Ids [R,S], weights [R,S] and gradients by the class features [R,N,E] of many draws."""

  def one(key):
    arrays, labels = SamplingArrays(bank=Bank(jnp.asarray(BANK), N)), jnp.asarray(LABELS)
    images = jnp.asarray(IMAGES)
    drawn = draw_negatives(
      key, SETTINGS, k=K, n_classes=N, labels_B=labels, images_BxE=images, arrays=arrays
    )
    negatives = complete_negatives(SETTINGS, arrays, drawn, labels)
    contrast = ContrastSettings(K, N, "log", SCALE, SETTINGS)

    def loss(classes):
      positives, others = classes[labels], classes[negatives.ids]
      return local_contrast(contrast, images, positives, others, labels, negatives).loss

    return negatives.ids, negatives.log_weights, jax.grad(loss)(jnp.asarray(CLASSES))

  return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), N_DRAWS))


def test_every_set_is_drawn_as_often_as_enumerated(draws):
  ids = np.sort(np.asarray(draws[0]), axis=1)
  sets = {members: p for members, p in _sets().items() if p > 1e-9}
  counts = collections.Counter(map(tuple, ids.tolist()))
  assert set(counts) <= set(sets)
  seen = [counts[members] for members in sets]
  expected = N_DRAWS * np.array(list(sets.values())) / sum(sets.values())
  often = expected > 5
  assert (
    scipy.stats.chisquare(
      [*np.extract(often, seen), sum(np.extract(~often, seen)) + 1e-9],
      [*expected[often], expected[~often].sum() + 1e-9],
    ).pvalue
    > LEVEL
  )


def test_the_weights_are_the_inverse_inclusion_probabilities(draws):
  pi_N = _inclusion_probabilities()
  np.testing.assert_allclose(np.exp(draws[1]), 1 / pi_N[np.asarray(draws[0])], rtol=1e-4)


def test_the_expected_gradient_is_that_of_the_enumeration(draws):
  """And not the exact gradient: the logarithm of an unbiased denominator has a bias."""

  def by_features(gradient_BxN):
    by_unit_NxE = SCALE * gradient_BxN.T @ IMAGES.astype(float)
    radial_N = np.sum(by_unit_NxE * CLASSES, axis=1, keepdims=True)
    # Features are normalised before the product.
    return by_unit_NxE - radial_N * CLASSES

  sets = _sets()
  expected = sum(p * by_features(_gradient(_weighted_terms(m, CLASSES))) for m, p in sets.items())
  found = np.asarray(draws[2], np.float64)
  p_values = scipy.stats.ttest_1samp(found.reshape(N_DRAWS, -1), expected.ravel()).pvalue
  assert np.nanmin(p_values) > LEVEL / (N * E)
  every = _weighted_terms(tuple(range(N)), CLASSES) * _inclusion_probabilities()
  exact = by_features(_gradient(every))
  assert np.linalg.norm(expected - exact) > 0.01 * np.linalg.norm(exact)
  assert scipy.stats.ttest_1samp(found.reshape(N_DRAWS, -1), exact.ravel()).pvalue.min() < 1e-6
