"""The formats of prompt files that are ours: NumPy archives and safetensors files.

A reader returns the fields that a file has, unchecked. Nothing is ever unpickled or run.

Shapes: M context vectors, D width of the CLIP's text tower, N classes.
"""

from collections.abc import Mapping
import io
import json
import os
from typing import Any, NoReturn
import zipfile
import zlib

import numpy as np
import safetensors
import safetensors.numpy

from pomp_jax.errors import InputError
from pomp_jax.files.paths import local_copy
from pomp_jax.files.terminal import printable
from pomp_jax.registry import CONTEXT_NAME, load

FORMAT_VERSION = 1
# Type of each field beside `format_version`, whatever the format.
TEXTS = ("clip_model", "position", "template", "config")
FIELDS = {"context": np.ndarray} | dict.fromkeys(TEXTS, str)

# Text of a class, in which `{}` stands for the name. Around more words it would not be known where
# the context goes.
TEMPLATE = "{}."
UNKNOWN_CLIP = "unknown"
# Fields of a file that other code has written.
OF_OTHERS = {
  "format_version": FORMAT_VERSION,
  "clip_model": UNKNOWN_CLIP,
  "position": "end",
  "template": TEMPLATE,
  "config": "{}",
}


class PromptFileError(InputError, ValueError):
  """A prompt file that can't be used: one line with the file, the field, and what is accepted."""


def refuse(path: str | os.PathLike, field: str, found: str, accepted: str) -> NoReturn:
  """Raises the PromptFileError of a field."""
  raise PromptFileError(f"{path}: {field} is {printable(found)}; accepted: {accepted}")


def encode_npz(context: np.ndarray, text: Mapping[str, str]) -> bytes:
  """The arrays `context`, `format_version` and the text fields."""
  arrays: dict[str, Any] = {"context": np.ascontiguousarray(context)}
  arrays["format_version"] = np.int64(FORMAT_VERSION)
  file = io.BytesIO()
  np.savez(file, allow_pickle=False, **arrays, **{k: np.array(value) for k, value in text.items()})
  return file.getvalue()


def read_npz(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the arrays of an npz file that are fields; 0-d arrays as plain values."""
  fields: dict[str, Any] = {}
  field, problem = "the file", "not a whole npz"
  try:
    with zipfile.ZipFile(local_copy(path)) as archive:
      problem = "damaged, or not plain numbers"
      for field in ("format_version", *FIELDS):
        if f"{field}.npy" in archive.namelist():
          # The whole member, whose CRC-32 is compared: NumPy stops where its header says.
          content = io.BytesIO(archive.read(f"{field}.npy"))
          array = np.lib.format.read_array(content, allow_pickle=False)
          fields[field] = array if array.ndim else array.item()
  except FileNotFoundError:
    refuse(path, field, "missing", "an npz")
  except Exception as error:  # a bad byte fails in more ways than zipfile, zlib and NumPy document
    refuse(path, field, f"{problem} ({error})", "an undamaged npz")
  return fields


def is_safetensors(head: bytes) -> bool:
  """Whether a file begins like safetensors: the header's length, then a JSON object."""
  return head[8:9] == b"{"


def encode_safetensors(context: np.ndarray, text: Mapping[str, str]) -> bytes:
  """The tensor `context`, and `format_version`, the text fields and `crc32` as metadata."""
  metadata = {**text, "format_version": str(FORMAT_VERSION), "crc32": _crc32(context, text)}
  "".join(text.values()).encode()  # raises UnicodeEncodeError, which the library does not
  return safetensors.numpy.save({"context": np.ascontiguousarray(context)}, metadata)


def read_safetensors(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the tensor `context`, or that of a whole model, and the metadata."""
  try:
    with safetensors.safe_open(os.fspath(local_copy(path)), framework="numpy") as file:
      fields: dict[str, Any] = dict(file.metadata() or {})
      name, names = "context", file.keys()
      if name not in names and CONTEXT_NAME:
        name = load(CONTEXT_NAME)(path, names, "the file")
        fields = OF_OTHERS | fields if name else fields
      if name in names:
        header = file.get_slice(name)
        if header.get_dtype() != "F32":
          found = f"{header.get_dtype()} {header.get_shape()}"
          refuse(path, name, found, "F32 [M, D] or [N, M, D], no axis empty")
        fields["context"] = file.get_tensor(name)
  except PromptFileError:
    raise
  except FileNotFoundError:
    refuse(path, "the file", "missing", "a prompt file (.safetensors)")
  except Exception as error:  # the library's own errors share no base
    found = f"not a whole safetensors file ({error})"
    refuse(path, "the file", found, "an undamaged safetensors file")
  crc32 = fields.get("crc32")  # files of other writers have none
  if crc32 is not None and crc32 != _crc32(fields.get("context", np.empty(0)), fields):
    refuse(path, "crc32", f"{crc32}, which is not that of the rest", "an undamaged file")
  if fields.get("format_version") == str(FORMAT_VERSION):
    fields["format_version"] = FORMAT_VERSION
  return fields


def _crc32(context: np.ndarray, text: Mapping[str, str]) -> str:
  """CRC-32 of the context's shape and bytes and of the strings; safetensors has no checksum."""
  described = [list(context.shape), [text.get(field) for field in TEXTS]]
  start = zlib.crc32(json.dumps(described).encode())
  return f"{zlib.crc32(np.ascontiguousarray(context, '<f4').tobytes(), start):08x}"
