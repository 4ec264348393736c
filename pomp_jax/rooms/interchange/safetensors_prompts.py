"""Reads and writes prompts as safetensors; also reads the context of a whole model.

Shapes: M context vectors, D width of the CLIP's text tower, N classes.
"""

from collections.abc import Mapping
import json
import os
from typing import Any
import zlib

import numpy as np
import safetensors
import safetensors.numpy

from pomp_jax.files.paths import local_copy
from pomp_jax.files.prompt_file import (
  FORMAT_VERSION,
  OF_OTHERS,
  TEXTS,
  PromptFileError,
  refuse,
)
from pomp_jax.rooms.interchange.torch_archive import context_name


def encode(context: np.ndarray, text: Mapping[str, str]) -> bytes:
  """Encodes a prompt as a safetensors file.

  Args:
    context: context vectors, float32 [M,D] or [N,M,D]; become the tensor `context`.
    text: text fields of the prompt; become metadata beside the format version and a
      CRC-32.

  Returns:
    Content of the file.

  Raises:
    UnicodeEncodeError: a text has a lone surrogate, which is no Unicode.
  """
  # Raise for a lone surrogate: the library would write it, but could not read the file.
  for value in text.values():
    value.encode()
  metadata = {
    **text,
    "format_version": str(FORMAT_VERSION),
    "crc32": _crc32(context, text),
  }
  # The library writes an array's memory without regard to strides.
  tensors = {"context": np.ascontiguousarray(context)}
  return safetensors.numpy.save(tensors, metadata)


def read(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the tensor `context`, or the context of a whole model, and the metadata.

  Raises:
    PromptFileError: the file is missing or damaged, or has two contexts, or a context
      of another type.
  """
  try:
    with safetensors.safe_open(os.fspath(local_copy(path)), framework="numpy") as file:
      fields: dict[str, Any] = dict(file.metadata() or {})
      names = file.keys()
      name: str | None = "context"
      if "context" not in names:
        name = context_name(path, names, "the file")
        # A whole model has no text fields of a prompt: take defaults.
        if name is not None:
          fields = OF_OTHERS | fields
      if name is not None:
        header = file.get_slice(name)
        if header.get_dtype() != "F32":
          got = f"{header.get_dtype()} {header.get_shape()}"
          refuse(path, name, got, "F32 [M, D] or [N, M, D], no axis empty")
        fields["context"] = file.get_tensor(name)
  except PromptFileError:
    raise
  except FileNotFoundError:
    refuse(path, "the file", "missing", "a prompt file (.safetensors)")
  except Exception as error:  # the library's own errors share no base
    got = f"not a whole safetensors file ({error})"
    refuse(path, "the file", got, "an undamaged safetensors file")
  crc32 = fields.get("crc32")  # files of other programs have no checksum
  context = fields.get("context", np.empty(0))
  if crc32 is not None and crc32 != _crc32(context, fields):
    got = f"{crc32}, which is not that of the rest"
    refuse(path, "crc32", got, "an undamaged file")
  # Metadata are texts, but callers compare a number.
  if fields.get("format_version") == str(FORMAT_VERSION):
    fields["format_version"] = FORMAT_VERSION
  return fields


def _crc32(context: np.ndarray, text: Mapping[str, str]) -> str:
  """CRC-32 of the context's shape and bytes and of the text fields, in hexadecimal.

  The format itself has no checksum.
  """
  texts = [text.get(field) for field in TEXTS]
  if "calibration" in text:
    texts.append(text["calibration"])
  described = [list(context.shape), texts]
  start = zlib.crc32(json.dumps(described).encode())
  return f"{zlib.crc32(np.ascontiguousarray(context, '<f4').tobytes(), start):08x}"
