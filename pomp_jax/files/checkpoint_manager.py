"""Orbax's manager of a folder of checkpoints, as one process of a run uses it."""

import math
from pathlib import Path
import shutil

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

_DISCARDED = "discarded"


def open_manager(folder: Path, keep: int) -> ocp.CheckpointManager:
  """Opens a folder that exists, and removes what a killed process left half done.

  A checkpoint that is no longer kept is renamed, and counts no more: call `remove_remains` after
  every save.

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
  remove_remains(folder)
  alone = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="pomp_jax"
  )
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policy,
    best_fn=_quality,  # without it Orbax writes no metrics, and forgets the best at a restart
    todelete_subdir=_DISCARDED,  # deleted in its place, it would be a checkpoint until the end
    # At once: where that fails in the background, what waits for it there waits for minutes, and
    # the process can't end.
    async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    # Orbax makes no folder for some of the processes alone.
    create=False,
    multiprocessing_options=alone
    if jax.process_count() > 1
    else ocp.options.MultiprocessingOptions(),
  )
  return _Manager(folder, item_names=("state", "meta"), options=options)


def remove_remains(folder: Path) -> None:
  """Removes half written checkpoints, and those that are no longer kept; for when none is written.

  Orbax would do it in the background, and for the half written ones be done only with the next
  save. What can't be removed is left to the next time.
  """
  for remains in (*folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"), folder / _DISCARDED):
    shutil.rmtree(remains, ignore_errors=True)


def _quality(metrics: dict[str, float]) -> float:
  """By which the best checkpoint is found: the metric, the higher the better."""
  return metrics.get("metric", -math.inf)


class _Manager(ocp.CheckpointManager):
  """Leaves it to the loop to ask JAX whether to stop.

  Asked by one process alone, with another number than the others', JAX would answer it alone.
  """

  def reached_preemption(self, step: int) -> bool:
    return False
