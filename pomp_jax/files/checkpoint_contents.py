"""What the checkpoint of a step holds: arrays and JSON, with checksums; to disk and back."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from pomp_jax import hosts
from pomp_jax.errors import RunError
from pomp_jax.files import checksums

PyTree = Any


class CheckpointError(RunError, RuntimeError):
  """A checkpoint that can't be written, read, or put into the state that is asked for."""


class Damage(Exception):
  """One checkpoint that can't be read, or does not hold what was saved; one line."""


class Restored(NamedTuple):
  """What a checkpoint held.

  Attributes:
    step: the step at which it was saved.
    state: the pytree, with the structure and the shardings of the abstract state.
    meta: the JSON that was saved with it.
  """

  step: int
  state: PyTree
  meta: dict[str, Any]


def to_save(state: PyTree, meta: dict[str, Any]) -> ocp.args.Composite:
  """A state and its JSON, with their checksums, as Orbax's manager takes them.

  Args:
    state: a pytree of arrays; it is copied.
    meta: JSON.
  """
  # A copy: the next step may write into the very same memory.
  state = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
  stored = {
    "leaves": checksums.describe(state),
    "checksums": checksums.of_leaves(state),
    "meta": meta,
  }
  return ocp.args.Composite(
    state=ocp.args.StandardSave(state),
    meta=ocp.args.JsonSave(stored | {"checksum": checksums.of_json(stored)}),
  )


def read(
  manager: ocp.CheckpointManager, folder: Path, step: int, abstract_state: PyTree
) -> Restored:
  """Reads a checkpoint as NumPy arrays, and compares its checksums.

  Args:
    manager: of the folder.
    folder: of all checkpoints, for messages.
    step: which of them.
    abstract_state: what the state has to look like, see `Checkpoints.restore_latest`.

  Raises:
    Damage: it is not what was saved.
    CheckpointError: it is, but not what `abstract_state` asks for.
  """
  targets = jax.tree.map(_as_target, abstract_state)
  stored = read_meta(manager, step)
  _check_same(folder / str(step), stored["leaves"], checksums.describe(targets))
  arrays = jax.tree.map(lambda target: np.zeros(target.shape, target.dtype), targets)
  try:
    state = manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore(arrays))
    ).state
  except Exception as error:  # a damaged file fails in whatever layer first meets the damage
    raise Damage(as_line(error)) from error
  check_state(state, stored)
  return Restored(step, state, stored["meta"])


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  """The JSON of a checkpoint: `meta`, and `leaves`, which describes its arrays.

  Raises:
    Damage: it can't be read, or is not what was saved.
  """
  try:
    stored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    check_meta(stored)
    return stored
  except Damage:
    raise
  except Exception as error:
    raise Damage(as_line(error)) from error


def check_meta(stored: dict[str, Any]) -> None:
  """Compares the JSON of a checkpoint with its checksum, if it is not of before there were any.

  Raises:
    Damage: it is not what was saved.
  """
  rest = {field: value for field, value in stored.items() if field != "checksum"}
  if "checksum" in stored and stored["checksum"] != checksums.of_json(rest):
    raise Damage("its JSON is not what was saved")
  if not {"leaves", "meta"} <= rest.keys() or not rest.keys() <= {"leaves", "checksums", "meta"}:
    raise Damage("its JSON does not have the fields leaves, checksums and meta")


def check_state(state: PyTree, stored: dict[str, Any]) -> None:
  """Compares the arrays of a checkpoint with the checksums in its JSON, if it has them.

  Raises:
    Damage: they are not what was saved.
  """
  found = checksums.of_leaves(state)
  for field, checksum in stored.get("checksums", found).items():
    if found.get(field) != checksum:
      raise Damage(f"{field} is not what was saved")


def place(found: Restored | None, abstract_state: PyTree) -> Restored | None:
  """What process 0 has read, on all processes, as `abstract_state` says; all call it together."""
  head = hosts.from_first(found and [found.step, found.meta], "the checkpoint")
  if head is None:
    return None
  targets, structure = jax.tree.flatten(jax.tree.map(_as_target, abstract_state))
  leaves = jax.tree.leaves(found.state) if found else [np.zeros(t.shape, t.dtype) for t in targets]
  if jax.process_count() > 1:
    leaves = hosts.arrays_from_first(leaves)
  placed = [_on_devices(*pair) for pair in zip(leaves, targets, strict=True)]
  return Restored(head[0], jax.tree.unflatten(structure, placed), head[1])


def as_line(error: BaseException) -> str:
  """An error as one line; of a long one the ends, which say what failed and why."""
  text = " ".join(f"{type(error).__name__}: {error}".split())
  return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"


def _check_same(where: Path, stored: dict[str, str], expected: dict[str, str]) -> None:
  """Compares all fields; Orbax casts a wrong dtype silently and doesn't name a wrong shape."""
  for field in sorted(stored.keys() | expected.keys()):
    found, wanted = stored.get(field, "nothing"), expected.get(field, "nothing")
    if found != wanted:
      raise CheckpointError(f"{where}: {field} holds {found}, but this run expects {wanted}")


def _as_target(leaf: Any) -> Any:
  if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
    return np.asarray(leaf)
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _on_devices(array: np.ndarray, target: Any) -> Any:
  if not isinstance(target, jax.ShapeDtypeStruct):
    return array
  return jax.make_array_from_callback(target.shape, target.sharding, lambda index: array[index])
