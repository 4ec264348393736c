"""Weights of a CLIP, or of another model, in files of torch, which are read without it."""

from collections.abc import Iterator
import contextlib
from typing import Any

import numpy as np

from pomp_jax.clip.architecture import ClipError
from pomp_jax.clip.weights import Weights, refuse
from pomp_jax.files.paths import Path
from pomp_jax.files.restricted_pickle import PickledObject
from pomp_jax.rooms.interchange.torch_archive import StoredTensor, TorchArchive

# Item of a training checkpoint with the weights: open_clip's and CoOp's, and detectron2's.
_STATE_DICTS = ("state_dict", "model")


@contextlib.contextmanager
def open_torch(path: Path) -> Iterator[Weights]:
  """Opens a state dict, a training checkpoint with an item of `_STATE_DICTS`, or TorchScript."""
  with TorchArchive(path, ClipError) as archive:
    yield _weights(path, archive)


def _weights(path: Path, archive: TorchArchive) -> Weights:
  value = archive.value
  items = value.items() if isinstance(value, dict) else ()
  text = {name: item for name, item in items if isinstance(item, str)}
  for item in _STATE_DICTS:
    if isinstance(value, dict) and isinstance(value.get(item), dict):
      value = value[item]
  try:
    tensors = dict(_named_tensors(value))
  except RecursionError:
    refuse(path, "the checkpoint", "a module inside itself", "a state dict of weights")
  if not tensors:
    kind = value.name if isinstance(value, PickledObject) else type(value).__name__
    refuse(path, "the checkpoint", f"a {kind} without tensors", "a state dict of weights")
  # Distributed training wraps the model in another module.
  if all(name.startswith("module.") for name in tensors):
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}

  def read(name: str) -> np.ndarray:
    values = archive.array(tensors[name], name)
    if values.dtype.kind != "f":
      refuse(path, name, f"of type {values.dtype}", "a float type")
    return np.asarray(values, np.float32)

  return Weights(str(path), {name: tensor.shape for name, tensor in tensors.items()}, read, text)


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, StoredTensor]]:
  """Finds the tensors of a state dict, or of a TorchScript module and its submodules."""
  children: dict[Any, Any] = {}
  if isinstance(value, StoredTensor):
    yield name, value
  elif isinstance(value, PickledObject) and value.name.startswith("__torch__."):
    children = value.attributes
  elif isinstance(value, dict) and not name:
    children = value
  for key, child in children.items():
    if isinstance(key, str):
      yield from _named_tensors(child, f"{name}.{key}" if name else key)
