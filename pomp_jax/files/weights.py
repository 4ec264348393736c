"""A model's weights by name, out of other people's files; each is read when it is asked for.

`.safetensors`, alone or in shards that a `*.index.json` lists, and torch's zip archives: a state
dict, a training checkpoint with an item `state_dict`, or a TorchScript module, whose tensors are
found at its attributes and whose code is not looked at.
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

from pomp_jax.files.prompt_safetensors import is_safetensors
from pomp_jax.files.prompt_torch import is_legacy_torch
from pomp_jax.files.terminal import printable
from pomp_jax.files.torch_archive import TorchArchive, TorchArchiveError
from pomp_jax.files.torch_pickle import Scripted, StoredTensor

# Embedded CLIPs in HuggingFace's layout, by name.
CLIPS = {"world": pathlib.Path(__file__).parent.parent / "world" / "clip"}
INDEX_SUFFIX = ".index.json"

# safetensors' names of the number types that weights come in, and NumPy's.
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_MAX_INDEX_BYTES = 64 * 2**20
# A script's modules may share others: paths to a tensor can be many more than tensors.
_MAX_TENSORS = 100_000
_MAX_DEPTH = 32


class WeightsError(ValueError):
  """Weights that can't be read: one line with the file, the part, and what it may be."""


@dataclasses.dataclass(frozen=True)
class Weights:
  """The tensors of an open file, or of all its shards.

  Attributes:
    path: the file, for messages.
    shapes: of each tensor, by name.
    read: gives a tensor by name, float32 whatever float type is stored.
  """

  path: str
  shapes: dict[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]


@contextlib.contextmanager
def open_weights(path: str | os.PathLike) -> Iterator[Weights]:
  """Opens a file by what it contains, whatever its name; no code in it is run.

  Args:
    path: a safetensors file, a torch archive, or the index of a sharded safetensors file (its name
      ends with `.index.json`; the shards stand beside it).

  Raises:
    WeightsError: missing, of another format, damaged or truncated; a shard that is missing; a
      pickle with anything in it that checkpoints don't hold. `read` raises it as well.
  """
  path = pathlib.Path(path)
  if path.name.endswith(INDEX_SUFFIX):
    yield _sharded(path)
    return
  head = _head(path)
  if is_safetensors(head):
    yield _safetensors(path)
  elif zipfile.is_zipfile(path):
    with _torch_errors(), TorchArchive(path) as archive:
      yield _of_archive(path, archive)
  elif is_legacy_torch(head):
    _refuse(
      path,
      "the file",
      "in torch's old format, from before 1.6",
      "the zip format (load and save it again with a newer torch), or safetensors",
    )
  else:
    _refuse(
      path,
      "the file",
      f"neither a whole safetensors file nor a torch archive (it begins with {head[:8]!r})",
      "an undamaged .safetensors, or .pt or .bin of torch 1.6 or newer",
    )


def _head(path: pathlib.Path) -> bytes:
  try:
    with open(path, "rb") as file:
      return file.read(32)
  except OSError as error:
    _refuse(path, "the file", error.strerror or "unreadable", "a file of weights")


def _safetensors(path: pathlib.Path) -> Weights:
  """The library judges the header, and so the file's length; the numbers are mapped from it.

  Its NumPy side knows no bfloat16.
  """
  try:
    with safetensors.safe_open(os.fspath(path), framework="numpy"):
      pass
    with open(path, "rb") as file:
      n_header = int.from_bytes(file.read(8), "little")
      header = json.loads(file.read(n_header))
  except Exception as error:  # the library's own errors share no base
    _refuse(
      path, "the file", f"not a whole safetensors file ({error})", "an undamaged safetensors file"
    )
  header.pop("__metadata__", None)

  def read(name: str) -> np.ndarray:
    entry = header[name]
    kind = _FLOATS.get(entry["dtype"])
    if kind is None:
      _refuse(path, name, f"of type {entry['dtype']}", ", ".join(_FLOATS))
    start, stop = entry["data_offsets"]
    if start == stop:  # nothing to map
      return np.zeros(entry["shape"], np.float32)
    bytes_ = np.memmap(path, np.uint8, "r", 8 + n_header + start, (stop - start,))
    values = bytes_.view(kind).reshape(entry["shape"])
    if entry["dtype"] == "BF16":  # the upper half of a float32
      return np.asarray(values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)

  return Weights(str(path), {name: tuple(e["shape"]) for name, e in header.items()}, read)


def _sharded(path: pathlib.Path) -> Weights:
  try:
    if path.stat().st_size > _MAX_INDEX_BYTES:
      raise ValueError(f"{path.stat().st_size} bytes large")
    where = json.loads(path.read_text())["weight_map"]
    shard_names = sorted(set(where.values()))
    if any(os.path.basename(name) != name or name in ("", ".", "..") for name in shard_names):
      raise ValueError("a shard that is no file name")
  except FileNotFoundError:
    _refuse(path, "the file", "missing", "the index of a sharded safetensors file")
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    _refuse(
      path, "the file", f"no index of shards ({error})", '{"weight_map": {name: file beside it}}'
    )
  shards = {}
  for name in shard_names:
    file = path.with_name(name)
    if not file.is_file():
      _refuse(path, f"the shard {name}", "missing", f"all {len(shard_names)} shards beside it")
    shards[name] = _safetensors(file)
  for tensor, name in where.items():
    if tensor not in shards[name].shapes:
      _refuse(path, tensor, f"not in {name}", "the shards that belong to this index")
  shapes = {tensor: shards[name].shapes[tensor] for tensor, name in where.items()}
  return Weights(str(path), shapes, lambda tensor: shards[where[tensor]].read(tensor))


def _of_archive(path: pathlib.Path, archive: TorchArchive) -> Weights:
  value = archive.value
  if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
    value = value["state_dict"]
  tensors = _by_name(path, value)
  if not tensors:
    kind = value.name if isinstance(value, Scripted) else type(value).__name__
    _refuse(path, "the checkpoint", f"a {kind} without tensors", "a state dict of weights")
  # Trained in parallel, a model stands inside another.
  if all(name.startswith("module.") for name in tensors):
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}

  def read(name: str) -> np.ndarray:
    with _torch_errors():
      values = archive.array(tensors[name], name)
    if values.dtype.kind != "f":
      _refuse(path, name, f"of type {values.dtype}", "a float type")
    return np.asarray(values, np.float32)

  return Weights(str(path), {name: tensor.shape for name, tensor in tensors.items()}, read)


def _by_name(path: pathlib.Path, value: Any) -> dict[str, StoredTensor]:
  """The tensors of a state dict, or of a script's module and of the modules in it."""
  tensors = {}
  waiting = [("", value, 0)]
  n_seen = 0
  while waiting:
    name, item, depth = waiting.pop()
    n_seen += 1
    if n_seen > _MAX_TENSORS or depth > _MAX_DEPTH:
      _refuse(
        path,
        "the checkpoint",
        f"more than {_MAX_TENSORS} values, or deeper than {_MAX_DEPTH}",
        "a CLIP, which is smaller",
      )
    if isinstance(item, StoredTensor):
      tensors[name] = item
    children = item.attributes if isinstance(item, Scripted) else item
    if isinstance(item, Scripted) or (isinstance(item, dict) and depth == 0):
      prefix = f"{name}." if name else ""
      waiting += [
        (prefix + key, child, depth + 1)
        for key, child in children.items()
        if isinstance(key, str) and isinstance(child, StoredTensor | Scripted)
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
