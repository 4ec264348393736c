"""Rows of the table of fields: types, and what a value must fit."""

from collections.abc import Callable, Mapping
import dataclasses
import math
import typing
from typing import Any, NamedTuple

from pomp_jax.config.errors import ConfigError, near_match
from pomp_jax.files.paths import problem_of


class Check(NamedTuple):
  """A test of one value.

  Attributes:
    accepts: whether a value passes.
    expected: noun phrase for the message, such as "1 or more".
    choices: valid texts; the message suggests the one nearest to a wrong value.
  """

  accepts: Callable[[Any], bool]
  expected: str
  choices: tuple[str, ...] = ()


anything = Check(lambda value: True, "")
MAX_SEED = 2**32 - 1
pair = Check(
  lambda pair: not pair or (len(pair) == 2 and 1 <= pair[0] <= pair[1]),
  "two integers from 1 on, the first not above the second, or nothing",
)


def one_of(*choices: str) -> Check:
  """Accepts one of the given texts."""
  return Check(choices.__contains__, f"one of {', '.join(choices)}", choices)


def at_least(least: float | int) -> Check:
  """Accepts a finite number that is at least `least`; rejects NaN."""
  return Check(lambda value: least <= value < math.inf, f"{least} or more")


def between(low: float | int, high: float | int) -> Check:
  """Accepts a number in the closed interval [low, high]."""
  return Check(lambda value: low <= value <= high, f"{low} to {high}")


def above(low: float | int, most: float | int = math.inf) -> Check:
  """Accepts a finite number above `low` and at most `most`."""
  bound = "" if most == math.inf else f" and at most {most}"
  return Check(
    lambda value: low < value <= most and value < math.inf, f"above {low}{bound}"
  )


def below(high: float | int) -> Check:
  """Accepts a number in the half-open interval [0, high)."""
  return Check(lambda value: 0 <= value < high, f"0 or more and below {high}")


def row(
  default: Any,
  help: str,
  check: Check = anything,
  parse: Callable[[str], Any] = str,
  spellings: Mapping[str, Any] = {},
) -> Any:
  """Declares one field of a group: a dataclass field with the table's row as metadata.

  Args:
    default: value if the user sets none.
    help: noun phrase with the unit, for `--help` and docs/reference/config.md.
    check: test of a value.
    parse: reads an item of a tuple from text.
    spellings: value by the lower-case text that stands for it. A field with a spelling
      "true" is a flag as well.
  """
  metadata = {
    "check": check,
    "help": help,
    "parse": parse,
    "spellings": spellings,
  }
  return dataclasses.field(default=default, metadata=metadata)


def typed(field: str, kind: Any, value: Any) -> Any:
  """Returns a value in a field's type: an integer as a float, and a list as a tuple.

  Args:
    field: dotted name, for the message.
    kind: type of the field, such as `int` or `tuple[str, ...]`.
    value: value of any type.

  Raises:
    ConfigError: the value is of another type.
  """
  if kind in (bool, int, float, str):
    if kind is float and type(value) is int:
      return float(value)
    # `isinstance` would take a bool for an int.
    if type(value) is kind:
      return value
  elif isinstance(value, list | tuple):
    items = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    kind_of_items = kind.__args__[0]
    # `isinstance` does not take an item type `tuple[int, int]`, but its origin `tuple`.
    kind_of_items = typing.get_origin(kind_of_items) or kind_of_items
    fits = [
      isinstance(item, kind_of_items) and not isinstance(item, bool) for item in items
    ]
    if all(fits):
      return items
  raise ConfigError(field, value, f"a value of type {name_of_type(kind)}")


def name_of_type(kind: Any) -> str:
  """Name of a type for messages, such as `int` or `tuple[str, ...]`."""
  return str(kind) if typing.get_args(kind) else kind.__name__


def check_value(field: str, check: Check, value: Any) -> None:
  """Checks one value by its row.

  Args:
    field: dotted name, for the message.
    check: test of the row.
    value: value in the field's type.

  Raises:
    ConfigError: a URL has an unknown scheme, or the value fails the check.
  """
  items = value if isinstance(value, tuple) else (value,)
  for item in items:
    if isinstance(item, str):
      problem = problem_of(item)
      if problem:
        raise ConfigError(field, item, problem)
  if not check.accepts(value):
    hint = near_match(str(value), check.choices)
    raise ConfigError(field, value, f"{check.expected}{hint}")
