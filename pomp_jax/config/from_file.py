"""Turns a config file into a checked `Config`.

Each field is checked alone first, by its row; then fields that depend on each other.
"""

from collections.abc import Iterable, Mapping
import re
import types
from typing import Any

from ml_collections import ConfigDict

from pomp_jax import registry
from pomp_jax.config.errors import ConfigError, check_name, require
from pomp_jax.config.every_job import (
  Config,
  check_read,
  defaults,
  fields_of,
  flatten,
  value_of_text,
)
from pomp_jax.config.rows import check_value


def base(job: str = "pretrain", *others: str) -> ConfigDict:
  """Returns the fields that a job reads, for a config file to change.

  They are the dataclass that the job's row of `registry.JOBS` names, with the fields
  that rooms add and with all defaults. The config is locked: setting a misspelt field
  raises instead of adding a field.

  Args:
    job: name of the job.
    *others: other jobs that may use the file (`--config.job=JOB`); jobs that are not
      installed are skipped.
  """
  return with_jobs(ConfigDict(), job, *others)


def with_jobs(config: ConfigDict, job: str, *others: str) -> ConfigDict:
  """Returns a config with the fields that `job` and `others` read.

  The values of `config` replace the defaults.

  Args:
    config: config of a job; its own field `job` is dropped.
    job: job of the result.
    *others: jobs whose fields the result has as well; jobs that are not installed are
      skipped.
  """
  fields = ConfigDict()
  for other in others:
    if other in registry.JOBS:
      fields.update(defaults(other).to_dict())
  fields.update(defaults(job).to_dict())
  values = {name: value for name, value in config.items() if name != "job"}
  fields.update(values)
  return fields.lock()


def with_argument(
  config: ConfigDict,
  argument: str | None,
  *,
  variants: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({}),
  **short: str,
) -> ConfigDict:
  """Applies the string behind a config file's colon: `configs/demo.py:k=64,seed=1`.

  The string is a list of items, separated by commas. An item is `name=value`, or the
  name of one of the `variants`. A comma that no item follows belongs to the value.

  Args:
    config: config of a job, changed in place.
    argument: text behind the colon; None for none.
    variants: values of several fields, by the name of the variant.
    **short: dotted name of a field, by a short name that the string may use instead.

  Raises:
    ConfigError: a value does not fit its field, or a variant does not exist.
    UnknownFieldError: the job reads no such field.
  """
  for item in _items_of(argument or "", variants):
    variant = item.rstrip(",")
    if variant in variants:
      config.update_from_flattened_dict(dict(variants[variant]))
      continue
    name, equals, text = item.partition("=")
    if variants and not equals:
      expected = f"a value, or one of the variants {', '.join(variants)}"
      raise ConfigError(name, "nothing", expected)

    field = short.get(name, name)
    check_name(field, {*fields_of(), *short})
    config_fields = flatten(config.to_dict())
    check_read(field, config.job, config_fields)
    if fields_of()[field].type not in (str, tuple[str, ...]):
      text = text.rstrip(",")  # an empty item at the end
    value = value_of_text(field, text)
    if field == "job":
      _check_job(value, config.job, config_fields)
    config.update_from_flattened_dict({field: value})
  return config


def _items_of(argument: str, variants: Iterable[str]) -> list[str]:
  """Splits the text behind a colon at each comma that comes before an item."""
  starts = [r"[\w.]+="]
  for name in variants:
    starts.append(rf"{re.escape(name)}(?:,|$)")
  items = re.split(rf",(?={'|'.join(starts)})", argument)
  return [item for item in items if item]


def _check_job(value: str, job: str, config_fields: Mapping[str, Any]) -> None:
  """Checks that a config has all fields of another job.

  Ignores an unknown job: the check of the field `job` raises for it later.

  Args:
    value: name of the other job.
    job: job of the config.
    config_fields: fields of the config by dotted name.

  Raises:
    ConfigError: fields are missing.
  """
  if value in registry.JOBS:
    has_fields = fields_of(value).keys() <= config_fields.keys()
    expected = f"{job!r}, whose fields this config has; --config.job={value} changes it"
    require(has_fields, "job", value, expected)


def unpack(config: ConfigDict, job: str = "") -> Any:
  """Returns typed settings of a config; `validate` checks them.

  Fields of other jobs are dropped.

  Args:
    config: fields, as a config file leaves them.
    job: another job for which the file has fields too; "" for the config's own.

  Raises:
    ConfigError: an unknown field, or a value of another type.
  """
  values = flatten(config.to_dict())
  if job:
    values["job"] = job
  settings = defaults(values.get("job", "pretrain"))
  fields_of_job = fields_of(settings.job)
  for field in fields_of():
    if field not in fields_of_job:
      values.pop(field, None)
  # `replace` raises for fields that no job reads.
  return settings.replace(values)


def validate(config: Config) -> None:
  """Checks each field, then fields together, without opening data.

  Each job makes the checks that need data itself.

  Raises:
    ConfigError: the first wrong field.
  """
  values = config.flat()
  rows = fields_of()
  for field, value in values.items():
    check_value(field, rows[field].metadata["check"], value)
  try:
    config.check()
    for extension in config.all_extensions():
      extension.check_in(config)
  except OSError as error:
    # A bucket does not answer. The error's file name is the value of the wrong field.
    for field, value in values.items():
      if value == error.filename:
        expected = f"a bucket that can be read ({error.strerror})"
        raise ConfigError(field, value, expected) from error
    raise
