"""Files that a user made, text and JSON; an unusable one is an error of one line that names it."""

import json
import os
from typing import Any

from pomp_jax.files.paths import read_bytes
from pomp_jax.files.terminal import printable


def read_file(path: str | os.PathLike, error: type[Exception]) -> bytes:
  """Reads the content of a file; raises `error` if it can't be read."""
  try:
    return read_bytes(path)
  except OSError as cause:
    raise error(f"{path}: can't be read ({cause.strerror})") from cause


def read_text(path: str | os.PathLike, error: type[Exception]) -> str:
  """Reads UTF-8 text, with or without a byte order mark; raises `error` if it can't be read."""
  try:
    return read_file(path, error).decode("utf-8-sig")
  except UnicodeDecodeError as cause:
    raise error(f"{path}: not UTF-8 text ({cause.reason})") from cause


def read_user_json(path: str | os.PathLike, error: type[Exception], **options: Any) -> Any:
  """Reads JSON, with options of `json.loads`; raises `error` if it can't be read or is not JSON."""
  content = read_file(path, error)
  try:
    return json.loads(content, **options)
  # ValueError: not JSON, not Unicode, or a number with thousands of digits.
  except (ValueError, RecursionError) as cause:
    raise error(f"{path}: not JSON ({printable(str(cause))})") from cause
