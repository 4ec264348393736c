"""Every sampler with its correction, those of the study docs/studies/other_samplers.py
too.

Statistical tests have the level 1e-3 each and fixed seeds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

from docs.studies.other_samplers import OTHER_SAMPLERS
from pomp_jax.prompt.bank import Bank
from pomp_jax.prompt.loss import ContrastSettings, local_contrast
from pomp_jax.prompt.sampling.samplers import (
  SAMPLERS,
  SamplingArrays,
  SamplingSettings,
  complete_negatives,
  draw_negatives,
)
from tests.support.oracles import plain_inclusion, unit

pytestmark = pytest.mark.usefixtures("rows_of_studies")

LEVEL = 1e-3
N, K, E, SCALE = 40, 11, 6, 4.0
LABELS = np.array([3, 3, 17, 30], np.int32)

SETTINGS = {
  "uniform": SamplingSettings(),
  "posterior": SamplingSettings("posterior", mix=0.1, logit_scale=SCALE),
  "hard": SamplingSettings("hard", temperature=0.2, mix=0.3),
  "hard by images": SamplingSettings("hard", anchors="images", temperature=0.3),
  "easy": SamplingSettings("easy", temperature=0.5),
  "hierarchical": SamplingSettings("hierarchical", mix=0.4),
  "frequency": SamplingSettings("frequency", mix=0.1),
  "independent": SamplingSettings("independent", mix=0.3, logit_scale=SCALE),
  "independent, not kin, batch": SamplingSettings(
    "independent", mix=0.5, logit_scale=SCALE, exclude="kin", batch_positives=True
  ),
  "not the similar": SamplingSettings(exclude="similar", exclude_threshold=0.5),
  "not kin": SamplingSettings(exclude="kin"),
  "hard but not kin": SamplingSettings("hard", temperature=0.2, exclude="kin"),
  "batch": SamplingSettings(batch_positives=True),
  "hierarchical, not kin, batch": SamplingSettings(
    "hierarchical", exclude="kin", batch_positives=True
  ),
}

RNG = np.random.default_rng(0)
BANK = unit(RNG.normal(size=(N, E))).astype(np.float32)
IMAGES = unit(BANK[LABELS] + 0.5 * RNG.normal(size=(4, E))).astype(np.float32)
LOGITS = SCALE * IMAGES.astype(np.float64) @ BANK.T.astype(np.float64)
# Blocks of five are siblings, pairs are kin (told by one of the two alone).
ARRAYS = SamplingArrays(
  bank=Bank(jnp.asarray(BANK), N),
  frequency=jnp.asarray(np.arange(1, N + 1) / (N * (N + 1) / 2), jnp.float32),
  groups=jnp.asarray(np.arange(N)[:, None] // 5, jnp.int32),
  group_sizes=jnp.full(N // 5, 5, jnp.int32),
  kin=jnp.asarray(np.where(np.arange(N) % 2, np.arange(N) - 1, -1)[:, None], jnp.int32),
  levels=jnp.asarray(
    np.stack([np.arange(N) // 10, np.arange(N) // 2], axis=1), jnp.int32
  ),
)


def _allowed(sampling: SamplingSettings, label: int) -> set[int]:
  """The negatives that an image of a class has if all are drawn."""
  similar = {
    c for c in range(N) if float(BANK[c] @ BANK[label]) > sampling.exclude_threshold
  }
  kin = {label ^ 1}
  out = {"none": set(), "similar": similar, "kin": kin}[sampling.exclude]
  return set(range(N)) - {label} - out


def _draw(sampling, key, k=K, images=IMAGES):
  return draw_negatives(
    key,
    sampling,
    k=k,
    n_classes=N,
    labels_B=jnp.asarray(LABELS),
    images_BxE=jnp.asarray(images),
    arrays=ARRAYS,
  )


def _contrasts(sampling, key, bank, correction="log", k=K, n_available=None, **more):
  """The losses of the four images, each by itself, over one draw."""
  drawn, labels = _draw(sampling, key, k), jnp.asarray(LABELS)
  settings = ContrastSettings(k, N, correction, SCALE, sampling, **more)
  available = None if n_available is None else jnp.arange(drawn.ids.size) < n_available
  negatives = complete_negatives(sampling, ARRAYS, drawn, labels, available)
  classes = bank[negatives.ids]

  own = {"own_log_weights": negatives.own_log_weights, "rejected": negatives.rejected}
  if negatives.log_weights is not None and negatives.log_weights.ndim == 2:
    own["log_weights"] = negatives.log_weights

  def loss(image, label, own):
    one = negatives._replace(**own)
    return local_contrast(settings, image, bank[label], classes, label, one).loss

  rows = (IMAGES, labels, own)
  # [B, ..] -> [B, 1, ..]: groups of one image.
  return jax.vmap(loss)(*jax.tree.map(lambda row: jnp.asarray(row)[:, None], rows))


def _denominators(sampling, n_draws, **settings):
  """Estimates of the sum over the negatives, one row a draw, in units of the
  positive."""
  keys = jax.random.split(jax.random.key(5), n_draws)
  losses = jax.jit(
    jax.vmap(lambda key: _contrasts(sampling, key, jnp.asarray(BANK), **settings))
  )(keys)
  return np.expm1(np.asarray(losses, np.float64))


def _exact(sampling):
  return [
    sum(np.exp(LOGITS[i, c] - LOGITS[i, label]) for c in _allowed(sampling, label))
    for i, label in enumerate(LABELS.tolist())
  ]


@pytest.mark.parametrize("name", [*SAMPLERS, *OTHER_SAMPLERS])
def test_a_row_names_the_fields_that_the_sampler_reads(name):
  """By the program of a draw; tests/train/test_wiring.py has the power of
  `frequency`."""

  def program(**field):
    sampling = SamplingSettings(name, **field)
    return str(
      jax.make_jaxpr(lambda key: _draw(sampling, key)._asdict())(jax.random.key(0))
    )

  others = {"mix": 0.3, "temperature": 0.3, "anchors": "images"}
  found = {
    field for field, value in others.items() if program(**{field: value}) != program()
  }
  assert found == set(SAMPLERS[name].reads) - {"power"}


@pytest.mark.parametrize(
  ("name", "n_available"),
  [
    *((name, None) for name in SETTINGS),
    *((name, 7) for name in ("uniform", "frequency", "batch", "independent")),
  ],
)
def test_the_corrected_denominator_is_unbiased(name, n_available):
  """Also where the last classes of a draw did not fit the token budget."""
  sampling = SETTINGS[name]
  estimates = _denominators(sampling, 6000, n_available=n_available)
  exact = _exact(sampling)
  p_values = [
    scipy.stats.ttest_1samp(estimates[:, i], exact[i]).pvalue
    for i in range(len(LABELS))
  ]
  assert min(p_values) > LEVEL / len(p_values)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_sigmoid_loss_and_its_gradient_are_unbiased(name):
  sampling, bias = SETTINGS[name], -2.0
  direction = np.random.default_rng(7).normal(size=BANK.shape).astype(np.float32)

  def along(step, key):
    bank = jnp.asarray(BANK) + step * direction
    return _contrasts(sampling, key, bank, loss="sigmoid", logit_bias=bias)

  both = jax.jit(jax.vmap(lambda key: jax.jvp(lambda s: along(s, key), (0.0,), (1.0,))))
  values, slopes = both(jax.random.split(jax.random.key(6), 6000))

  def exact(step):
    rows = BANK.astype(np.float64) + step * direction
    logits = (
      SCALE * IMAGES @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T + bias
    )
    return np.array(
      [
        np.logaddexp(0, -logits[i, label])
        + sum(np.logaddexp(0, logits[i, c]) for c in _allowed(sampling, label))
        for i, label in enumerate(LABELS.tolist())
      ]
    )

  slope = (exact(1e-6) - exact(-1e-6)) / 2e-6
  for found, expected in ((values, exact(0.0)), (slopes, slope)):
    found = np.asarray(found, np.float64)
    p_values = [
      scipy.stats.ttest_1samp(found[:, i], expected[i]).pvalue for i in range(4)
    ]
    assert min(p_values) > LEVEL / 8


@pytest.mark.parametrize(
  "name",
  [
    name
    for name, s in SETTINGS.items()
    if name != "uniform" and s.name != "independent"
  ],
)
def test_weights_are_inverse_inclusion_probabilities_of_the_mixture(name):
  """Of the classes drawn and of the images' own; any mixture would leave sums
  unbiased."""
  sampling = SETTINGS[name]
  propose = SAMPLERS[sampling.name].propose
  q_N = np.full(N, 1 / N)
  if propose is not None:
    found = propose(sampling, ARRAYS, jnp.asarray(LABELS), jnp.asarray(IMAGES))
    q_N = sampling.mix / N + (1 - sampling.mix) * np.asarray(found, np.float64)
  log_weights_N = -np.log(plain_inclusion(q_N, K - 1))
  # Compiled: XLA may then compute one probability twice with different rounding.
  drawn = jax.jit(lambda key: _draw(sampling, key))(jax.random.key(0))
  np.testing.assert_allclose(
    drawn.log_weights, log_weights_N[drawn.ids], rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    drawn.own_log_weights, log_weights_N[LABELS], rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("n_available", [None, 7])
def test_independent_draws_are_an_image_s_own(n_available):
  """K-1 of each image, weighted by its own probabilities and the number of its draws
  kept."""
  sampling = SETTINGS["independent"]
  drawn = _draw(sampling, jax.random.key(0))
  available = None if n_available is None else jnp.arange(drawn.ids.size) < n_available
  found = complete_negatives(sampling, ARRAYS, drawn, jnp.asarray(LABELS), available)
  image = np.tile(np.arange(len(LABELS)), K - 1)
  own_BxS = image == np.arange(len(LABELS))[:, None]
  np.testing.assert_array_equal(found.log_weights > -np.inf, own_BxS)
  others = np.where(LABELS[:, None] == np.arange(N), -np.inf, LOGITS)
  shares = scipy.special.softmax(others, axis=1)
  q_S = (0.3 / (N - 1) + 0.7 * shares)[image, drawn.ids]
  n_kept = (
    np.full(len(LABELS), K - 1) if n_available is None else np.array([2, 2, 2, 1])
  )
  log_weights_S = np.max(found.log_weights, axis=0)
  np.testing.assert_allclose(log_weights_S, -np.log(q_S * n_kept[image]), rtol=1e-4)
  assert not np.any(np.asarray(drawn.ids) == LABELS[image])


@pytest.mark.parametrize("n_available", [K - 1, 7])
def test_top_is_the_classes_of_most_mass_each_with_weight_1(n_available):
  """Also where those of least mass did not fit the token budget."""
  shares = scipy.special.softmax(LOGITS, axis=1)
  shares[np.arange(len(LABELS)), LABELS] = 0.0
  top = np.argsort(-shares.sum(axis=0))[:n_available].tolist()
  expected = [
    sum(np.exp(LOGITS[i, c] - LOGITS[i, label]) for c in top if c != label)
    for i, label in enumerate(LABELS)
  ]
  sampling = SamplingSettings("top", mix=1.0, logit_scale=SCALE)
  found = _denominators(sampling, 1, n_available=n_available)[0]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
  "name", ["uniform", "hard", "not the similar", "batch", "independent"]
)
def test_all_classes_need_no_weights(name):
  sampling = SETTINGS[name]
  estimates = _denominators(sampling, 2, k=N)
  np.testing.assert_allclose(estimates, [_exact(sampling)] * 2, rtol=1e-5)


@pytest.mark.parametrize("name", ["uniform", "not kin", "batch"])
def test_kinds_are_those_of_the_images_classes_and_of_the_negatives(name):
  sampling = SETTINGS[name]
  drawn = _draw(sampling, jax.random.key(0))
  found = complete_negatives(sampling, ARRAYS, drawn, jnp.asarray(LABELS))
  for kinds, ids in ((found.own_kinds, LABELS), (found.kinds, np.asarray(found.ids))):
    np.testing.assert_array_equal(kinds, np.stack([ids // 10, ids // 2], axis=1))


def _propose(settings, labels, images, **arrays):
  arrays = SamplingArrays(**jax.tree.map(jnp.asarray, arrays))
  images = jnp.asarray(images, jnp.float32)
  return SAMPLERS[settings.name].propose(settings, arrays, jnp.asarray(labels), images)


@pytest.mark.parametrize("name, temperature", [("hard", 0.1), ("easy", -0.3)])
def test_similarity_is_the_mean_of_the_images_softmaxes(name, temperature):
  labels = np.array([2, 2, 5, 0], np.int32)
  rng = np.random.default_rng(0)
  bank, anchors = unit(rng.normal(size=(9, 4))), unit(rng.normal(size=(4, 4)))
  logits = np.where(
    labels[:, None] == np.arange(9), -np.inf, anchors @ bank.T / temperature
  )
  expected = scipy.special.softmax(logits, axis=1).mean(axis=0)
  settings = SamplingSettings(name, temperature=abs(temperature), anchors="images")
  found = _propose(settings, labels, anchors, bank=Bank(bank.astype(np.float32), 9))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert found.sum() == pytest.approx(1)


def test_posterior_is_the_share_of_a_class_in_the_exact_gradient():
  """Of sum_i loss_i: the derivative by the logit of a class, over the images of
  other classes."""
  labels = np.array([2, 2, 5, 0])
  rng = np.random.default_rng(3)
  bank, images = unit(rng.normal(size=(9, 4))), unit(rng.normal(size=(4, 4)))
  logits = torch.tensor(7.0 * images @ bank.T, requires_grad=True)
  torch.nn.functional.cross_entropy(
    logits, torch.tensor(labels), reduction="sum"
  ).backward()
  shares = np.where(labels[:, None] == np.arange(9), 0.0, logits.grad.numpy()).sum(
    axis=0
  )
  found = _propose(
    SamplingSettings("posterior", logit_scale=7.0),
    labels.astype(np.int32),
    images,
    bank=Bank(bank.astype(np.float32), 9),
  )
  np.testing.assert_allclose(found, shares / shares.sum(), rtol=1e-4)


def test_posterior_of_images_that_are_certain_draws_uniformly():
  sampling = SamplingSettings("posterior", mix=0.1, logit_scale=1e4)
  q_N = _propose(sampling, LABELS, BANK[LABELS], bank=Bank(BANK, N))
  np.testing.assert_array_equal(q_N, np.zeros(N))
  drawn = _draw(sampling, jax.random.key(0), images=BANK[LABELS])
  np.testing.assert_allclose(drawn.log_weights, np.log(N / (K - 1)), rtol=1e-5)


def test_siblings_are_drawn_through_a_group_of_the_image():
  groups = [{0, 1, 2}, {2, 3}, {4, 5, 6, 7}]
  of_class = [[g for g, members in enumerate(groups) if c in members] for c in range(9)]
  groups_NxG = np.full((9, 2), -1, np.int32)
  for c, own in enumerate(of_class):
    groups_NxG[c, : len(own)] = own
  labels = np.array([2, 2, 5, 8], np.int32)  # class 8 has no group
  expected = np.zeros(9)
  for label in labels:
    if not of_class[label]:
      expected += 1 / 9 / 4
    for g in of_class[label]:
      for c in groups[g] - {int(label)}:
        expected[c] += 1 / 4 / len(of_class[label]) / (len(groups[g]) - 1)
  sizes = np.array([len(members) for members in groups], np.int32)
  settings = SamplingSettings("hierarchical")
  found = _propose(
    settings, labels, np.zeros((4, 1)), groups=groups_NxG, group_sizes=sizes
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
  assert found.sum() == pytest.approx(1)
