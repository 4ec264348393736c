"""Agreement of arrays, and the equations of a traced program."""

from collections.abc import Iterator

import jax
from jax.extend import core
import numpy as np


def assert_close(found, expected, tolerance: float = 1e-5) -> None:
  """Asserts equal shapes and max |found - expected| <= tolerance * max |expected|."""
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  assert found.shape == expected.shape
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """Yields every equation of a program, including those inside loops and calls."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.tree.leaves(equation.params, is_leaf=_is_program):
      if _is_program(inner):
        yield from equations(getattr(inner, "jaxpr", inner))


def _is_program(value) -> bool:
  return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
