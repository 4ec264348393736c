"""`prompt.safetensors`: the context as a tensor, the other fields as strings in the header."""

import json
import os
from typing import BinaryIO
import zlib

import numpy as np
import safetensors
import safetensors.numpy

from pomp_jax.files.prompt import (
  TEXT_FIELDS,
  Prompt,
  PromptFileError,
  check_shape,
  check_version,
  make_prompt,
  refuse,
)

_CHECKSUM = "crc32"
# The library refuses longer headers.
_MAX_HEADER_BYTES = 100_000_000


def is_safetensors(head: bytes) -> bool:
  """Whether a file that begins so is one: the header's length, then the header, a JSON object."""
  return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES


def write_safetensors(file: BinaryIO, prompt: Prompt, text: dict[str, str]) -> None:
  """Writes the tensor `context`; as the header's metadata `format_version`, `text` and `crc32`."""
  metadata = text | {"format_version": str(prompt.format_version)}
  metadata[_CHECKSUM] = _checksum(prompt.context, text)
  for value in metadata.values():
    value.encode()  # a UnicodeEncodeError of ours, not an error of the library's
  tensors = {"context": np.ascontiguousarray(prompt.context)}
  file.write(safetensors.numpy.save(tensors, metadata))


def read_safetensors(path: str | os.PathLike) -> Prompt:
  """Reads the tensor `context` and the metadata; other tensors and strings are ignored.

  Raises:
    PromptFileError: see `prompt_file.load_prompt`.
  """
  try:
    with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
      metadata = file.metadata() or {}
      check_version(path, _version(path, metadata))
      for field in TEXT_FIELDS:
        if field not in metadata:
          names = ", ".join(sorted(metadata)) or "nothing"
          refuse(path, field, f"missing (the header has: {names})", "a string in the metadata")
      context = _context(path, file)
  except PromptFileError:
    raise
  except FileNotFoundError:
    refuse(path, "the file", "missing", "a prompt file (.safetensors)")
  except Exception as error:  # the library's own errors share no base
    refuse(
      path, "the file", f"not a whole safetensors file ({error})", "an undamaged safetensors file"
    )
  text = {field: metadata[field] for field in TEXT_FIELDS}
  found = metadata.get(_CHECKSUM)
  # Files that others wrote have none.
  if found not in (None, _checksum(context, text)):
    refuse(path, _CHECKSUM, f"{found}, which is not that of the rest", "an undamaged file")
  return make_prompt(path, context, text)


def _checksum(context: np.ndarray, text: dict[str, str]) -> str:
  """CRC-32 of the context's shape and bytes and of the strings: the format itself has none."""
  described = [list(context.shape), [text[field] for field in TEXT_FIELDS]]
  start = zlib.crc32(json.dumps(described).encode())
  return f"{zlib.crc32(np.ascontiguousarray(context, '<f4').tobytes(), start):08x}"


def _version(path: str | os.PathLike, metadata: dict[str, str]) -> int:
  found = metadata.get("format_version", "missing")
  if not (found.isascii() and found.isdigit() and len(found) < 10):
    refuse(path, "format_version", found, "an integer in the metadata")
  return int(found)


def _context(path: str | os.PathLike, file) -> np.ndarray:
  """The tensor; its header is judged before memory of the size it claims is taken."""
  names = sorted(file.keys())
  if "context" not in names:
    found = f"missing (the file has: {', '.join(names) or 'nothing'})"
    refuse(path, "context", found, "a tensor of that name")
  header = file.get_slice("context")
  shape, kind = header.get_shape(), header.get_dtype()
  if kind != "F32":
    refuse(path, "context", f"{kind} {shape}", "F32 [M, D] or [N, M, D], no axis empty")
  check_shape(path, "context", shape)
  return file.get_tensor("context")
