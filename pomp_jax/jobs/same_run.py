"""A folder holds one run: a start with another config is refused, not mixed in."""

from collections.abc import Callable

from ml_collections import ConfigDict

from pomp_jax import hosts
from pomp_jax.config import ConfigError, fields
from pomp_jax.files.run_folder import RunFolder, read_json


def check_same_run(
  config: ConfigDict, folder: RunFolder, may_change: Callable[[str], bool]
) -> None:
  """Compares a config with that of the run that a folder holds, if it holds one.

  Args:
    config: of this start.
    folder: of the run.
    may_change: whether a field may be another one now.

  Raises:
    ConfigError: the first field that is another one and may not.
    RunFolderError: its `config.json` can't be read.
  """
  # The first process's folder: on another's host there may be anything.
  if not hosts.is_first() or not folder.config.exists():
    return
  before = dict(fields(ConfigDict(read_json(folder.config))))
  for field, value in fields(config):
    was = before.get(field)
    was = tuple(was) if isinstance(was, list) else was
    if was != value and not may_change(field):
      raise ConfigError(
        field, value, f"{was!r}, with which {folder.path} was started (or another --workdir)"
      )
