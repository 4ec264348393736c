"""Rows of the table of fields, and the errors for unknown names and values."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import difflib
import math
import typing
from typing import Any, NamedTuple

from pomp_jax.errors import InputError
from pomp_jax.files.paths import problem_of
from pomp_jax.files.terminal import printable


class ConfigError(InputError):
  """A wrong field: one line with its name, the value and what is expected.

  No ValueError: ml_collections rewrites those that config files raise.
  """

  def __init__(self, field: str, got: Any, expected: str):
    super().__init__(f"config.{printable(field)}: got {got!r}, expected {expected}")
    self.field = field


class UnknownFieldError(ConfigError):
  """A field that does not exist: one line with its name and a hint."""

  def __init__(self, field: str, hint: str = ""):
    InputError.__init__(self, f"unknown field config.{printable(field)}{hint}")
    self.field = field


class Check(NamedTuple):
  """A test of one value.

  Attributes:
    accepts: whether a value passes.
    expected: noun phrase for the message, such as "1 or more".
    choices: texts among which a refused one is looked for (did you mean ..?).
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
  """One of some texts."""
  return Check(choices.__contains__, f"one of {', '.join(choices)}", choices)


def at_least(least: float | int) -> Check:
  """A finite number from `least` on; NaN fails too."""
  return Check(lambda value: least <= value < math.inf, f"{least} or more")


def between(low: float | int, high: float | int) -> Check:
  """A number in the closed interval."""
  return Check(lambda value: low <= value <= high, f"{low} to {high}")


def above(low: float | int, most: float | int = math.inf) -> Check:
  """A finite number above `low`, and at most `most`."""
  bound = "" if most == math.inf else f" and at most {most}"
  return Check(
    lambda value: low < value <= most and value < math.inf, f"above {low}{bound}"
  )


def below(high: float | int) -> Check:
  """A number from 0 to below `high`."""
  return Check(lambda value: 0 <= value < high, f"0 or more and below {high}")


def row(
  default: Any,
  help: str,
  check: Check = anything,
  parse: Callable[[str], Any] = str,
  spellings: Mapping[str, Any] = {},
) -> Any:
  """Declares one field of a group.

  Args:
    default: value where the user gives none.
    help: noun phrase with the unit, for `--help` and docs/reference/config.md.
    check: test of a value.
    parse: reads an item of a tuple from text.
    spellings: other texts for some values, in lower case. With one of "true" the field
      is a flag as well.
  """
  metadata = {"check": check, "help": help, "parse": parse, "spellings": spellings}
  return dataclasses.field(default=default, metadata=metadata)


def typed(field: str, kind: Any, value: Any) -> Any:
  """Returns a value in a field's type: integers become floats, and lists tuples.

  Args:
    field: dotted name, for the message.
    kind: the field's type, such as `int` or `tuple[str, ...]`.
    value: the value, of any type.

  Raises:
    ConfigError: the value is of another type.
  """
  if kind is float and type(value) is int:
    return float(value)
  if kind in (bool, int, float, str):
    if type(value) is kind:
      return value
  elif isinstance(value, list | tuple):
    value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    part = typing.get_origin(kind.__args__[0]) or kind.__args__[0]
    if all(isinstance(item, part) and not isinstance(item, bool) for item in value):
      return value
  raise ConfigError(field, value, f"a value of type {name_of_type(kind)}")


def name_of_type(kind: Any) -> str:
  """`int`, `tuple[str, ...]`."""
  return str(kind) if typing.get_args(kind) else kind.__name__


def check_value(field: str, check: Check, value: Any) -> None:
  """Checks one value by its row.

  Args:
    field: dotted name, for the message.
    check: the row's test.
    value: the value, in the field's type.

  Raises:
    ConfigError: a URL of an unknown scheme, or a value that the check refuses.
  """
  for text in value if isinstance(value, tuple) else (value,):
    if isinstance(text, str) and (problem := problem_of(text)):
      raise ConfigError(field, text, problem)
  if not check.accepts(value):
    raise ConfigError(
      field, value, check.expected + near_match(str(value), check.choices)
    )


def near_match(name: str, known: Iterable[str]) -> str:
  """A hint at the most similar of the known names, for the end of a message."""
  near = difflib.get_close_matches(name, list(known), 1)
  return (
    f" (did you mean {printable(near[0], 80)!r}?)" if near and near[0] != name else ""
  )


def require(fits: Any, field: str, value: Any, expected: str) -> None:
  """Raises ConfigError for a value that does not fit.

  Args:
    fits: whether it fits.
    field: dotted name of the field to change.
    value: its value.
    expected: what would fit, and beside which other field.
  """
  if not fits:
    raise ConfigError(field, value, expected)


def check_name(field: str, known: Mapping[str, Any] | set[str]) -> None:
  """Raises UnknownFieldError for a field that does not exist, with the nearest name."""
  if field not in known:
    # The last part alone finds `config.optim.lr` for `config.lr`, and `steps` for
    # `optim.steps`.
    same = [name for name in known if name.split(".")[-1] == field.split(".")[-1]]
    matches = difflib.get_close_matches
    near = matches(field, same, 1, 0.0) or matches(field, known, 1)
    raise UnknownFieldError(field, f" (did you mean config.{near[0]}?)" if near else "")
