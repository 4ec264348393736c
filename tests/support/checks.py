"""Agreement of arrays, equations of a traced program, and what functions are called
with."""

from collections.abc import Iterable, Iterator
import inspect
from typing import Any

import jax
from jax.extend import core
import numpy as np
import pytest


def assert_close(found, expected, tolerance: float = 1e-5) -> None:
  """Asserts equal shapes and max |found - expected| <= tolerance * max |expected|."""
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  assert found.shape == expected.shape
  np.testing.assert_allclose(
    found, expected, rtol=0, atol=tolerance * np.abs(expected).max()
  )


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """Yields every equation of a program, including those inside loops and calls."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.tree.leaves(equation.params, is_leaf=_is_program):
      if _is_program(inner):
        yield from equations(getattr(inner, "jaxpr", inner))


def _is_program(value) -> bool:
  return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


def spy(
  patch: pytest.MonkeyPatch, functions: Iterable[tuple[Any, str]]
) -> dict[str, Any]:
  """Calls functions (module or class, and name in it) as usual, and notes what they are
  given.

  Returns the arguments of the last call of each function, defaults included, by
  `function.argument`.
  """
  seen: dict[str, Any] = {}

  def noting(name, function):
    def call(*given, **more):
      bound = inspect.signature(function).bind(*given, **more)
      bound.apply_defaults()
      seen.update(
        {f"{name}.{argument}": value for argument, value in bound.arguments.items()}
      )
      return function(*given, **more)

    return call

  for owner, name in functions:
    patch.setattr(owner, name, noting(name, getattr(owner, name)))
  return seen
