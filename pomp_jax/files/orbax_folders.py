"""Folders of checkpoints, as Orbax writes them, on a local disk and in a bucket.

Orbax writes the arrays (`STEP/state`) and the JSON (`STEP/meta`) into a temporary
folder, which it renames to `STEP`. A bucket renames nothing and Orbax has no client for
S3. There a checkpoint is written locally, its files are sent, and `commit_success.txt`
last: without that it is incomplete.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import secrets
import sys
import tempfile
from typing import Any

from absl import logging as absl_logging
import jax
import orbax.checkpoint as ocp

from pomp_jax.files.paths import Path, is_bucket, remove_folder, store_of

_DISCARDED = "discarded-"
_COMMITTED = "commit_success.txt"  # Orbax's own name of such a marker

# Orbax logs a traceback for each of its threads. `Checkpoints` says in one line what
# has failed.
absl_logging.get_absl_logger().addFilter(
  lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname
)


def _unraisable(
  unraisable: Any, following: Callable[[Any], object] = sys.unraisablehook
) -> None:
  # TensorStore raises this for each array whose write fails. `Checkpoints` reports the
  # failure in one line.
  if str(unraisable.exc_value) != "Event loop is closed":
    # The hook of `hosts.StopSignals`, which is set before a job is imported.
    following(unraisable)


sys.unraisablehook = _unraisable


def save(path: Path, state: Any, meta: dict[str, Any]) -> None:
  """Writes a checkpoint; a killed process leaves none that looks complete.

  Errors are those of Orbax, TensorStore and the bucket's client, which have few types.

  Args:
    path: folder of the checkpoint, on a disk or in a bucket.
    state: pytree of NumPy arrays.
    meta: JSON object.
  """
  items = ocp.args.Composite(
    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
  )
  with _local(path) as local:
    _checkpointer().save(local, items)
    if is_bucket(path):
      _send(local, path)


def _send(local: pathlib.Path, target: Path) -> None:
  """Sends the files of a checkpoint to a bucket, and the marker of a complete one last."""
  sources = []
  objects = []
  for file in local.rglob("*"):
    # Orbax may have written the marker too, which must not be sent among the others.
    if file.is_file() and file.name != _COMMITTED:
      sources.append(str(file))
      objects.append(str(target / file.relative_to(local)))
  store_of(target).put(sources, objects)
  (target / _COMMITTED).write_text("")


def restore(path: Path) -> Any:
  """Arrays of a checkpoint, as dicts and lists."""
  items = ocp.args.Composite(state=ocp.args.StandardRestore())
  with _local(path) as local:
    if is_bucket(path):
      store_of(path).get(f"{path}/", f"{local}/", recursive=True)
    return _checkpointer().restore(local, items).state


def steps(folder: Path) -> list[int]:
  """Steps of all complete checkpoints in a folder, ascending."""
  checkpoints = [path for path in _entries(folder) if path.name.isdecimal()]
  if is_bucket(folder):
    checkpoints = [path for path in checkpoints if (path / _COMMITTED).exists()]
  return sorted(int(path.name) for path in checkpoints)


def remove_incomplete(folder: Path) -> None:
  """Removes what a killed or failed save or removal has left."""
  complete = {str(step) for step in steps(folder)}
  for path in _entries(folder):
    is_unfinished = path.name.isdecimal() and path.name not in complete
    is_discarded = path.name.startswith(_DISCARDED)
    is_temporary = ocp.utils.TMP_DIR_SUFFIX in path.name
    if is_unfinished or is_discarded or is_temporary:
      remove_folder(path)


def discard(checkpoint: Path) -> None:
  """Removes a checkpoint; killed on the way, it leaves none that looks complete."""
  if is_bucket(checkpoint):
    (checkpoint / _COMMITTED).unlink(missing_ok=True)
    remove_folder(checkpoint)
    return
  target = checkpoint.with_name(f"{_DISCARDED}{checkpoint.name}-{secrets.token_hex(4)}")
  remove_folder(checkpoint.rename(target))


def move(checkpoint: Path, target: Path) -> None:
  """Renames a checkpoint."""
  if is_bucket(checkpoint):
    store_of(checkpoint).copy(f"{checkpoint}/", f"{target}/", recursive=True)
    discard(checkpoint)
  else:
    checkpoint.rename(target)


@contextlib.contextmanager
def _local(path: Path) -> Iterator[pathlib.Path]:
  """The folder itself, absolute as Orbax wants it; a temporary one for a bucket."""
  if not is_bucket(path):
    yield pathlib.Path(path).absolute()
    return
  with tempfile.TemporaryDirectory() as temporary:
    yield pathlib.Path(temporary) / path.name


def _entries(folder: Path) -> list[Path]:
  try:
    return list(folder.iterdir())
  except FileNotFoundError:  # nothing is saved yet
    return []


def _checkpointer() -> ocp.Checkpointer:
  """Returns a synchronous Orbax checkpointer of this process alone.

  By default Orbax waits for all processes of a run, but only the first has the folder.
  """
  this_process = ocp.options.MultiprocessingOptions()
  if jax.process_count() > 1:
    index = jax.process_index()
    this_process = ocp.options.MultiprocessingOptions(
      primary_host=index,
      active_processes={index},
      # The name of a barrier, which another process's must not equal.
      barrier_sync_key_prefix=f"pomp_jax{index}",
    )
  handler = ocp.CompositeCheckpointHandler(
    state=ocp.StandardCheckpointHandler(multiprocessing_options=this_process),
    meta=ocp.JsonCheckpointHandler(multiprocessing_options=this_process),
    composite_options=ocp.CompositeOptions(multiprocessing_options=this_process),
  )
  return ocp.Checkpointer(handler, multiprocessing_options=this_process)
