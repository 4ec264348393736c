"""Checkpoints of a run: its arrays, bit for bit, and the JSON that says what they belong to."""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

PyTree = Any


class CheckpointError(RuntimeError):
  """A checkpoint that can't be written, read, or put into the state that is asked for."""


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


class Checkpoints:
  """The checkpoints of one run, in one folder.

  Saving is asynchronous: the arrays are copied before `save` returns, so that their buffers may be
  donated to the next step, and written behind it. A checkpoint counts once it is complete; what a
  killed process leaves half written is never restored, and is cleaned away. The newest `keep`
  checkpoints stay, and the best one by the metric (the higher, the better; of equals the newer).

  With several processes all of them make the same calls, on a folder that they all see.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 3):
    """Opens the folder, and creates it when it is missing.

    Args:
      folder: where the checkpoints live, one sub-folder a step.
      keep: how many of the newest stay, at least 1.

    Raises:
      ValueError: `keep` is below 1.
      CheckpointError: the folder can't be created or read.
    """
    if keep < 1:
      raise ValueError(f"keep must be at least 1, got {keep}")
    # Orbax takes absolute paths only.
    self.folder = Path(os.path.abspath(folder))
    policy = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(keep),
        checkpoint_managers.BestN(
          get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False
        ),
      ]
    )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy,
      best_fn=_quality,  # without it Orbax writes no metrics, and forgets the best at a restart
      cleanup_tmp_directories=True,
    )
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      self._manager = ocp.CheckpointManager(
        self.folder, item_names=("state", "meta"), options=options
      )
    except (OSError, ValueError) as error:
      raise CheckpointError(f"{self.folder}: can't hold checkpoints ({_line(error)})") from error

  def save(
    self,
    step: int,
    state: PyTree,
    meta: dict[str, Any],
    metric: SupportsFloat | None = None,
  ) -> bool:
    """Starts to save; waits first for the save before it.

    Args:
      step: the number of steps done, 0 or more.
      state: a pytree of arrays (JAX or NumPy; Python numbers are taken as 0-d NumPy arrays). Random
        keys go in as `jax.random.key_data`.
      meta: anything JSON can hold, such as the config and the position in the data.
      metric: the validation metric at this step, higher is better; None or NaN when there is none.

    Returns:
      Whether it saves: not when this step, or a newer one, is stored already.

    Raises:
      CheckpointError: this save could not start, or the one before it failed.
    """
    metrics = {} if metric is None or not math.isfinite(metric) else {"metric": float(metric)}
    state = jax.tree.map(_as_array, state)
    contents = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      meta=ocp.args.JsonSave({"leaves": _describe(state), "meta": meta}),
    )
    try:
      return self._manager.save(step, args=contents, metrics=metrics)
    except Exception as error:
      raise self._write_error(error) from error

  def latest_step(self) -> int | None:
    """The newest complete checkpoint's step, or None; waits for a save that is under way."""
    self.wait()
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step with the highest metric, or None when no checkpoint has a metric; waits as well."""
    self.wait()
    metrics = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
    rated = [(_quality(found), step) for step, found in metrics.items() if found]
    return max(rated)[1] if rated else None

  def steps(self) -> list[int]:
    """The steps of all complete checkpoints, in order; waits for a save that is under way."""
    self.wait()
    return sorted(self._manager.all_steps())

  def latest_meta(self) -> dict[str, Any] | None:
    """The newest checkpoint's JSON without its arrays, or None when there is no checkpoint.

    Raises:
      CheckpointError: it can't be read.
    """
    step = self.latest_step()
    return None if step is None else self._read_meta(step)["meta"]

  def restore_latest(self, abstract_state: PyTree) -> Restored | None:
    """Restores the newest checkpoint.

    Args:
      abstract_state: the state's structure. A `jax.ShapeDtypeStruct` or a `jax.Array` gives a JAX
        array with its sharding (the first local device without one), anything else a NumPy array.

    Returns:
      The step, the state and the JSON, exactly as saved; None when there is no checkpoint.

    Raises:
      CheckpointError: the checkpoint is damaged, or a field's shape or dtype is not the one that
        `abstract_state` has; the line names the field.
    """
    return self._restore(self.latest_step(), abstract_state)

  def restore_best(self, abstract_state: PyTree) -> Restored | None:
    """As `restore_latest`, of the checkpoint with the best metric; None when none has a metric."""
    return self._restore(self.best_step(), abstract_state)

  def wait(self) -> None:
    """Waits until everything saved is on the disk.

    Raises:
      CheckpointError: the save under way failed.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._write_error(error) from error

  def close(self) -> None:
    """Waits as `wait` does, and lets go of the folder."""
    try:
      self._manager.close()
    except Exception as error:
      raise self._write_error(error) from error

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def _restore(self, step: int | None, abstract_state: PyTree) -> Restored | None:
    if step is None:
      return None
    abstract_state = jax.tree.map(_as_target, abstract_state)
    stored = self._read_meta(step)
    self._check_same(step, stored["leaves"], _describe(abstract_state))
    try:
      state = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
      ).state
    except Exception as error:  # a damaged file fails in whatever layer first meets the damage
      raise self._damage_error(step, error) from error
    return Restored(step, state, stored["meta"])

  def _read_meta(self, step: int) -> dict[str, Any]:
    try:
      contents = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
      ).meta
      return {"leaves": contents["leaves"], "meta": contents["meta"]}
    except Exception as error:
      raise self._damage_error(step, error) from error

  def _check_same(self, step: int, stored: dict[str, str], expected: dict[str, str]) -> None:
    """Compares all fields; Orbax casts a wrong dtype silently and doesn't name a wrong shape."""
    for field in sorted(stored.keys() | expected.keys()):
      found, wanted = stored.get(field, "nothing"), expected.get(field, "nothing")
      if found != wanted:
        raise CheckpointError(
          f"{self.folder / str(step)}: {field} holds {found}, but this run expects {wanted}"
        )

  def _write_error(self, error: Exception) -> CheckpointError:
    return CheckpointError(f"{self.folder}: could not save ({_line(error)})")

  def _damage_error(self, step: int, error: Exception) -> CheckpointError:
    return CheckpointError(
      f"{self.folder / str(step)}: damaged ({_line(error)}); remove this folder to go on from the"
      " checkpoint before it"
    )


def _quality(metrics: dict[str, float]) -> float:
  return metrics.get("metric", -math.inf)


def _as_array(leaf: Any) -> Any:
  # Orbax refuses NumPy's scalars.
  return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _as_target(leaf: Any) -> Any:
  if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
    return np.asarray(leaf)
  # Without a sharding Orbax takes the stored one, which names devices that may not exist here.
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _describe(state: PyTree) -> dict[str, str]:
  """Names, dtypes and shapes of the leaves: {"optimizer/0/trace": "float32 [4, 512]"}."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype} {list(leaf.shape)}"
    for path, leaf in leaves
  }


def _line(error: BaseException) -> str:
  """An error as one line; of a long one the ends, which say what failed and why."""
  text = " ".join(f"{type(error).__name__}: {error}".split())
  return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"
