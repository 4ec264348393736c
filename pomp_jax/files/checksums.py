"""CRC-32 of what is stored: of the leaves of a tree, of JSON, and of a whole file of an array."""

from collections.abc import Mapping
import io
import json
from typing import Any
import zlib

import jax
import numpy as np

_FIELD = "crc32"
_BYTES = 4


def describe(tree: Any) -> dict[str, str]:
  """Types and shapes by name: {"optimizer/0/trace": "float32 [4, 512]"}."""
  return {name: f"{leaf.dtype} {list(leaf.shape)}" for name, leaf in _leaves(tree)}


def of_leaves(tree: Any) -> dict[str, str]:
  """CRC-32 of each leaf's bytes by name, eight hexadecimal digits: finds what a disk gets wrong."""
  return {name: f"{zlib.crc32(np.asarray(leaf).tobytes()):08x}" for name, leaf in _leaves(tree)}


def of_json(value: dict[str, Any]) -> str:
  """CRC-32 of a JSON value, whatever the order of its keys."""
  return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
  """A JSON object and, as `crc32` in it, its checksum."""
  return {**value, _FIELD: int(of_json(dict(value)), 16)}


def without_checksum(value: Mapping[str, Any], fields: set[str]) -> dict[str, Any]:
  """What `with_checksum` was given.

  Args:
    value: as it was read.
    fields: those that it may have. An object of before there were checksums has no others; with
      anything beside them, a damaged name say, it is not taken for one.

  Raises:
    ValueError: it is not what was written.
  """
  rest = {name: part for name, part in value.items() if name != _FIELD}
  if not rest.keys() <= fields or (_FIELD in value and value != with_checksum(rest)):
    raise ValueError("it is not what was written")
  return rest


def array_file(array: np.ndarray) -> bytes:
  """The content of a `.npy` file, and behind it the CRC-32 of all of it, which NumPy ignores.

  Args:
    array: anything but objects.
  """
  buffer = io.BytesIO()
  np.save(buffer, array, allow_pickle=False)
  content = buffer.getvalue()
  return content + _crc32(content)


def is_whole(content: Any) -> bool:
  """Whether the last four bytes are the CRC-32 of those before them.

  Args:
    content: bytes, or a uint8 array: of a file that `array_file` made.
  """
  return len(content) > _BYTES and _crc32(content[:-_BYTES]) == bytes(content[-_BYTES:])


def _crc32(content: Any) -> bytes:
  return zlib.crc32(content).to_bytes(_BYTES, "little")


def _leaves(tree: Any) -> list[tuple[str, Any]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
