"""Arguments that functions are called with while a job runs, for tests of its config's fields."""

from collections.abc import Iterable
import inspect
from typing import Any

import pytest


def spy(patch: pytest.MonkeyPatch, functions: Iterable[tuple[Any, str]]) -> dict[str, Any]:
  """Calls functions as usual, and notes what they are given.

  Args:
    patch: where the functions are replaced.
    functions: module or class, and name in it.

  Returns:
    The arguments of the last call of each function, defaults included, by `function.argument`.
  """
  seen: dict[str, Any] = {}
  for owner, name in functions:
    patch.setattr(owner, name, _noting(getattr(owner, name), name, seen))
  return seen


def _noting(function, name, seen):
  signature = inspect.signature(function)

  def noting(*given, **more):
    bound = signature.bind(*given, **more)
    bound.apply_defaults()
    seen.update({f"{name}.{argument}": value for argument, value in bound.arguments.items()})
    return function(*given, **more)

  return noting
