"""Errors of the config: a wrong value, an unknown field, and the nearest known name."""

from collections.abc import Iterable, Mapping
import difflib
from typing import Any

from pomp_jax.errors import InputError
from pomp_jax.files.terminal import printable


class ConfigError(InputError):
  """A wrong field: one line with its name, the value and what is expected.

  Not a ValueError: ml_collections rewrites the message of a ValueError that a config
  file raises.
  """

  def __init__(self, field: str, got: Any, expected: str):
    super().__init__(f"config.{printable(field)}: got {got!r}, expected {expected}")
    self.field = field


class UnknownFieldError(ConfigError):
  """A field that does not exist: one line with its name and a hint."""

  def __init__(self, field: str, hint: str = ""):
    InputError.__init__(self, f"unknown field config.{printable(field)}{hint}")
    self.field = field


def near_match(name: str, known: Iterable[str]) -> str:
  """Returns a hint at the known name nearest to `name`, for the end of a message."""
  near = difflib.get_close_matches(name, list(known), 1)
  if not near or near[0] == name:
    return ""
  return f" (did you mean {printable(near[0], 80)!r}?)"


def require(fits: Any, field: str, value: Any, expected: str) -> None:
  """Raises ConfigError for a value that does not fit.

  Args:
    fits: whether the value fits.
    field: dotted name of the field to change.
    value: value of the field.
    expected: values that would fit, and the other field on which this depends.
  """
  if not fits:
    raise ConfigError(field, value, expected)


def check_name(field: str, known: Mapping[str, Any] | set[str]) -> None:
  """Raises UnknownFieldError for a field that does not exist, with the nearest name."""
  if field not in known:
    # Prefer any name with the same last part, whatever its group: `optim.lr` for `lr`,
    # and `steps` for `optim.steps`.
    same = [name for name in known if name.split(".")[-1] == field.split(".")[-1]]
    matches = difflib.get_close_matches
    near = matches(field, same, 1, 0.0) or matches(field, known, 1)
    raise UnknownFieldError(field, f" (did you mean config.{near[0]}?)" if near else "")
