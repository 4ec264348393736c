"""What a traced JAX program consists of."""

from collections.abc import Iterator

import jax
from jax.extend import core


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """Every equation of a program, those inside its loops and calls included."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.tree.leaves(equation.params, is_leaf=_is_program):
      if _is_program(inner):
        yield from equations(getattr(inner, "jaxpr", inner))


def _is_program(value) -> bool:
  return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
