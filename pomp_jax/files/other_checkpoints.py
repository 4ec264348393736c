"""The checkpoints of another run, finished or under way: read, and never touched."""

from collections.abc import Iterator
import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pomp_jax.files import checkpoint_contents
from pomp_jax.files.checkpoints import CheckpointError, Restored


def read_checkpoints(folder: str | os.PathLike) -> Iterator[Restored]:
  """All complete checkpoints of a run, in order of the steps.

  The states are as they were stored: trees of dicts and lists, all arrays NumPy's. Every process
  that asks reads on its own.

  Args:
    folder: `checkpoints/` of the run.

  Raises:
    CheckpointError: no such folder, or a checkpoint that can't be read or is not what was saved.
  """
  path = pathlib.Path(os.path.abspath(folder))
  if not path.is_dir():
    raise CheckpointError(f"{folder}: no such folder of checkpoints")
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"reader{me}"
  )
  options = ocp.CheckpointManagerOptions(
    read_only=True,
    # Orbax would set these two itself, and warn.
    save_interval_steps=0,
    create=False,
    multiprocessing_options=alone
    if jax.process_count() > 1
    else ocp.options.MultiprocessingOptions(),
  )
  # With the handlers given, Orbax can say what a state consists of before it is read.
  handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
  with ocp.CheckpointManager(path, item_handlers=handlers, options=options) as manager:
    for step in sorted(manager.all_steps()):
      yield _read(manager, step, path / str(step))


def _read(manager: ocp.CheckpointManager, step: int, path: pathlib.Path) -> Restored:
  try:
    stored = manager.item_metadata(step).state.tree
    # What is asked for as NumPy's comes without a device that may not exist here.
    target: Any = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), stored)
    found = manager.restore(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()),
    )
    checkpoint_contents.check_meta(found.meta)
    checkpoint_contents.check_state(found.state, found.meta)
    return Restored(step, found.state, found.meta["meta"])
  except Exception as error:  # a damaged file fails in whatever layer first meets the damage
    line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    raise CheckpointError(f"{path}: can't be read ({line})") from error
