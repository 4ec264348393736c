"""What each packaged config is refused for without the paths that a user gives."""

from pomp_jax.config import ConfigError, unpack, validate
from pomp_jax.config.command_line import load_config, packaged_configs


def refusals() -> dict[str, str]:
  """Name -> the field that is refused; "" for a config that is accepted as it is."""
  fields = {}
  for name in packaged_configs():
    fields[name] = ""
    try:
      validate(unpack(load_config(name)))
    except ConfigError as error:
      fields[name] = error.field
  return fields
