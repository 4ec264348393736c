"""Checksums inside files that are read again.

A JSON object has its own under `checksum`. An array's `.npy` ends with it: NumPy ignores what
follows the numbers. Files without one, of others or of earlier versions, have nothing to compare.
"""

from collections.abc import Mapping
import io
import json
from typing import Any
import zlib

import numpy as np

_CHECKSUM = "checksum"


class ChecksumError(ValueError):
  """Content that is not what was written."""


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a JSON object with its checksum as the last member."""
  rest = {key: item for key, item in value.items() if key != _CHECKSUM}
  return {**rest, _CHECKSUM: _json_checksum(rest)}


def without_checksum(value: Any) -> Any:
  """Returns a value that was read, without its checksum; ChecksumError if that is another one's."""
  if not isinstance(value, dict) or _CHECKSUM not in value:
    return value
  rest = {key: item for key, item in value.items() if key != _CHECKSUM}
  if value[_CHECKSUM] != _json_checksum(rest):
    raise ChecksumError(
      f"changed after it was written: {_CHECKSUM!r} is that of another content; without that line"
      " the file is taken as it is"
    )
  return rest


def npy_with_checksum(array: np.ndarray) -> bytes:
  """Content of an array's `.npy`, and its checksum."""
  buffer = io.BytesIO()
  np.save(buffer, array, allow_pickle=False)
  return buffer.getvalue() + zlib.crc32(buffer.getvalue()).to_bytes(4, "little")


def is_intact(content: Any) -> bool:
  """Whether the last four bytes (of bytes, or of a uint8 array) are the CRC-32 of the others."""
  checksum = zlib.crc32(content[:-4]).to_bytes(4, "little")
  return len(content) > 4 and checksum == bytes(content[-4:])


def _json_checksum(value: Any) -> str:
  """CRC-32 of a JSON value, whatever the order of its keys and its spaces."""
  return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"
