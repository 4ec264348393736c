"""A folder holds one run: a start with another config is refused, not mixed in."""

from collections.abc import Callable

from pomp_jax import hosts
from pomp_jax.config import ConfigError, Settings
from pomp_jax.config.fields import flatten
from pomp_jax.config.rows import current_names
from pomp_jax.files.run_folder import RunFolder, read_json

# Fields that a run may change between two starts: they leave its result as it is.
_FREE_FIELDS = (
  "log.every",
  "profile_steps",
  "prometheus.port",
  "prometheus.host",
  "checkpoint.every",
  "checkpoint.keep",
  "data.threads",
  "data.root",
  "data.workers",
  "data.cache",
  "data.features",
  "data.feature_cache",
  "eval.cache",
  "checkpoint.on_failure",
  # As long as no loss is bad.
  "on_bad_loss",
  "loss_spike",
  "max_roll_backs",
)
# Fields that follow the devices, which may be others at the next start; the draws may be as well,
# and then the run says so.
_OF_DEVICES = ("accumulate", "mesh.class_size")
# Fields of jobs that only read what it leaves, or run it.
_OTHER_JOBS = (
  "predict.",
  "evaluate.",
  "repeat.",
  "export.",
  "prepare.",
  "analyse.",
  "baselines.",
  "ablate.",
  "gradient_bias.",
  "benchmark.",
)


def check_same_run(config: Settings, folder: RunFolder, may_change: Callable[[str], bool]) -> None:
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
  before = current_names(flatten(read_json(folder.config)))
  for field, value in config.flat().items():
    was = before.get(field)
    was = tuple(was) if isinstance(was, list) else was
    if was != value and not may_change(field):
      raise ConfigError(
        field, value, f"{was!r}, with which {folder.path} was started (or another --workdir)"
      )


def leaves_result_as_it_is(field: str) -> bool:
  """Whether a run's result is the same whatever the field says."""
  return field in _FREE_FIELDS or field.startswith(_OTHER_JOBS)


def may_change(field: str) -> bool:
  """Whether a run may be resumed with another value of the field."""
  return leaves_result_as_it_is(field) or field in _OF_DEVICES
