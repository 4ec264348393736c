"""Choices of items by number."""

import pytest

from pomp_jax.data.subsets import spread_evenly


@pytest.mark.parametrize(
  ("count", "total", "expected"),
  [
    (1, 7, [0]),
    (2, 5, [0, 2]),
    # The distances differ where the count does not divide the total.
    (4, 10, [0, 2, 5, 7]),
    (3, 8, [0, 2, 5]),
    (5, 5, [0, 1, 2, 3, 4]),
    (6, 5, [0, 1, 2, 3, 4]),
    (0, 3, [0, 1, 2]),
    (2, 0, []),
  ],
)
def test_some_are_spread_over_all(count, total, expected):
  assert spread_evenly(count, total).tolist() == expected
