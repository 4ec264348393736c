"""`prompt.npz`: a prompt as plain NumPy arrays."""

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
  check_version,
  make_prompt,
  refuse,
)


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
    context = _read_array(archive, path, "context", MAX_CONTEXT_BYTES)
  return make_prompt(path, context, text)


def _read_scalar(
  archive: zipfile.ZipFile, path: str | os.PathLike, field: str, kinds: str, accepted: str
) -> Any:
  array = _read_array(archive, path, field, MAX_TEXT_BYTES)
  if array.ndim != 0 or array.dtype.kind not in kinds:
    refuse(path, field, f"{array.dtype} {list(array.shape)}", accepted)
  try:
    return array.item()
  except ValueError as error:  # a code beyond Unicode's
    refuse(path, field, f"no text ({error})", accepted)


def _read_array(
  archive: zipfile.ZipFile, path: str | os.PathLike, field: str, max_bytes: int
) -> np.ndarray:
  """Reads one array; its header is judged before memory of the size it claims is taken."""
  try:
    member = archive.open(f"{field}.npy")
  except KeyError:
    names = ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist()))
    refuse(path, field, f"missing (the file has: {names or 'nothing'})", "an array of that name")
  except Exception as error:
    refuse(path, field, f"unreadable ({error})", "an undamaged npz")
  try:
    with member:
      shape, dtype = _read_header(member)
      claimed = int(np.prod([int(size) for size in shape], dtype=object)) * dtype.itemsize
    if dtype.hasobject:
      refuse(path, field, "pickled Python objects", "plain arrays (pickles can run any code)")
    if claimed > max_bytes:
      refuse(path, field, f"{claimed} bytes large", f"at most {max_bytes} bytes")
    with archive.open(f"{field}.npy") as member:
      return np.lib.format.read_array(member, allow_pickle=False)
  except PromptFileError:
    raise
  except Exception as error:  # zlib, zipfile and the header's parser: whatever a bad byte can raise
    refuse(path, field, f"damaged ({error})", "an undamaged array")


def _read_header(member) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and dtype that an npy file announces."""
  version = np.lib.format.read_magic(member)
  if version == (1, 0):
    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
  elif version == (2, 0):
    shape, _, dtype = np.lib.format.read_array_header_2_0(member)
  else:
    # 3.0 differs in the encoding of field names alone, and no field of ours has such names.
    raise ValueError(f"npy version {version} is not one of 1.0, 2.0")
  return shape, dtype
