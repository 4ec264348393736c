"""Folders of checkpoints, on a local disk and in a bucket.

Orbax writes the arrays (`STEP/state`) and the JSON (`STEP/meta`) into a temporary folder, and
renames that to `STEP`. In a bucket, which renames nothing, it writes into `STEP`, and
`commit_success.txt` last: without it a checkpoint is incomplete. Orbax has no client for S3, so
that there it works on a local folder, whose files are sent or fetched.
"""

import pathlib
import secrets
import shutil
import tempfile
from typing import Any

import jax
import orbax.checkpoint as ocp

from pomp_jax.files.paths import Path, is_bucket, remove_folder, scheme_of, store_of

_DISCARDED = "discarded-"
# Orbax's name of the object that is written last.
_COMMITTED = "commit_success.txt"


def save(path: Path, state: Any, meta: dict[str, Any]) -> None:
  """Writes a checkpoint of a pytree of NumPy arrays, and JSON."""
  items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
  if scheme_of(path) != "s3":
    _checkpointer().save(path, items)
    return
  with tempfile.TemporaryDirectory() as temporary:
    local = pathlib.Path(temporary) / path.name
    _checkpointer().save(local, items)
    files = [str(file.relative_to(local)) for file in local.rglob("*") if file.is_file()]
    store_of(path).put([str(local / file) for file in files], [str(path / file) for file in files])
    (path / _COMMITTED).write_text("")


def restore(path: Path) -> Any:
  """Arrays of a checkpoint, as dicts and lists."""
  items = ocp.args.Composite(state=ocp.args.StandardRestore())
  if scheme_of(path) != "s3":
    return _checkpointer().restore(path, items).state
  with tempfile.TemporaryDirectory() as temporary:
    local = pathlib.Path(temporary) / path.name
    store_of(path).get(f"{path}/", f"{local}/", recursive=True)
    return _checkpointer().restore(local, items).state


def steps(folder: Path) -> list[int]:
  """Steps of all complete checkpoints in a folder, ascending."""
  found = [path for path in _entries(folder) if path.name.isdecimal()]
  if is_bucket(folder):
    found = [path for path in found if (path / _COMMITTED).exists()]
  return sorted(int(path.name) for path in found)


def remove_incomplete(folder: Path) -> None:
  """Removes what a killed or failed save or removal has left."""
  if is_bucket(folder):
    complete = {str(step) for step in steps(folder)}
    for path in _entries(folder):
      if path.name.isdecimal() and path.name not in complete:
        remove_folder(path)
    return
  for pattern in (f"*{ocp.utils.TMP_DIR_SUFFIX}*", f"{_DISCARDED}*"):
    for path in folder.glob(pattern):
      shutil.rmtree(path, ignore_errors=True)


def discard(checkpoint: Path) -> None:
  """Removes a checkpoint; killed on the way, it leaves none that looks complete."""
  if is_bucket(checkpoint):
    (checkpoint / _COMMITTED).unlink(missing_ok=True)
    remove_folder(checkpoint)
    return
  target = checkpoint.with_name(f"{_DISCARDED}{checkpoint.name}-{secrets.token_hex(4)}")
  checkpoint.rename(target)
  shutil.rmtree(target, ignore_errors=True)


def move(checkpoint: Path, target: Path) -> None:
  """Renames a checkpoint."""
  if is_bucket(checkpoint):
    store_of(checkpoint).copy(f"{checkpoint}/", f"{target}/", recursive=True)
    discard(checkpoint)
  else:
    checkpoint.rename(target)


def _entries(folder: Path) -> list[Path]:
  try:
    return list(folder.iterdir())
  except FileNotFoundError:
    if is_bucket(folder):  # nothing is saved yet
      return []
    raise


def _checkpointer() -> ocp.Checkpointer:
  """Synchronous Orbax checkpointer of this process alone."""
  alone = ocp.options.MultiprocessingOptions()
  if jax.process_count() > 1:
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
      primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"pomp_jax{me}"
    )
  handler = ocp.CompositeCheckpointHandler(
    state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
    meta=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
  )
  return ocp.Checkpointer(handler, multiprocessing_options=alone)
