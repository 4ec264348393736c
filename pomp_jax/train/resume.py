"""The progress of a run: its start, its checkpoints, and the fields that may change
when it resumes."""

from collections.abc import Collection, Mapping
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from pomp_jax import hosts
from pomp_jax.config import ConfigError, fields_of
from pomp_jax.config.errors import UnknownFieldError
from pomp_jax.config.every_job import flatten
from pomp_jax.files.checkpoints import Checkpoints, Restored
from pomp_jax.files.run_folder import RunFolder, read_json
from pomp_jax.prompt.bank import place_rows
from pomp_jax.prompt.mesh import DATA, replicate
from pomp_jax.prompt.step import TrainState, create_state
from pomp_jax.train.training import PromptRun, Run

log = logging.getLogger(__name__)

# Fields that do not change the result of a run.
FREE_FIELDS = (
  *("dry_run", "dry_run_rate"),  # a dry run writes nothing
  *("log.every", "log.tracker", "profile_steps", "compilation_cache"),
  *("checkpoint.every", "checkpoint.keep", "checkpoint.on_failure"),
  *("data.threads", "data.workers", "data.max_corrupt", "data.root"),
  *("data.cache", "data.features", "data.feature_store"),
  # `roll_backs` changes the result only after a bad loss.
  "roll_backs",
)
# Fields that may change before a run is resumed: the free fields, and those that depend
# on the number and the kind of devices. If the draws change, the run only warns.
MAY_CHANGE = frozenset(
  (*FREE_FIELDS, "accumulate", "mesh.class_size", "clip.memory_gib")
)


def check_same_run(
  now: Mapping[str, Any], folder: RunFolder, may_change: Collection[str] = MAY_CHANGE
) -> None:
  """Compares a start's fields with those of the run in a folder, if there is one.

  A field that the run's `config.json` lacks has its default value.

  Args:
    now: fields of this start by dotted name.
    folder: folder of the run.
    may_change: fields that may have another value than at the first start.

  Raises:
    UnknownFieldError: the run has a field that this version lacks.
    ConfigError: a field outside `may_change` has another value than at the first start.
    RunFolderError: `config.json` can't be read.
  """
  # Only process 0 compares: on the other hosts the folder may be on another disk.
  if not hosts.is_first() or not folder.config.exists():
    return

  fields = fields_of()
  before = flatten(read_json(folder.config))
  for field in before:
    if field not in fields:
      hint = f" in {folder.config}, which another version wrote (start with another --workdir)"
      raise UnknownFieldError(field, hint)

  for field, value in now.items():
    if field in may_change:
      continue
    stored = before.get(field, fields[field].default)
    if isinstance(stored, list):  # JSON has no tuples
      stored = tuple(stored)
    if stored != value:
      expected = (
        f"{stored!r}, with which {folder.path} was started (or another --workdir)"
      )
      raise ConfigError(field, value, expected)


class Checkpoint(NamedTuple):
  """Progress of a training, as its checkpoints hold it."""

  step: int  # number of steps done
  state: TrainState
  seconds: float = 0.0  # time that the steps took, over all starts
  unreadable: list[int] = []  # indices of images that could not be read
  roll_backs: int = 0  # number of roll-backs to earlier checkpoints
  skipped_batches: int = 0  # number of batches that led to a bad loss
  statistics: dict[str, Any] | None = None  # `LossMonitor.statistics`

  def meta(self, run: Run) -> dict[str, Any]:
    """Builds the JSON that a checkpoint holds beside the state.

    The first versions named the keys "detour" and "judge". The names stay, so that old
    checkpoints can be read.
    """
    n_batches = self.step + self.skipped_batches
    return {
      "seconds": self.seconds,
      "position": n_batches * run.loop.batch_size,  # images shown or skipped
      "unreadable": self.unreadable,
      "detour": {"roll_backs": self.roll_backs, "batches": self.skipped_batches},
      "judge": self.statistics,
      "devices": len(hosts.devices()),
      "groups": run.n_groups,
      "config": run.config,
    }

  def rolled_back(
    self, before: "Checkpoint", bad_step: int, seed: int, mesh: Mesh
  ) -> "Checkpoint":
    """Returns this checkpoint with other draws, and past the batches that led to a bad
    loss.

    Args:
      before: progress that led to the bad loss.
      bad_step: step of the bad loss.
      seed: seed of the run.
      mesh: devices of the run.
    """
    n_roll_backs = before.roll_backs + 1
    # A new key gives other negatives after each roll-back. The number is not used
    # elsewhere: steps fold in 0, 1, .., and the initial parameters 2^32 - 1.
    number = 2**32 - 1 - n_roll_backs
    key = jax.random.fold_in(jax.random.key(seed), number)
    seed_key = replicate(np.asarray(jax.random.key_data(key)), mesh)
    return self._replace(
      state=self.state.replace(seed_key=seed_key),
      roll_backs=n_roll_backs,
      skipped_batches=before.skipped_batches + bad_step - self.step,
    )


def resume(run: Run, checkpoints: Checkpoints) -> Checkpoint:
  """Returns the last checkpoint of a run, or its start if there is none."""
  restored = checkpoints.restore(blank_state(run))
  if restored is None:
    return Checkpoint(0, first_state(run))
  log.info("resuming from the checkpoint of step %d", restored.step)
  _warn_of_other_devices(run, restored.step, restored.meta)
  return _checkpoint(run, restored)


def best(run: Run) -> Checkpoint | None:
  """Returns the checkpoint of a finished run with the best validation accuracy; None
  if no checkpoint was validated."""
  with Checkpoints(run.folder.checkpoints, run.checkpoint.keep) as checkpoints:
    restored = checkpoints.restore(blank_state(run), best=True)
  return None if restored is None else _checkpoint(run, restored)


def _checkpoint(run: Run, restored: Restored) -> Checkpoint:
  """Progress that a restored checkpoint holds, on the devices of the run."""
  meta = restored.meta
  return Checkpoint(
    step=restored.step,
    state=place_bank(run, restored.state),
    seconds=meta["seconds"],
    unreadable=meta["unreadable"],
    roll_backs=meta["detour"]["roll_backs"],
    skipped_batches=meta["detour"]["batches"],
    statistics=meta["judge"],
  )


def _warn_of_other_devices(run: Run, step: int, meta: dict[str, Any]) -> None:
  n_devices_before = meta["devices"]
  n_devices = len(hosts.devices())
  n_groups_before = meta["groups"]
  n_data = run.encoder.mesh.shape[DATA]
  if n_groups_before != run.n_groups:
    remedy = ""
    if n_groups_before % n_data == 0:
      remedy = f"; config.accumulate={n_groups_before // n_data} keeps them"
    log.warning(
      "from step %d on the DRAWS DIFFER from those of the run so far: %d groups of a batch (data"
      " axis x accumulate) draw their own negatives, before it were %d%s",
      step + 1,
      run.n_groups,
      n_groups_before,
      remedy,
    )
  elif n_devices_before != n_devices:
    log.info(
      "%d devices, before it were %d: same draws, other order of sums",
      n_devices,
      n_devices_before,
    )


def first_state(run: Run) -> TrainState:
  """State of step 0, on the devices; with a bank, this computes the features of all
  classes."""
  state = blank_state(run)
  if isinstance(run, PromptRun) and run.needs_bank:
    state = place_bank(run, state.replace(bank=run.class_features(state.params)))
  return state


def blank_state(run: Run) -> TrainState:
  """State of step 0 in its stored form, except that the rows of the bank are zero."""
  state = replicate(
    create_state(run.learner(), run.optimizer, run.seed), run.encoder.mesh
  )
  if isinstance(run, PromptRun) and run.needs_bank:
    shape = (len(run.source.names), run.encoder.clip.config.projection_dim)
    state = state.replace(bank=np.zeros(shape, np.float32))
  return state


def place_bank(run: Run, state: TrainState) -> TrainState:
  """Shards the bank of a stored state, [N,E] on every host, over the mesh."""
  if isinstance(run, PromptRun) and run.needs_bank:
    rows = place_rows(np.asarray(state.bank), run.encoder.mesh)
    state = state.replace(bank=rows)
  return state


def gather_bank(run: Run, state: TrainState) -> TrainState:
  """State in its stored form, which fits any mesh: every host has the whole bank,
  float32 [N,E]."""
  if state.bank is None:
    return state
  n_classes = len(run.source.names)
  whole = jax.jit(
    lambda rows: rows[:n_classes].astype(jnp.float32),
    out_shardings=NamedSharding(run.encoder.mesh, PartitionSpec()),
  )
  return state.replace(bank=whole(state.bank))
