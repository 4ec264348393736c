"""The one measure of agreement that the tests use: the largest error over the largest value."""

import numpy as np


def assert_close(found, expected, tolerance: float = 1e-5) -> None:
  """Holds max |found - expected| <= tolerance * max |expected|, and the same shape."""
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  assert found.shape == expected.shape
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
