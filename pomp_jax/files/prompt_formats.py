"""The formats of prompt files: NumPy archives, safetensors files, and torch checkpoints.

Every reader returns the fields that a file has, unchecked, and judges what the file claims before
it takes memory of that size. Nothing is ever unpickled or run.

Shapes: M context vectors, D width of the CLIP's text tower, N classes.
"""

from collections.abc import Mapping, Sequence
import json
import math
import os
import re
from typing import Any, BinaryIO, NoReturn
import zlib

import numpy as np
import safetensors
import safetensors.numpy

from pomp_jax.errors import InputError
from pomp_jax.files.npz import NpzArchive
from pomp_jax.files.paths import local_copy
from pomp_jax.files.restricted_pickle import PickledObject
from pomp_jax.files.terminal import printable
from pomp_jax.files.torch_archive import (
  StoredTensor,
  TorchArchive,
  TorchArchiveError,
  write_torch_archive,
)

FORMAT_VERSION = 1
# Type of each field beside `format_version`, whatever the format.
FIELDS = {
  "context": np.ndarray,
  "clip_model": str,
  "position": str,
  "template": str,
  "config": str,
}

# CLIP's text towers have 77 positions and at most 1,280 of width.
_LIMITS = {"N": 2**20, "M": 1024, "D": 16_384}
_MAX_CONTEXT_BYTES = 4 * 2**30
_MAX_TEXT_BYTES = 64 * 2**20
# Accepted growth of an npz member when decompressed, above 1 MiB. Trained numbers hardly compress.
_MAX_GROWTH = 64
_MAX_SAFETENSORS_HEADER = 100_000_000  # the library refuses longer ones

# Magic number with which files of torch before 1.6 begin, pickled as an integer.
_LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# The context in a state dict: CoOp's and POMP's, that of whole models (forks; POMP's segmentation
# models), and that of ZSSeg's own, which may also have vectors after the name.
_CONTEXT = re.compile(r"ctx|([\w-]+\.)*prompt_learner\.(ctx|prefix_prompt)")
_SUFFIX = "suffix_prompt"
# Item of a torch checkpoint with our text fields; published code ignores it.
_OURS = "pomp_jax"
UNKNOWN_CLIP = "unknown"
_OF_OTHERS = {
  "format_version": FORMAT_VERSION,
  "clip_model": UNKNOWN_CLIP,
  "position": "end",
  "template": "{}.",
  "config": "{}",
}


class PromptFileError(InputError, ValueError):
  """A prompt file that can't be used: one line with the file, the field, and what is accepted."""


def refuse(path: str | os.PathLike, field: str, found: str, accepted: str) -> NoReturn:
  """Raises the one line for a field."""
  raise PromptFileError(f"{path}: {field} is {printable(found)}; accepted: {accepted}")


def check_shape(path: str | os.PathLike, field: str, shape: Sequence[int]) -> None:
  """Raises PromptFileError for a claimed shape beyond any text tower's, before it is read."""
  # From the last axis on: a shared context has no axis N.
  largest = zip(shape[::-1], [*_LIMITS.values()][::-1], strict=False)
  if any(n > most for n, most in largest) or 4 * math.prod(shape) > _MAX_CONTEXT_BYTES:
    most = ", ".join(f"{axis} at most {size}" for axis, size in _LIMITS.items())
    accepted = f"[M, D] or [N, M, D], {most}, {_MAX_CONTEXT_BYTES} bytes in all"
    refuse(path, field, f"of shape {list(shape)}", accepted)


def write_npz(file: BinaryIO, context: np.ndarray, text: Mapping[str, str], epoch: int) -> None:
  """Writes the arrays `context`, `format_version` and the text fields."""
  arrays = {"context": np.ascontiguousarray(context), "format_version": np.int64(FORMAT_VERSION)}
  np.savez(file, allow_pickle=False, **arrays, **{k: np.array(value) for k, value in text.items()})


def read_npz(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the arrays of an npz file that are fields; 0-d arrays as plain values."""
  fields = {}
  with NpzArchive(path, refuse) as archive:
    for field in {"format_version", *FIELDS} & {*archive.names}:
      if field == "context":
        fields[field] = archive.read(field, _MAX_CONTEXT_BYTES, check_shape, _MAX_GROWTH)
        continue
      array = archive.read(field, _MAX_TEXT_BYTES, max_growth=_MAX_GROWTH)
      try:
        fields[field] = array.item() if array.ndim == 0 else array
      except ValueError as error:  # a code point beyond Unicode
        refuse(path, field, f"no text ({error})", "a 0-d string")
  return fields


def is_safetensors(head: bytes) -> bool:
  """Whether a file begins like safetensors: the header's length, then a JSON object."""
  return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER


def write_safetensors(
  file: BinaryIO, context: np.ndarray, text: Mapping[str, str], epoch: int
) -> None:
  """Writes the tensor `context`, and `format_version`, the text fields and `crc32` as metadata."""
  metadata = {**text, "format_version": str(FORMAT_VERSION), "crc32": _crc32(context, text)}
  for value in metadata.values():
    value.encode()  # raises UnicodeEncodeError, which the library does not
  tensors = {"context": np.ascontiguousarray(context)}
  file.write(safetensors.numpy.save(tensors, metadata))


def read_safetensors(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the tensor `context` and the metadata; other tensors are ignored."""
  try:
    with safetensors.safe_open(os.fspath(local_copy(path)), framework="numpy") as file:
      fields: dict[str, Any] = dict(file.metadata() or {})
      if "context" in file.keys():  # noqa: SIM118 (no dict)
        header = file.get_slice("context")
        shape, kind = header.get_shape(), header.get_dtype()
        if kind != "F32":
          refuse(path, "context", f"{kind} {shape}", "F32 [M, D] or [N, M, D], no axis empty")
        check_shape(path, "context", shape)
        fields["context"] = file.get_tensor("context")
  except PromptFileError:
    raise
  except FileNotFoundError:
    refuse(path, "the file", "missing", "a prompt file (.safetensors)")
  except Exception as error:  # the library's own errors share no base
    found = f"not a whole safetensors file ({error})"
    refuse(path, "the file", found, "an undamaged safetensors file")
  found = fields.get("crc32")  # files of other writers have none
  if found is not None and found != _crc32(fields.get("context", np.empty(0)), fields):
    refuse(path, "crc32", f"{found}, which is not that of the rest", "an undamaged file")
  version = fields.get("format_version", "")
  if version.isascii() and version.isdigit() and len(version) < 10:
    fields["format_version"] = int(version)
  return fields


def _crc32(context: np.ndarray, text: Mapping[str, str]) -> str:
  """CRC-32 of the context's shape and bytes and of the strings; safetensors has no checksum."""
  strings = [text.get(field) for field, kind in FIELDS.items() if kind is str]
  described = [list(context.shape), strings]
  start = zlib.crc32(json.dumps(described).encode())
  return f"{zlib.crc32(np.ascontiguousarray(context, '<f4').tobytes(), start):08x}"


def is_legacy_torch(head: bytes) -> bool:
  """Whether a file begins like those of torch before 1.6."""
  return head[:1] == b"\x80" and head[2 : 2 + len(_LEGACY_TORCH)] == _LEGACY_TORCH


def write_torch(file: BinaryIO, context: np.ndarray, text: Mapping[str, str], epoch: int) -> None:
  """Writes the layout of CoOp's and POMP's code, for `torch.load(weights_only=True)`.

  `{"state_dict": {"ctx": [M,D] or [N,M,D]}, "epoch": .., "pomp_jax": {..}}`. The published buffers
  `token_prefix` and `token_suffix` hold embeddings of the class names of the training. They are
  neither written nor read.
  """
  ours = {**text, "format_version": FORMAT_VERSION}
  write_torch_archive(file, {"state_dict": {"ctx": context}, "epoch": epoch, _OURS: ours})


def read_torch(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the context of a checkpoint, of any float type, as float32, and our fields beside it."""
  try:
    with open(local_copy(path), "rb") as file:
      if is_legacy_torch(file.read(32)):
        accepted = "the zip format (load and save it again with a newer torch)"
        refuse(path, "the file", "in torch's old format, from before 1.6", accepted)
  except OSError:
    pass  # the archive's reader says it
  try:
    with TorchArchive(path) as archive:
      field, tensor = _torch_context(path, archive.value)
      if not isinstance(tensor, StoredTensor):
        refuse(path, field, _kind(tensor), "a tensor [M, D] or [N, M, D]")
      check_shape(path, field, tensor.shape)
      context = archive.array(tensor, field)
      ours = archive.value.get(_OURS, _OF_OTHERS)
  except TorchArchiveError as error:
    raise PromptFileError(str(error)) from error
  if context.dtype.kind != "f":
    refuse(path, field, f"{context.dtype} {list(context.shape)}", "a float tensor")
  with np.errstate(over="ignore"):  # infinities are refused later
    context = context.astype(np.float32, order="C")
  if not isinstance(ours, dict):
    refuse(path, _OURS, _kind(ours), "a dict")
  return {**ours, "context": context}


def _torch_context(path: str | os.PathLike, value: Any) -> tuple[str, Any]:
  """Name and value of the context, in a checkpoint's state dict or in a state dict alone."""
  whole = value if isinstance(value, dict) else {}
  places = {"model": whole.get("model"), "state_dict": whole.get("state_dict"), "": whole}
  for place, state in places.items():
    items = state if isinstance(state, dict) else {}
    names = [name for name in items if isinstance(name, str) and _CONTEXT.fullmatch(name)]
    if len(names) > 1:
      refuse(path, place or "the file", f"a dict with {', '.join(names)}", "one context")
    for name in names:
      if (suffix := f"{name.rpartition('.')[0]}.{_SUFFIX}") in items:
        refuse(path, f"{place}[{suffix!r}]", "present", "vectors before the name alone")
      return f"{place}[{name!r}]", items[name]
  state = _item(path, value, "state_dict", "the checkpoint['state_dict']")
  field = "state_dict['ctx']"
  return field, _item(path, state, "ctx", field)


def _item(path: str | os.PathLike, value: Any, key: str, field: str) -> Any:
  if not isinstance(value, dict):
    refuse(path, field.partition("[")[0], _kind(value), f"a dict with {key!r}")
  if key not in value:
    names = ", ".join(sorted(name for name in value if isinstance(name, str))) or "nothing"
    refuse(path, field, f"missing (there are: {names})", "an item of that name")
  return value[key]


def _kind(value: Any) -> str:
  kind = type(value).__name__
  return f"an object {value.name}" if isinstance(value, PickledObject) else f"a {kind}"
