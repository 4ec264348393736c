"""Every sampler with its correction: what the loss estimates, and what is never a negative.

Statistical tests have the level 1e-3 over all comparisons of a test, two-sided; seeds are fixed.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from pomp_jax.prompt.group_loss import ContrastSettings, group_contrast, negatives_of
from pomp_jax.prompt.loss import Weights
from pomp_jax.prompt.sampling import Sampling, SamplingArrays, draw_negatives, sample_uniform

LEVEL = 1e-3
N, K, E, SCALE = 40, 11, 6, 4.0
LABELS = np.array([3, 3, 17, 30], np.int32)

SETTINGS = {
  "uniform": Sampling(),
  "hard": Sampling("hard", temperature=0.2, mix=0.3),
  "hard by images": Sampling("hard", anchors="images", temperature=0.3),
  "easy": Sampling("easy", temperature=0.5),
  "hierarchical": Sampling("hierarchical", mix=0.4),
  "frequency": Sampling("frequency", mix=0.1),
  "not the similar": Sampling(exclude="similar", exclude_threshold=0.5),
  "not kin": Sampling(exclude="kin"),
  "hard but not kin": Sampling("hard", temperature=0.2, exclude="kin"),
  "batch": Sampling(batch_positives=True),
  "hierarchical, not kin, batch": Sampling("hierarchical", exclude="kin", batch_positives=True),
}


def _unit(rows):
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


RNG = np.random.default_rng(0)
BANK = _unit(RNG.normal(size=(N, E))).astype(np.float32)
IMAGES = _unit(BANK[LABELS] + 0.5 * RNG.normal(size=(4, E))).astype(np.float32)
# Blocks of five are siblings, pairs are kin (told by one of the two alone).
ARRAYS = SamplingArrays(
  bank=jnp.asarray(BANK),
  frequency=jnp.asarray(np.arange(1, N + 1) / (N * (N + 1) / 2), jnp.float32),
  groups=jnp.asarray(np.arange(N)[:, None] // 5, jnp.int32),
  group_sizes=jnp.full(N // 5, 5, jnp.int32),
  kin=jnp.asarray(np.where(np.arange(N) % 2, np.arange(N) - 1, -1)[:, None], jnp.int32),
)


def _allowed(sampling: Sampling, label: int) -> set[int]:
  """The negatives that an image of a class has if all are drawn."""
  similar = {c for c in range(N) if float(BANK[c] @ BANK[label]) > sampling.exclude_threshold}
  kin = {label ^ 1}
  out = {"none": set(), "similar": similar, "kin": kin}[sampling.exclude]
  return set(range(N)) - {label} - out


def _draw(sampling, key, k=K):
  return draw_negatives(
    key,
    sampling,
    k=k,
    n_classes=N,
    labels_B=jnp.asarray(LABELS),
    images_BxE=jnp.asarray(IMAGES),
    arrays=ARRAYS,
  )


def _contrasts(sampling, key, bank, correction="log", k=K, n_available=None):
  """The losses of the four images, each by itself, over one draw."""
  draw, labels = _draw(sampling, key, k), jnp.asarray(LABELS)
  settings = ContrastSettings(k, N, correction, SCALE, sampling)
  available = None if n_available is None else jnp.arange(draw.ids.size) < n_available
  negatives = negatives_of(settings, ARRAYS, draw, labels, available)

  features = jnp.concatenate([bank[labels], bank[draw.ids]])

  def loss(image, label, log_own, rejected):
    one, weights = negatives, negatives.weights
    if weights is not None:
      one = negatives._replace(weights=Weights(weights.log_negatives, log_own, rejected))
    return group_contrast(settings, one, image, bank[label], features, label).loss

  weights = negatives.weights
  rows = (IMAGES, labels, weights and weights.log_own, weights and weights.rejected)
  # [B, ..] -> [B, 1, ..]: groups of one image.
  return jax.vmap(loss)(*jax.tree.map(lambda row: jnp.asarray(row)[:, None], rows))


def _denominators(sampling, n_draws, **settings):
  """Estimates of the sum over the negatives, one row a draw, in units of the positive."""
  keys = jax.random.split(jax.random.key(5), n_draws)
  losses = jax.jit(jax.vmap(lambda key: _contrasts(sampling, key, ARRAYS.bank, **settings)))(keys)
  return np.expm1(np.asarray(losses, np.float64))


def _exact(sampling):
  logits = SCALE * IMAGES.astype(np.float64) @ BANK.T.astype(np.float64)
  return [
    sum(np.exp(logits[i, c] - logits[i, label]) for c in _allowed(sampling, label))
    for i, label in enumerate(LABELS.tolist())
  ]


@pytest.mark.parametrize(
  ("name", "n_available"),
  [*((name, None) for name in SETTINGS), ("uniform", 7), ("frequency", 7), ("batch", 7)],
)
def test_the_corrected_denominator_is_unbiased(name, n_available):
  """Also where the last classes of a draw did not fit the token budget."""
  sampling = SETTINGS[name]
  estimates = _denominators(sampling, 6000, n_available=n_available)
  exact = _exact(sampling)
  p_values = [scipy.stats.ttest_1samp(estimates[:, i], exact[i]).pvalue for i in range(len(LABELS))]
  assert min(p_values) > LEVEL / len(p_values)


@pytest.mark.parametrize("name", ["hard", "frequency", "uniform"])
def test_without_a_correction_it_is_seen_to_be_biased(name):
  estimates = _denominators(SETTINGS[name], 500, correction="none")
  for i, exact in enumerate(_exact(SETTINGS[name])):
    assert scipy.stats.ttest_1samp(estimates[:, i], exact).pvalue < 1e-6


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_no_negative_of_an_image_moves_none_of_its_loss(name):
  sampling = SETTINGS[name]
  keys = jax.random.split(jax.random.key(9), 40)
  gradient = jax.jit(
    jax.vmap(jax.jacrev(lambda bank, key: _contrasts(sampling, key, bank)), in_axes=(None, 0))
  )(ARRAYS.bank, keys)
  moved = np.abs(np.asarray(gradient)).sum(axis=-1) > 0  # [draws, images, classes]
  drawn = np.asarray(jax.vmap(lambda key: _draw(sampling, key).ids)(keys))
  for i, label in enumerate(LABELS.tolist()):
    for d in range(len(keys)):
      negatives = set(drawn[d].tolist())
      if sampling.batch_positives:
        negatives |= set(LABELS.tolist())
      assert set(np.flatnonzero(moved[d, i])) == (negatives & _allowed(sampling, label)) | {label}


@pytest.mark.parametrize("name", SETTINGS)
def test_all_classes_need_no_weights(name):
  sampling = SETTINGS[name]
  estimates = _denominators(sampling, 2, k=N)
  np.testing.assert_allclose(estimates, [_exact(sampling)] * 2, rtol=1e-5)


def test_the_plain_draw_is_the_uniform_one():
  key = jax.random.key(2)
  draw = _draw(Sampling(), key)
  np.testing.assert_array_equal(draw.ids, sample_uniform(key, K, N))
  assert draw.log_weights is None


def test_all_uniform_samplers_agree_on_the_weights():
  draw = _draw(Sampling("hard", mix=1.0), jax.random.key(0))
  np.testing.assert_allclose(draw.log_weights, np.log(N / (K - 1)), rtol=1e-5)
  np.testing.assert_allclose(draw.own_log_weights, np.log(N / (K - 1)), rtol=1e-5)
  plain = _draw(Sampling(exclude="kin"), jax.random.key(0))
  np.testing.assert_allclose(plain.log_weights, np.log(N / (K - 1)), rtol=1e-6)


def test_hard_draws_near_classes_and_easy_far_ones():
  keys = jax.random.split(jax.random.key(1), 300)

  def mean_similarity(name):
    sampling = Sampling(name, temperature=0.1, mix=0.1)
    ids = jax.jit(jax.vmap(lambda key: _draw(sampling, key).ids))(keys)
    return float(np.mean((BANK @ BANK[LABELS].T).mean(axis=1)[np.asarray(ids)]))

  assert mean_similarity("hard") > mean_similarity("uniform") + 0.05
  assert mean_similarity("easy") < mean_similarity("uniform") - 0.05


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("name", "hardest"),
    ("anchors", "texts"),
    ("exclude", "all"),
    ("mix", 0.0),
    ("temperature", 0.0),
  ],
)
def test_settings_that_cannot_be_are_refused(field, value):
  with pytest.raises(ValueError, match=field):
    dataclasses.replace(Sampling(), **{field: value})
