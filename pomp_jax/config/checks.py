"""Turns a config file into a checked `Config`.

Each field is checked by its row first, then fields together.
"""

from collections.abc import Mapping
import re
import types
from typing import Any

from ml_collections import ConfigDict

from pomp_jax import registry
from pomp_jax.config.errors import ConfigError, check_name
from pomp_jax.config.rows import check_value
from pomp_jax.config.settings import (
  Config,
  check_read,
  defaults,
  fields_of,
  flatten,
  value_of_text,
)


def base(job: str = "pretrain", *others: str) -> ConfigDict:
  """Returns the fields that a job reads, for a config file to change.

  It is locked, so that a typo adds no field.

  Args:
    job: name of the job.
    *others: jobs that the file is for too (`--config.job=JOB`), if installed.
  """
  return with_jobs(ConfigDict(), job, *others)


def with_jobs(config: ConfigDict, job: str, *others: str) -> ConfigDict:
  """A config as that of another job: with the fields that it and `others` read, too."""
  of_all = ConfigDict()
  for name in (*(other for other in others if other in registry.JOBS), job):
    of_all.update(defaults(name).to_dict())
  of_all.update({name: value for name, value in config.items() if name != "job"})
  return of_all.lock()


def with_argument(
  config: ConfigDict,
  argument: str | None,
  *,
  variants: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({}),
  **short: str,
) -> ConfigDict:
  """Applies the string behind a config file's colon: `configs/demo.py:k=64,seed=1`.

  The config is changed in place. `argument` has `name=value` or the names of `variants`
  (values of several fields), separated by commas. A comma in a text stays in it, unless
  a field or a variant follows. `short` has names of fields beside their own.

  Args:
    config: config of a job, changed in place.
    argument: text behind the colon; None for none.
    variants: values of several fields, by a name.
  """
  begins = [r"[\w.]+=", *(rf"{re.escape(name)}(?:,|$)" for name in variants)]
  for item in filter(None, re.split(rf",(?={'|'.join(begins)})", argument or "")):
    if item.rstrip(",") in variants:
      config.update_from_flattened_dict(dict(variants[item.rstrip(",")]))
      continue
    name, equals, text = item.partition("=")
    if variants and not equals:
      raise ConfigError(
        name, "nothing", f"a value, or one of the variants {', '.join(variants)}"
      )
    field = short.get(name, name)
    check_name(field, {*fields_of(), *short})
    known = flatten(config.to_dict())
    check_read(field, config.job, known)
    if fields_of()[field].type not in (str, tuple[str, ...]):
      text = text.rstrip(",")  # of an empty item
    value = value_of_text(field, text)
    if (
      field == "job"
      and value in registry.JOBS
      and not fields_of(value).keys() <= known.keys()
    ):
      expected = (
        f"{config.job!r}, whose fields this config has; --config.job={value} changes it"
      )
      raise ConfigError("job", value, expected)
    config.update_from_flattened_dict({field: value})
  return config


def unpack(config: ConfigDict, job: str = "") -> Any:
  """Returns typed settings of a config; `validate` checks them.

  Fields of other jobs are dropped.

  Args:
    config: the fields, as a config file leaves them.
    job: another job for which the file has fields too; "": the config's own.

  Raises:
    ConfigError: an unknown field, or a value of another type.
  """
  values = flatten(config.to_dict()) | ({"job": job} if job else {})
  settings = defaults(values.get("job", "pretrain"))
  others = fields_of().keys() - fields_of(settings.job).keys()
  return settings.replace(
    {field: v for field, v in values.items() if field not in others}
  )


def validate(config: Config) -> None:
  """Checks each field, then fields together, without opening data.

  Jobs check what needs data.

  Raises:
    ConfigError: the first wrong field.
  """
  values = config.flat()
  for field, value in values.items():
    check_value(field, fields_of()[field].metadata["check"], value)
  try:
    config.check()
    for added in config.all_extensions():
      added.check_in(config)
  except OSError as error:
    # A bucket can't be asked; its error holds the value of the field.
    named = [field for field, value in values.items() if value == error.filename]
    if not named:
      raise
    expected = f"a bucket that can be read ({error.strerror})"
    raise ConfigError(named[0], error.filename, expected) from error
