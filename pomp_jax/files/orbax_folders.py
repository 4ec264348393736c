"""Folders of checkpoints, as Orbax writes them, on a local disk and in a bucket.

Orbax writes the arrays (`STEP/state`) and the JSON (`STEP/meta`) into a temporary
folder, which it renames to `STEP`. A bucket can't rename, and Orbax has no client for
S3. For a bucket the checkpoint is therefore written to a local folder, and its files
are sent to the bucket, `commit_success.txt` last. A checkpoint in a bucket without that
file is incomplete.
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
_COMMITTED = "commit_success.txt"  # marker of a complete checkpoint, named as by Orbax

# Drop Orbax's log, which has a traceback for each thread. `Checkpoints` reports a
# failure in one line.
absl_logging.get_absl_logger().addFilter(
  lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname
)


def _unraisable(
  unraisable: Any, following: Callable[[Any], object] = sys.unraisablehook
) -> None:
  # TensorStore raises "Event loop is closed" for each array whose write fails. Ignore
  # it: `Checkpoints` reports the failure in one line.
  if str(unraisable.exc_value) != "Event loop is closed":
    # `following` is the hook of `hosts.StopSignals`, which is set before a job is
    # imported.
    following(unraisable)


sys.unraisablehook = _unraisable


def save(path: Path, state: Any, meta: dict[str, Any]) -> None:
  """Writes a checkpoint; a killed process leaves none that looks complete.

  Errors of Orbax, TensorStore and the bucket's client pass through. They have few
  types, so catch Exception.

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
  """Sends the files of a checkpoint to a bucket, and then the marker of completeness."""
  sources = []
  objects = []
  for file in local.rglob("*"):
    # Skip a marker that Orbax has written: the marker must be sent last.
    if file.is_file() and file.name != _COMMITTED:
      sources.append(str(file))
      objects.append(str(target / file.relative_to(local)))
  store_of(target).put(sources, objects)
  (target / _COMMITTED).write_text("")


def restore(path: Path) -> Any:
  """Reads the arrays of a checkpoint, in nested dicts and lists."""
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
  """Removes the remains of a save or removal that failed or was killed."""
  complete = {str(step) for step in steps(folder)}
  for path in _entries(folder):
    is_unfinished = path.name.isdecimal() and path.name not in complete
    is_discarded = path.name.startswith(_DISCARDED)
    is_temporary = ocp.utils.TMP_DIR_SUFFIX in path.name
    if is_unfinished or is_discarded or is_temporary:
      remove_folder(path)


def discard(checkpoint: Path) -> None:
  """Removes a checkpoint; a killed process leaves none that looks complete."""
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
  """Yields the folder as an absolute path, which Orbax needs; a local one for a bucket.

  The local path for a bucket is in a temporary folder, and does not exist yet.
  """
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
      # Prefix of the names of barriers, which must differ between processes.
      barrier_sync_key_prefix=f"pomp_jax{index}",
    )
  handler = ocp.CompositeCheckpointHandler(
    state=ocp.StandardCheckpointHandler(multiprocessing_options=this_process),
    meta=ocp.JsonCheckpointHandler(multiprocessing_options=this_process),
    composite_options=ocp.CompositeOptions(multiprocessing_options=this_process),
  )
  return ocp.Checkpointer(handler, multiprocessing_options=this_process)
