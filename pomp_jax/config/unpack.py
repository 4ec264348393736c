"""From a config file to `Settings`, and back."""

from collections.abc import Mapping
import types
from typing import Any

from ml_collections import ConfigDict

from pomp_jax.config.declare import ConfigError, check_name, from_text
from pomp_jax.config.fields import FIELDS, Settings, flatten


def base() -> ConfigDict:
  """The defaults, for a config file to change; locked, so that a typo adds no field."""
  return ConfigDict(Settings().to_dict()).lock()


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
    argument: `name=value,name=value`, or the name of a variant beside them, or empty.
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
    check_name(field, {*FIELDS, *short})
    config.update_from_flattened_dict({field: value_of_text(field, text)})
  return config


def value_of_text(field: str, text: str) -> Any:
  """The value of a field that a text stands for.

  Raises:
    ConfigError: an unknown field, or a text that does not read as its type.
  """
  check_name(field, FIELDS)
  return from_text(field, FIELDS[field].type, text)


def unpack(config: ConfigDict) -> Settings:
  """A config as typed settings; `validate` checks them.

  Raises:
    ConfigError: a field that does not exist, or a value of another type.
  """
  return Settings().replace(flatten(config.to_dict()))
