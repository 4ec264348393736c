"""Resuming a run: what a start may change, and the checkpoint that it continues from.

A run resumes if its folder holds a checkpoint. A start with another config is an error, except for
fields that leave the result as it is or follow the devices.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import logging
from typing import Any, NamedTuple

import jax
import numpy as np

from pomp_jax import hosts
from pomp_jax.config import FIELDS, ConfigError
from pomp_jax.config.declare import UnknownFieldError
from pomp_jax.config.settings import flatten
from pomp_jax.files.checkpoints import Checkpoints, Restored
from pomp_jax.files.run_folder import RunFolder, read_json
from pomp_jax.prompt.mesh import DATA
from pomp_jax.prompt.step import TrainState
from pomp_jax.train.setup import Run
from pomp_jax.train.state import blank_state, first_state, place_bank

log = logging.getLogger(__name__)

# Fields that leave the result of a run as it is.
_FREE_FIELDS = (
  *("log.every", "log.tracker", "profile_steps", "compilation_cache"),
  *("checkpoint.every", "checkpoint.keep", "checkpoint.on_failure"),
  *("data.threads", "data.workers", "data.max_corrupt", "data.root"),
  *("data.cache", "data.features", "data.feature_store"),
  # As long as no loss is bad.
  *("on_bad_loss", "loss_spike", "max_roll_backs"),
)
# Fields that follow the number and the kind of devices, which may change. A change of the draws is
# a warning.
_DEVICE_FIELDS = ("accumulate", "mesh.class_size", "clip.memory_gib")


def check_same_run(
  now: Mapping[str, Any], folder: RunFolder, may_change: Callable[[str], bool]
) -> None:
  """Compares a start's fields by dotted name with those of the run in a folder, if there is one.

  A field that the run's version lacked had its default.
  ConfigError for the first field with another value, or that this version lacks, unless it
  `may_change`; RunFolderError if `config.json` can't be read.
  """
  # Process 0's folder: the other hosts may have another disk there.
  if not hosts.is_first() or not folder.config.exists():
    return
  before = flatten(read_json(folder.config))
  # Early versions had the groups of all jobs in each config.
  others = _groups(FIELDS) - _groups(now)
  for field in before:
    known = field in FIELDS or field.partition(".")[0] in others
    if not known and not may_change(field):
      hint = f" in {folder.config}, which another version wrote (start with another --workdir)"
      raise UnknownFieldError(field, hint)
  for field, value in now.items():
    stored = before.get(field, FIELDS[field].default)  # one that the run's version did not have
    stored = tuple(stored) if isinstance(stored, list) else stored
    if stored != value and not may_change(field):
      raise ConfigError(
        field, value, f"{stored!r}, with which {folder.path} was started (or another --workdir)"
      )


def _groups(fields: Iterable[str]) -> set[str]:
  return {field.partition(".")[0] for field in fields if "." in field}


def leaves_result_as_it_is(field: str) -> bool:
  """Whether the result of a run is the same for all values of the field."""
  return field in _FREE_FIELDS


def may_change(field: str) -> bool:
  """Whether a run may be resumed with another value of the field."""
  return leaves_result_as_it_is(field) or field in _DEVICE_FIELDS


@dataclasses.dataclass(frozen=True)
class RollBacks:
  """Roll-backs of a run to earlier checkpoints."""

  count: int = 0
  skipped_batches: int = 0  # batches that led to a bad loss

  def add(self, bad_step: int, good_step: int) -> "RollBacks":
    """Adds a roll-back to a good step; the batches read since are skipped."""
    return RollBacks(self.count + 1, self.skipped_batches + bad_step - good_step)

  def seed_key(self, seed: int) -> np.ndarray:
    """Key data of the draws of negatives, different after each roll-back."""
    key = jax.random.key(seed)
    if self.count:
      # Steps fold in 0, 1, ..; the initial parameters 2^32 - 1.
      key = jax.random.fold_in(key, 2**32 - 1 - self.count)
    return np.asarray(jax.random.key_data(key))


class Checkpoint(NamedTuple):
  """Progress of a training, as its checkpoints hold it."""

  step: int  # number of steps done
  state: TrainState
  seconds: float = 0.0  # time that the steps took, over all starts
  unreadable: list[int] = []  # indices of images that could not be read
  roll_backs: RollBacks = RollBacks()
  statistics: dict[str, Any] | None = None  # of the `LossMonitor`

  def meta(self, run: Run) -> dict[str, Any]:
    """JSON that a checkpoint holds beside the state."""
    skipped = self.roll_backs.skipped_batches
    return {
      "seconds": self.seconds,
      "position": (self.step + skipped) * run.loop.batch_size,
      "unreadable": self.unreadable,
      # Names of the first versions.
      "detour": {"roll_backs": self.roll_backs.count, "batches": skipped},
      "judge": self.statistics,
      "devices": jax.device_count(),
      "groups": run.n_groups,
      "config": run.config,
    }


def resume(run: Run, checkpoints: Checkpoints) -> Checkpoint:
  """Returns the last checkpoint of a run, or its start if there is none."""
  restored = checkpoints.restore_latest(blank_state(run))
  if restored is None:
    return Checkpoint(0, first_state(run))
  log.info("resuming from the checkpoint of step %d", restored.step)
  _warn_of_other_devices(run, restored.step, restored.meta)
  return _checkpoint(run, restored)


def best(run: Run) -> Checkpoint | None:
  """Returns the best checkpoint of a finished run by validation; None if none was validated."""
  with Checkpoints(run.folder.checkpoints, run.checkpoint.keep) as checkpoints:
    restored = checkpoints.restore_best(blank_state(run))
  return None if restored is None else _checkpoint(run, restored)


def _checkpoint(run: Run, restored: Restored) -> Checkpoint:
  meta = restored.meta
  skipped = meta.get("detour", {})
  return Checkpoint(
    step=restored.step,
    state=place_bank(run, restored.state),
    seconds=meta["seconds"],
    unreadable=meta.get("unreadable", []),
    roll_backs=RollBacks(skipped.get("roll_backs", 0), skipped.get("batches", 0)),
    statistics=meta.get("judge"),
  )


def _warn_of_other_devices(run: Run, step: int, meta: dict[str, Any]) -> None:
  before, now = meta.get("devices"), jax.device_count()
  groups, n_data = meta.get("groups"), run.encoder.mesh.shape[DATA]
  if groups is not None and groups != run.n_groups:
    remedy = f"; config.accumulate={groups // n_data} keeps them" if groups % n_data == 0 else ""
    log.warning(
      "from step %d on the DRAWS DIFFER from those of the run so far: %d groups of a batch (data"
      " axis x accumulate) draw their own negatives, before it were %d%s",
      *(step + 1, run.n_groups, groups, remedy),
    )
  elif before is not None and before != now:
    log.info("%d devices, before it were %d: same draws, other order of sums", now, before)
