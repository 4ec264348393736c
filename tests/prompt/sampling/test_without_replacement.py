"""Draws without replacement; statistical tests have the level 1e-3 each, with fixed
seeds."""

import collections
import functools
import itertools
import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from pomp_jax.prompt.sampling import without_replacement
from pomp_jax.prompt.sampling.without_replacement import (
  inclusion_probabilities,
  sample_weighted,
)
from tests.support.checks import assert_close, equations
from tests.support.oracles import plain_inclusion

LEVEL = 1e-3


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draws(k: int, n_classes: int, n_draws: int, seed: jax.Array) -> jax.Array:
  keys = jax.random.split(jax.random.key(seed), n_draws)
  return jax.vmap(lambda key: without_replacement.sample_uniform(key, k, n_classes))(
    keys
  )


@st.composite
def _sizes(draw):
  n_classes = draw(st.integers(2, 200))
  return draw(st.integers(2, n_classes)), n_classes


@hypothesis.settings(max_examples=2)  # every pair of sizes is compiled
@hypothesis.given(sizes=_sizes(), seed=st.integers(0, 2**31 - 1))
@hypothesis.example(sizes=(2, 200), seed=0)
@hypothesis.example(sizes=(7, 7), seed=0)
# 4 * 50 = 200: the last size drawn by rejection
@hypothesis.example(sizes=(51, 200), seed=0)
@hypothesis.example(sizes=(52, 200), seed=0)
@hypothesis.example(sizes=(199, 200), seed=0)
def test_a_draw_holds_distinct_classes_in_range(sizes, seed):
  k, n_classes = sizes
  draws = np.asarray(_draws(k, n_classes, 30, seed))
  size = n_classes if k == n_classes else k - 1
  assert draws.shape == (30, size)
  assert draws.dtype == np.int32
  assert draws.min() >= 0
  assert draws.max() < n_classes
  assert all(len(set(row)) == size for row in draws.tolist())


@pytest.mark.parametrize(("k", "n_classes"), [(1, 5), (0, 5), (-3, 5), (6, 5)])
def test_a_k_that_cannot_be_drawn_is_refused(k, n_classes):
  with pytest.raises(ValueError, match=f"k: got {k}"):
    without_replacement.sample_uniform(jax.random.key(0), k, n_classes)


@pytest.mark.parametrize(
  ("k", "n_classes"), [(4, 12), (4, 6)], ids=["by rejection", "by permutation"]
)
def test_every_subset_is_as_likely(k, n_classes):
  # Of three classes: so all pairs are as likely too. And every class, at any place of
  # the draw.
  subsets = {
    s: i for i, s in enumerate(itertools.combinations(range(n_classes), k - 1))
  }
  draws = np.asarray(_draws(k, n_classes, 20 * len(subsets) + 1000, 1))
  for place in (0, -1):
    counts = np.bincount(draws[:, place], minlength=n_classes)
    assert scipy.stats.chisquare(counts).pvalue > LEVEL
  draws = np.sort(draws, axis=1)
  counts = np.bincount(
    [subsets[tuple(row)] for row in draws.tolist()],
    minlength=len(subsets),
  )
  assert len(counts) == math.comb(n_classes, k - 1)
  assert LEVEL < scipy.stats.chisquare(counts).pvalue < 1 - LEVEL


def test_a_draw_with_too_few_distinct_classes_is_drawn_again(monkeypatch):
  # So rare (below 1e-7 at any size) that it has to be forced: the first ids drawn are
  # all equal.
  first = []
  honest = jax.random.randint

  def randint(key, *arguments):
    data = jax.random.key_data(key)
    if not first:
      first.append(data)
    return jnp.where(jnp.all(data == first[0]), 7, honest(key, *arguments))

  key = jax.random.key(5)
  usual = without_replacement.sample_uniform(key, 11, 100)
  monkeypatch.setattr(jax.random, "randint", randint)
  draw = np.asarray(without_replacement.sample_uniform(key, 11, 100))
  assert first
  assert len(set(draw.tolist())) == 10
  assert not np.array_equal(draw, usual)


def test_the_draw_is_a_function_of_seed_step_and_group():
  @jax.jit
  def draw(seed, step, group):
    return without_replacement.sample_uniform(
      without_replacement.draw_key(jax.random.key(seed), step, group), 9, 1000
    )

  cases = list(itertools.product(range(2), range(4), range(4)))
  drawn = [tuple(draw(*case).tolist()) for case in cases]
  assert drawn == [tuple(draw(*case).tolist()) for case in reversed(cases)][::-1]
  assert len(set(drawn)) == len(cases)


def test_a_million_classes_need_no_array_of_their_number():
  def largest(k, n_classes):
    draw = functools.partial(
      without_replacement.sample_uniform, k=k, n_classes=n_classes
    )
    program = jax.make_jaxpr(draw)(jax.random.key(0)).jaxpr
    return max(
      getattr(variable.aval, "size", 1)
      for equation in equations(program)
      for variable in [*equation.invars, *equation.outvars]
    )

  assert largest(1000, 10**6) == largest(1000, 10**5) < 3000
  # The measurement sees the permutation, which does need one.
  assert largest(600, 1000) >= 1000
  draw = np.asarray(without_replacement.sample_uniform(jax.random.key(0), 1000, 10**6))
  assert len(np.unique(draw)) == 999
  assert draw.max() > 900_000


@functools.partial(jax.jit, static_argnums=(1, 2))
def _weighted_draws(q_N, size, n_draws, seed):
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 8, 29])
def test_inclusion_probabilities_are_capped_and_add_up(kind, size):
  q_N = _q(kind, 30)
  found = np.asarray(inclusion_probabilities(jnp.asarray(q_N, jnp.float32), size))
  np.testing.assert_allclose(found, plain_inclusion(q_N, size), rtol=2e-5)
  assert found.sum() == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  ("n_classes", "size"), [(30, 1), (30, 8), (30, 29), (20_000, 999)]
)
def test_a_draw_has_its_size_and_holds_what_is_certain(kind, n_classes, size):
  q_N = _q(kind, n_classes)
  ids, log_pi = (
    np.asarray(part) for part in _weighted_draws(jnp.asarray(q_N), size, 50, 1)
  )
  assert ids.min() >= 0
  assert ids.max() < n_classes
  assert all(len(set(row)) == size for row in ids.tolist())
  certain = np.flatnonzero(log_pi == 0)
  assert all(set(certain) <= set(row) for row in ids.tolist())
  # The weights are of the draw that was made: its lengths add up to its size.
  assert np.exp(log_pi.astype(np.float64)).sum() == pytest.approx(size, rel=1e-5)


def test_classes_without_probability_are_not_drawn_and_have_finite_weights():
  """As an image's own class their weight is added too."""
  q_N = jnp.asarray([0.0] * 3 + [1 / 9] * 9)
  ids, log_pi = _weighted_draws(q_N, 4, 50, 1)
  assert set(np.unique(ids)) == set(range(3, 12))
  assert_close(log_pi[3:], np.full(9, math.log(4 / 9)))
  assert np.isfinite(log_pi).all() and (log_pi[:3] < -20).all()


@pytest.mark.parametrize("n_positive", [1, 2, 29, 999])
def test_as_many_classes_as_have_a_probability_are_all_drawn(n_positive):
  """Rounding made the last of them a little shorter than a turn, and the error a
  turn too long."""
  for seed in range(10):
    q_N = (
      np.random.default_rng(seed).dirichlet(np.ones(n_positive)).astype(np.float32)
      + 1e-4
    )
    ids, log_pi = _weighted_draws(jnp.asarray([*q_N, 0.0]), n_positive, 20, seed)
    assert all(
      sorted(row) == list(range(n_positive)) for row in np.asarray(ids).tolist()
    )
    np.testing.assert_array_equal(log_pi[:n_positive], 0.0)


def test_all_classes_but_one_are_drawn_by_nearly_equal_probabilities():
  """Each is 5e-5 below certain, and all rounding errors together are more than that."""
  q_N = np.random.default_rng(0).uniform(1.0, 1.0 + 1e-5, 20_000).astype(np.float32)
  ids = np.asarray(_weighted_draws(jnp.asarray(q_N), 19_999, 8, 0)[0])
  assert all(len(set(row)) == 19_999 for row in ids.tolist())
  missing = [set(range(20_000)) - set(row) for row in ids.tolist()]
  assert len(set.union(*missing)) == 8


def test_every_set_is_drawn_as_often_as_by_plain_systematic_sampling():
  """Pairs and triples too: in a random order, with a random start, and not some
  other way."""
  q_N, size, n_draws = np.array([0.4, 0.22, 0.16, 0.1, 0.08, 0.04]), 3, 40_000
  ids = np.asarray(_weighted_draws(jnp.asarray(q_N), size, n_draws, 5)[0])
  found = collections.Counter(tuple(sorted(row)) for row in ids.tolist())
  pi_N, rng = plain_inclusion(q_N, size), np.random.default_rng(0)
  expected: collections.Counter = collections.Counter()
  for _ in range(n_draws):
    order = rng.permutation(len(q_N))
    points = np.cumsum(pi_N[order]).searchsorted(
      rng.uniform() + np.arange(size), side="right"
    )
    expected[tuple(sorted(order[points].tolist()))] += 1
  often = [members for members, count in expected.items() if count > 10]
  assert (
    len(often) > len(q_N) and sum(found[members] for members in often) > 0.999 * n_draws
  )
  table = [[counts[members] for members in often] for counts in (found, expected)]
  assert scipy.stats.chi2_contingency(table).pvalue > LEVEL
