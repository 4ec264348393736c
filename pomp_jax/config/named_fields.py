"""Fields by their full names: listed, set from text, refused in one line."""

from collections.abc import Iterator, Mapping
import difflib
import types
from typing import Any

from ml_collections import ConfigDict

from pomp_jax.errors import InputError
from pomp_jax.files.terminal import printable


class ConfigError(InputError):
  """A field that can't be: one line with its name, what it got and what it takes.

  No ValueError: ml_collections rewrites those that config files raise.
  """

  def __init__(self, field: str, got: Any, takes: str):
    super().__init__(f"config.{printable(field)}: got {got!r}, takes {takes}")
    self.field = field


def with_argument(
  config: ConfigDict,
  argument: str | None,
  *,
  variants: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({}),
  **short: str,
) -> ConfigDict:
  """Applies the string behind a config file's colon: `configs/demo.py:k=64,seed=1`.

  Args:
    config: changed in place.
    argument: `name=value,name=value`, or empty; or the name of a variant beside them.
    variants: name -> field -> value, for several fields at once.
    **short: short name -> field, for names that are not fields themselves.

  Returns:
    The same config.

  Raises:
    ConfigError: an unknown name, or a value of the wrong type.
  """
  for item in filter(None, (argument or "").split(",")):
    if item in variants:
      config.update_from_flattened_dict(dict(variants[item]))
      continue
    name, equals, text = item.partition("=")
    if variants and not equals:
      raise ConfigError(name, "nothing", f"a value, or one of the variants {', '.join(variants)}")
    field = short.get(name, name)
    check_field(config, field, set(short))
    set_field(config, field, text)
  return config


def set_field(config: ConfigDict, field: str, text: str) -> None:
  """Sets a field from text, in the type that it has.

  Raises:
    ConfigError: the text does not read as that type.
  """
  *parents, leaf = field.split(".")
  for parent in parents:
    config = config[parent]
  kind = type(config[leaf])
  try:
    if kind is bool:
      value: Any = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    elif kind is tuple:
      value = tuple(int(part) for part in text.split("+"))
    else:
      value = kind(text)
  except (ValueError, KeyError) as error:
    raise ConfigError(field, text, f"a value of type {kind.__name__}") from error
  config[leaf] = value


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """All fields with their full names: ("optim.lr", 0.002), ..."""
  for name in config:
    if isinstance(config[name], ConfigDict):
      yield from fields(config[name], f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", config[name]


def check_field(config: ConfigDict, field: str, others: set[str] = frozenset()) -> None:
  """Refuses a field that does not exist, naming the nearest one that does.

  Raises:
    ConfigError: no such field.
  """
  known = [name for name, _ in fields(config)] + sorted(others)
  if field not in known:
    # The last part alone finds `config.lr` for `config.optim.lr`.
    near = difflib.get_close_matches(field, known, 1, 0.6) or [
      name for name in known if name.split(".")[-1] == field.split(".")[-1]
    ]
    hint = f"; did you mean config.{near[0]}?" if near else ""
    raise ConfigError(field, "a value", f"none, there is no such field{hint}")


def value_of(config: ConfigDict, field: str) -> Any:
  """What a field holds, by its full name."""
  return dict(fields(config))[field]


def check_choice(config: ConfigDict, field: str, accepted: tuple[str, ...]) -> None:
  """Refuses what is not one of some texts, naming the nearest.

  Raises:
    ConfigError: it is none of them.
  """
  value = value_of(config, field)
  if value not in accepted:
    near = difflib.get_close_matches(str(value), accepted, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ConfigError(field, value, f"one of {', '.join(accepted)}{hint}")


def check_at_least(config: ConfigDict, field: str, least: int) -> None:
  """Refuses a number that is below the least, infinite or none.

  Raises:
    ConfigError: it is.
  """
  value = value_of(config, field)
  # Written so that NaN is refused as well.
  if not value >= least or value == float("inf"):
    raise ConfigError(field, value, f"{least} or more")
