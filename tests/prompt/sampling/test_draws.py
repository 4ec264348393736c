"""Draws without replacement: uniform, and by given probabilities with unbiased sums.

Each statistical test has the level 1e-3 over all its comparisons; the seeds are fixed.
"""

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

from pomp_jax.prompt import sampling
from pomp_jax.prompt.sampling.draws import inclusion_probabilities, sample_weighted
from tests.support.checks import equations
from tests.support.oracles import plain_inclusion

LEVEL = 1e-3


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draws(k: int, n_classes: int, n_draws: int, seed: jax.Array) -> jax.Array:
  keys = jax.random.split(jax.random.key(seed), n_draws)
  return jax.vmap(lambda key: sampling.sample_uniform(key, k, n_classes))(keys)


@st.composite
def _sizes(draw):
  n_classes = draw(st.integers(2, 200))
  return draw(st.integers(2, n_classes)), n_classes


@hypothesis.settings(max_examples=2)  # every pair of sizes is compiled
@hypothesis.given(sizes=_sizes(), seed=st.integers(0, 2**31 - 1))
@hypothesis.example(sizes=(2, 200), seed=0)
@hypothesis.example(sizes=(7, 7), seed=0)
@hypothesis.example(sizes=(51, 200), seed=0)  # 4 * 50 = 200: the last size drawn by rejection
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
    sampling.sample_uniform(jax.random.key(0), k, n_classes)


def _uniformity(draws: np.ndarray, n_classes: int) -> float:
  """p of the chi-square of how often each class is drawn.

  With p = size / N, the counts of R draws without replacement have variance R p (1 - p) and
  covariance -R p (1 - p) / (N - 1), so that the sum below is chi-square with N - 1 degrees.
  """
  counts = np.bincount(draws.ravel(), minlength=n_classes)
  share = draws.shape[1] / n_classes
  variance = len(draws) * share * (1 - share)
  statistic = np.sum((counts - len(draws) * share) ** 2) / variance * (n_classes - 1) / n_classes
  return scipy.stats.chi2.sf(statistic, n_classes - 1)


@pytest.mark.parametrize(
  ("k", "n_classes", "n_draws"),
  [(16, 200, 4000), (51, 200, 2000), (60, 200, 2000), (2, 40, 8000), (20, 21, 4000)],
  ids=["few of many", "a quarter", "above a quarter", "one", "all but two"],
)
def test_every_class_is_as_likely(k, n_classes, n_draws):
  draws = np.asarray(_draws(k, n_classes, n_draws, 3))
  # Too even would be as wrong as too uneven.
  assert LEVEL < _uniformity(draws, n_classes) < 1 - LEVEL
  # And so at the first and at the last place of a draw.
  assert _uniformity(draws[:, :1], n_classes) > LEVEL
  assert _uniformity(draws[:, -1:], n_classes) > LEVEL


@pytest.mark.parametrize(
  ("k", "n_classes"), [(4, 12), (4, 6)], ids=["by rejection", "by permutation"]
)
def test_every_subset_is_as_likely(k, n_classes):
  # Of three classes: so all pairs are as likely too.
  subsets = {s: i for i, s in enumerate(itertools.combinations(range(n_classes), k - 1))}
  draws = np.sort(np.asarray(_draws(k, n_classes, 20 * len(subsets) + 1000, 1)), axis=1)
  counts = np.bincount([subsets[tuple(row)] for row in draws.tolist()], minlength=len(subsets))
  assert len(counts) == math.comb(n_classes, k - 1)
  assert LEVEL < scipy.stats.chisquare(counts).pvalue < 1 - LEVEL


def test_a_draw_with_too_few_distinct_classes_is_drawn_again(monkeypatch):
  # So rare (below 1e-7 at any size) that it has to be forced: the first ids drawn are all equal.
  first = []
  honest = jax.random.randint

  def randint(key, *arguments):
    data = jax.random.key_data(key)
    if not first:
      first.append(data)
    return jnp.where(jnp.all(data == first[0]), 7, honest(key, *arguments))

  key = jax.random.key(5)
  usual = sampling.sample_uniform(key, 11, 100)
  monkeypatch.setattr(jax.random, "randint", randint)
  draw = np.asarray(sampling.sample_uniform(key, 11, 100))
  assert first
  assert len(set(draw.tolist())) == 10
  assert not np.array_equal(draw, usual)


def test_the_draw_is_a_function_of_seed_step_and_group():
  @jax.jit
  def draw(seed, step, group):
    return sampling.sample_uniform(sampling.draw_key(jax.random.key(seed), step, group), 9, 1000)

  cases = list(itertools.product(range(2), range(4), range(4)))
  drawn = [tuple(draw(*case).tolist()) for case in cases]
  assert drawn == [tuple(draw(*case).tolist()) for case in reversed(cases)][::-1]
  assert len(set(drawn)) == len(cases)


def test_a_million_classes_need_no_array_of_their_number():
  def largest(k, n_classes):
    draw = functools.partial(sampling.sample_uniform, k=k, n_classes=n_classes)
    program = jax.make_jaxpr(draw)(jax.random.key(0)).jaxpr
    return max(
      getattr(variable.aval, "size", 1)
      for equation in equations(program)
      for variable in [*equation.invars, *equation.outvars]
    )

  assert largest(1000, 10**6) == largest(1000, 10**5) < 3000
  # The measurement sees the permutation, which does need one.
  assert largest(600, 1000) >= 1000
  draw = np.asarray(sampling.sample_uniform(jax.random.key(0), 1000, 10**6))
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
@pytest.mark.parametrize(("n_classes", "size"), [(30, 1), (30, 8), (30, 29), (20_000, 999)])
def test_a_draw_has_its_size_and_holds_what_is_certain(kind, n_classes, size):
  q_N = _q(kind, n_classes)
  ids, log_pi = (np.asarray(part) for part in _weighted_draws(jnp.asarray(q_N), size, 50, 1))
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
  ids = np.asarray(_weighted_draws(jnp.asarray(q_N), size, n_draws, 2)[0])
  pi_N = plain_inclusion(q_N, size)
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


def _sets(q_N: np.ndarray, size: int) -> dict[tuple[int, ...], float]:
  """Probability of every set of classes, each order and each start on the line enumerated.

  For each order, the unit interval of the start falls into pieces of one set each.
  """
  pi_N, orders = plain_inclusion(q_N, size), list(itertools.permutations(range(len(q_N))))
  found: dict[tuple[int, ...], float] = collections.defaultdict(float)
  for order in orders:
    ends = np.concatenate([[0.0], np.cumsum(pi_N[list(order)])])
    edges = np.unique(np.concatenate([[0.0, 1.0], ends % 1.0]))
    for low, high in itertools.pairwise(edges):
      if high - low < 1e-12:
        continue
      places = np.searchsorted(ends, (low + high) / 2 + np.arange(size), side="right") - 1
      found[tuple(sorted(order[place] for place in places))] += (high - low) / len(orders)
  assert sum(found.values()) == pytest.approx(1, rel=1e-12)
  return found


def test_every_set_is_drawn_as_often_as_enumerated():
  """Pairs and triples too: systematic sampling in a random order, not some other one."""
  q_N, size, n_draws = np.array([0.4, 0.22, 0.16, 0.1, 0.08, 0.04]), 3, 40_000
  ids = np.sort(np.asarray(_weighted_draws(jnp.asarray(q_N), size, n_draws, 5)[0]), axis=1)
  sets = {members: p for members, p in _sets(q_N, size).items() if p > 1e-9}
  counts = collections.Counter(map(tuple, ids.tolist()))
  assert set(counts) <= set(sets)
  seen = np.array([counts[members] for members in sets])
  expected = n_draws * np.array(list(sets.values())) / sum(sets.values())
  often = expected > 5
  assert often.sum() > len(q_N)
  assert (
    scipy.stats.chisquare(
      [*seen[often], seen[~often].sum() + 1e-9], [*expected[often], expected[~often].sum() + 1e-9]
    ).pvalue
    > LEVEL
  )
