"""Reads a model's weights by name from safetensors and torch files, without torch.

A torch archive may be a state dict, a training checkpoint with an item `state_dict`, or a
TorchScript module, whose tensors are the attributes of its modules and whose code is ignored.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any, NoReturn
import zipfile

import numpy as np
import safetensors

from pomp_jax.files.prompt_formats import is_legacy_torch, is_safetensors
from pomp_jax.files.restricted_pickle import PickledObject
from pomp_jax.files.terminal import printable
from pomp_jax.files.torch_archive import (
  StoredTensor,
  TorchArchive,
  TorchArchiveError,
)

# Embedded CLIPs in HuggingFace's layout, by name.
CLIPS = {"world": pathlib.Path(__file__).parent.parent / "world" / "clip"}
INDEX_SUFFIX = ".index.json"

_FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of number types
_MAX_INDEX_BYTES = 64 * 2**20
# TorchScript modules may share others: there can be many more paths than tensors.
_MAX_TENSORS = 100_000
_MAX_DEPTH = 32


class WeightsError(ValueError):
  """Weights that can't be read: one line with the file, the part, and what is accepted."""


@dataclasses.dataclass(frozen=True)
class Weights:
  """Tensors of an open file, or of all its shards.

  Attributes:
    path: file, for messages.
    shapes: shapes by name.
    read: function from a name to the tensor as float32, stored in any float type.
  """

  path: str
  shapes: dict[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]


@contextlib.contextmanager
def open_weights(path: str | os.PathLike) -> Iterator[Weights]:
  """Opens a file; its content decides the format. No code in it is run.

  Args:
    path: safetensors file, torch archive, or index of a sharded safetensors file (its name ends
      with `.index.json`, and the shards are in the same folder).

  Raises:
    WeightsError: missing, of another format, damaged or truncated; a missing shard; a pickle with
      anything that checkpoints don't hold. `read` raises it as well.
  """
  path = pathlib.Path(path)
  with contextlib.ExitStack() as stack:
    if path.name.endswith(INDEX_SUFFIX):
      yield _sharded(path, stack)
      return
    head = _head(path)
    if is_safetensors(head):
      yield _safetensors(path, stack)
    elif zipfile.is_zipfile(path):
      stack.enter_context(_torch_errors())
      yield _torch(path, stack.enter_context(TorchArchive(path)))
    elif is_legacy_torch(head):
      accepted = "the zip format (load and save it again with a newer torch), or safetensors"
      _refuse(path, "the file", "in torch's old format, from before 1.6", accepted)
    else:
      found = f"neither a whole safetensors file nor a torch archive (it begins with {head[:8]!r})"
      accepted = "an undamaged .safetensors, or .pt or .bin of torch 1.6 or newer"
      _refuse(path, "the file", found, accepted)


def _head(path: pathlib.Path) -> bytes:
  try:
    with open(path, "rb") as file:
      return file.read(32)
  except OSError as error:
    _refuse(path, "the file", error.strerror or "unreadable", "a file of weights")


def _safetensors(path: pathlib.Path, stack: contextlib.ExitStack) -> Weights:
  """The library checks the header and the file's length, and maps the file into memory."""
  try:
    file = stack.enter_context(safetensors.safe_open(os.fspath(path), framework="numpy"))
    headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    shapes = {name: tuple(header.get_shape()) for name, header in headers.items()}
  except Exception as error:  # the library's own errors share no base
    found = f"not a whole safetensors file ({error})"
    _refuse(path, "the file", found, "an undamaged safetensors file")

  def read(name: str) -> np.ndarray:
    kind = headers[name].get_dtype()
    if kind not in _FLOATS:
      _refuse(path, name, f"of type {kind}", ", ".join(_FLOATS))
    return file.get_tensor(name).astype(np.float32)

  return Weights(str(path), shapes, read)


def _sharded(path: pathlib.Path, stack: contextlib.ExitStack) -> Weights:
  try:
    if path.stat().st_size > _MAX_INDEX_BYTES:
      raise ValueError(f"{path.stat().st_size} bytes large")
    shard_of = json.loads(path.read_text())["weight_map"]
    shard_names = sorted(set(shard_of.values()))
    if any(os.path.basename(name) != name or name in ("", ".", "..") for name in shard_names):
      raise ValueError("a shard that is no file name")
  except FileNotFoundError:
    _refuse(path, "the file", "missing", "the index of a sharded safetensors file")
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    accepted = '{"weight_map": {name: file beside it}}'
    _refuse(path, "the file", f"no index of shards ({error})", accepted)
  shards = {}
  for name in shard_names:
    file = path.with_name(name)
    if not file.is_file():
      _refuse(path, f"the shard {name}", "missing", f"all {len(shard_names)} shards beside it")
    shards[name] = _safetensors(file, stack)
  for tensor, name in shard_of.items():
    if tensor not in shards[name].shapes:
      _refuse(path, tensor, f"not in {name}", "the shards that belong to this index")
  shapes = {tensor: shards[name].shapes[tensor] for tensor, name in shard_of.items()}
  return Weights(str(path), shapes, lambda tensor: shards[shard_of[tensor]].read(tensor))


def _torch(path: pathlib.Path, archive: TorchArchive) -> Weights:
  value = archive.value
  if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
    value = value["state_dict"]
  tensors = _tensors_by_name(path, value)
  if not tensors:
    kind = value.name if isinstance(value, PickledObject) else type(value).__name__
    _refuse(path, "the checkpoint", f"a {kind} without tensors", "a state dict of weights")
  # Distributed training wraps the model in another module.
  if all(name.startswith("module.") for name in tensors):
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}

  def read(name: str) -> np.ndarray:
    with _torch_errors():
      values = archive.array(tensors[name], name)
    if values.dtype.kind != "f":
      _refuse(path, name, f"of type {values.dtype}", "a float type")
    return np.asarray(values, np.float32)

  return Weights(str(path), {name: tensor.shape for name, tensor in tensors.items()}, read)


def _tensors_by_name(path: pathlib.Path, value: Any) -> dict[str, StoredTensor]:
  """Finds the tensors of a state dict, or of a TorchScript module and its submodules."""
  tensors = {}
  waiting = [("", value, 0)]
  n_seen = 0
  while waiting:
    name, item, depth = waiting.pop()
    n_seen += 1
    if n_seen > _MAX_TENSORS or depth > _MAX_DEPTH:
      found = f"more than {_MAX_TENSORS} values, or deeper than {_MAX_DEPTH}"
      _refuse(path, "the checkpoint", found, "a CLIP, which is smaller")
    if isinstance(item, StoredTensor):
      tensors[name] = item
    children = {}
    if isinstance(item, PickledObject) and item.name.startswith("__torch__."):
      children = item.attributes
    elif isinstance(item, dict) and depth == 0:
      children = item
    prefix = f"{name}." if name else ""
    waiting += [
      (prefix + key, child, depth + 1)
      for key, child in children.items()
      if isinstance(key, str) and isinstance(child, StoredTensor | PickledObject)
    ]
  return tensors


@contextlib.contextmanager
def _torch_errors() -> Iterator[None]:
  try:
    yield
  except TorchArchiveError as error:
    raise WeightsError(str(error)) from error


def _refuse(path: pathlib.Path, part: str, found: str, accepted: str) -> NoReturn:
  raise WeightsError(f"{path}: {printable(part)} is {printable(found)}; accepted: {accepted}")
