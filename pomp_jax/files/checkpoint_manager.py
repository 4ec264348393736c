"""Orbax's manager of a folder of checkpoints, as one process of a run uses it."""

import math
from pathlib import Path
import secrets
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

_DISCARDED = "discarded-"


def open_manager(folder: Path, keep: int) -> "Manager":
  """Opens a folder that exists, and removes what a killed process left half written or deleted.

  Args:
    folder: absolute.
    keep: how many of the newest stay; the best one by the metric stays beside them.

  Raises:
    OSError, ValueError: the folder can't be read or written.
  """
  policy = checkpoint_managers.AnyPreservationPolicy(
    [
      checkpoint_managers.LatestN(keep),
      checkpoint_managers.BestN(
        get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False
      ),
    ]
  )
  # Orbax would do it in the background, and be done only with the next save.
  for remains in (f"*{ocp.utils.TMP_DIR_SUFFIX}*", f"{_DISCARDED}*"):
    _remove(*folder.glob(remains))
  alone = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="pomp_jax"
  )
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policy,
    best_fn=_quality,  # without it Orbax writes no metrics, and forgets the best at a restart
    # Deleted in its place, it would count as a checkpoint until the end. Each manager has its own:
    # an earlier one may still live, unseen.
    todelete_subdir=_DISCARDED + secrets.token_hex(4),
    # At once: where that fails in the background, what waits for it there waits for minutes, and
    # the process can't end.
    async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    # Orbax makes no folder for some of the processes alone.
    create=False,
    multiprocessing_options=alone
    if jax.process_count() > 1
    else ocp.options.MultiprocessingOptions(),
  )
  return Manager(folder, options)


def _remove(*folders: Path) -> None:
  """What can't be removed is left to the next time."""
  for folder in folders:
    shutil.rmtree(folder, ignore_errors=True)


def _quality(metrics: dict[str, Any]) -> float:
  """By which the best checkpoint is found: the metric, the higher the better."""
  return metrics.get("metric", -math.inf)


class Manager(ocp.CheckpointManager):
  """One that renames what is no longer kept, so that a half deleted checkpoint is none.

  It leaves it to the loop to ask JAX whether to stop.
  """

  def __init__(self, folder: Path, options: ocp.CheckpointManagerOptions):
    self._discarded = folder / options.todelete_subdir
    super().__init__(folder, item_names=("state", "meta"), options=options)

  def remove_discarded(self) -> None:
    """Removes what is no longer kept; for after a save."""
    _remove(self._discarded)

  def reached_preemption(self, step: int) -> bool:
    # Asked by one process alone, with another number than the others', JAX would answer it alone.
    return False
