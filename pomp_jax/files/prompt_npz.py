"""`prompt.npz`: a prompt as plain NumPy arrays."""

import math
import os
from typing import Any, BinaryIO
import zipfile

import numpy as np

from pomp_jax.files.prompt import (
  MAX_CONTEXT_BYTES,
  MAX_TEXT_BYTES,
  TEXT_FIELDS,
  Prompt,
  PromptFileError,
  check_shape,
  check_version,
  make_prompt,
  refuse,
)

# Bytes before an array's values: NumPy's own headers take some hundred.
_MAX_HEADER_BYTES = 16_384
# How much a member may grow when it is decompressed, from this size on. Trained numbers hardly do.
_MAX_GROWTH, _GROWTH_FROM = 64, 2**20


def write_npz(file: BinaryIO, prompt: Prompt, text: dict[str, str]) -> None:
  """Writes the arrays `context`, `format_version` and `text` (see `prompt.text_fields`)."""
  arrays = {
    "context": np.ascontiguousarray(prompt.context),
    "format_version": np.array(prompt.format_version, np.int64),
  }
  arrays |= {field: np.array(value) for field, value in text.items()}
  np.savez(file, allow_pickle=False, **arrays)


def read_npz(path: str | os.PathLike) -> Prompt:
  """Reads an npz; nothing in it is ever unpickled, and unknown arrays are ignored.

  Raises:
    PromptFileError: see `prompt_file.load_prompt`.
  """
  try:
    archive = zipfile.ZipFile(path)
  except FileNotFoundError:
    refuse(path, "the file", "missing", "a prompt file (.npz)")
  except Exception as error:  # a damaged archive fails in more ways than zipfile documents
    refuse(path, "the file", f"not a whole npz ({error})", "an undamaged npz")
  with archive:
    check_version(path, _read_scalar(archive, path, "format_version", "iu", "an integer"))
    text = {field: _read_scalar(archive, path, field, "U", "a 0-d string") for field in TEXT_FIELDS}
    context = _read_array(archive, path, "context")
  return make_prompt(path, context, text)


def _read_scalar(
  archive: zipfile.ZipFile, path: str | os.PathLike, field: str, kinds: str, accepted: str
) -> Any:
  array = _read_array(archive, path, field)
  if array.ndim != 0 or array.dtype.kind not in kinds:
    refuse(path, field, f"{array.dtype} {list(array.shape)}", accepted)
  try:
    return array.item()
  except ValueError as error:  # a code beyond Unicode's
    refuse(path, field, f"no text ({error})", accepted)


def _read_array(archive: zipfile.ZipFile, path: str | os.PathLike, field: str) -> np.ndarray:
  """Reads one array; what it claims is judged before memory of that size is taken."""
  try:
    info = archive.getinfo(f"{field}.npy")
    _check_growth(path, field, info)
    member = archive.open(info)
  except PromptFileError:
    raise
  except KeyError:
    names = ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist()))
    refuse(path, field, f"missing (the file has: {names or 'nothing'})", "an array of that name")
  except Exception as error:
    refuse(path, field, f"unreadable ({error})", "an undamaged npz")
  try:
    with member:
      shape, dtype = _read_header(member)
      start = member.tell()
    claimed = math.prod(map(int, shape)) * dtype.itemsize
    if dtype.hasobject:
      refuse(path, field, "pickled Python objects", "plain arrays (pickles can run any code)")
    if field == "context":
      check_shape(path, field, shape)
    most = MAX_CONTEXT_BYTES if field == "context" else MAX_TEXT_BYTES
    if claimed > most:
      refuse(path, field, f"{claimed} bytes large", f"at most {most} bytes")
    if claimed != info.file_size - start:
      found = f"{info.file_size - start} bytes, where its header claims {claimed}"
      refuse(path, field, found, "an undamaged array")
    with archive.open(info) as member:
      return np.lib.format.read_array(member, allow_pickle=False)
  except PromptFileError:
    raise
  except Exception as error:  # zlib, zipfile and the header's parser: whatever a bad byte can raise
    refuse(path, field, f"damaged ({error})", "an undamaged array")


def _check_growth(path: str | os.PathLike, field: str, info: zipfile.ZipInfo) -> None:
  """Refuses a few bytes that stand for gigabytes.

  Raises:
    PromptFileError: one line.
  """
  stored = min(info.compress_size, os.path.getsize(path))
  most = max(_GROWTH_FROM, _MAX_GROWTH * stored)
  if info.file_size > most:
    found = f"{stored} bytes that stand for {info.file_size}"
    refuse(path, field, found, f"at most {most} of these")


def _read_header(member) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and dtype that an npy file announces."""
  version = np.lib.format.read_magic(member)
  size = {(1, 0): 2, (2, 0): 4}.get(version, 0)
  if size == 4 and int.from_bytes(member.peek(4)[:4], "little") > _MAX_HEADER_BYTES:
    raise ValueError("a header too long")
  if size == 2:
    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
  elif size == 4:
    shape, _, dtype = np.lib.format.read_array_header_2_0(member)
  else:
    # 3.0 differs in the encoding of field names alone, and no field of ours has such names.
    raise ValueError(f"npy version {version} is not one of 1.0, 2.0")
  return shape, dtype
