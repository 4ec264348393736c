"""Top-k by blocks, and rows of fewer bits, against NumPy."""

import numpy as np
import pytest
import scipy.special

from pomp_jax.rooms.certainty import heads
from tests.rooms.certainty.answers import unit_rows


@pytest.fixture(scope="module")
def case():
  rng = np.random.default_rng(0)
  rows = unit_rows(rng.normal(size=(53, 16)))
  rows[40] = rows[3]  # equal scores
  return unit_rows(rng.normal(size=(9, 16))), rows


@pytest.mark.parametrize("block", [1, 7, 53, 100])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_the_best_are_those_of_a_sort(case, block, kind):
  features, rows = case
  stored = heads.rows_of(rows, kind)
  values = stored.values.astype(np.float64)
  if stored.scales is not None:
    values *= stored.scales[:, None]
  probabilities = scipy.special.softmax(20 * features @ values.T, axis=1)
  found = heads.top_k(features, stored, 20.0, 5, block=block)
  order = np.argsort(-probabilities.round(7), axis=1, kind="stable")[:, :5]
  expected = np.take_along_axis(probabilities, order, axis=1)
  np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4)
  np.testing.assert_array_equal(found.labels, order)
  whole = heads.probabilities(features, stored, 20.0, block=block)
  np.testing.assert_allclose(whole, probabilities, atol=1e-6)


def test_of_equal_ones_the_first_is_best(case):
  _, rows = case
  for block in (5, 100):
    stored = heads.rows_of(rows, "float32")
    found = heads.top_k(rows[[3]], stored, 1.0, 2, block=block)
    assert found.labels.tolist() == [[3, 40]]


def test_more_answers_than_classes(case):
  features, rows = case
  found = heads.top_k(features, heads.rows_of(rows[:3], "float32"), 20.0, 5)
  assert found.labels.shape == (9, 3)
  assert found.probabilities.sum(1) == pytest.approx(1)


def test_rows_of_fewer_bits(case):
  _, rows = case
  int8 = heads.rows_of(rows, "int8")
  again = int8.values * int8.scales[:, None]
  assert np.abs(again - rows).max() <= np.abs(rows).max() / 254 + 1e-7
  assert (int8.n_bytes, heads.rows_of(rows, "float16").n_bytes) == (
    53 * 16 + 53 * 4,
    53 * 16 * 2,
  )
  assert int8.part([2, 5]).scales.tolist() == int8.scales[[2, 5]].tolist()


def test_agreement_counts_the_same_answers(case):
  features, rows = case
  own = heads.rows_of(rows, "float32")
  other = heads.rows_of(np.roll(rows, 1, axis=0), "float32")
  assert heads.agreement(features, own, own) == 1
  assert heads.agreement(features, own, other) == 0


def test_the_line_of_sizes():
  rows = heads.Rows(np.zeros((10, 4), np.int8), np.zeros(10, np.float32))
  assert heads.size_line(rows, 331_200_000) == "head 0.00 MB (int8), model 0.33 GB"
