"""Atomic file writes, and why a disk can't be written to."""

from collections.abc import Iterator
import contextlib
import errno
import os
from pathlib import Path
import re
import secrets
import tempfile
from typing import BinaryIO
import zlib

from pomp_jax.files.paths import is_bucket, store_of

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
# Messages of C++ libraries, and of NumPy where a write is cut short.
_DISK_MESSAGES = re.compile(
  r"No space left on device|Disk quota exceeded|\d+ requested and \d+ written"
)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a file for an atomic write: it replaces `path` once it is complete.

  On a disk the bytes go to a temporary file in the same folder, which is flushed and
  renamed over `path`. An object of a bucket is sent in one request. A process that is
  killed leaves the old file, never a part of the new one, and so does an error in the
  `with` block.

  Args:
    path: file or object to replace, in a folder that exists.

  Yields:
    The new file, open for binary writing.

  Raises:
    OSError: the file can't be written; a full disk, for example.
  """
  if is_bucket(path):
    with tempfile.TemporaryFile() as file:
      yield file
      file.seek(0)
      store_of(path).pipe_file(os.fspath(path), file.read())
    return

  target = Path(path)
  temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
  try:
    with open(temporary, "xb") as file:
      yield file
      # Before the rename: after a power failure the name could stand for an empty file.
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, target)
  except BaseException:  # an interrupt leaves no temporary file either
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise
  _flush_folder(target.parent)


def _flush_folder(folder: Path) -> None:
  """Makes a rename in a folder survive a power failure.

  Does nothing on file systems that can't flush a folder.
  """
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def write_file(path: str | os.PathLike, content: bytes | str) -> str:
  """Writes a file atomically, see `replacing`; returns the content's `checksum`.

  Text is written in UTF-8.
  """
  if isinstance(content, str):
    content = content.encode()
  with replacing(path) as file:
    file.write(content)
  return checksum(content)


def checksum(content: bytes) -> str:
  """CRC-32 of a file's content, in hexadecimal."""
  return f"{zlib.crc32(content):08x}"


def why_unwritable(folder: str | os.PathLike) -> str | None:
  """Describes why a folder can't be created or written to; None if it can.

  Writes nothing, so it detects neither a full disk nor a bucket that can only be read.
  """
  if is_bucket(folder):
    return store_of(folder).why_unwritable(os.fspath(folder))

  # The folder itself, or the nearest parent, in which the missing ones would be created.
  existing = Path(folder).absolute()
  while not existing.exists():
    existing = existing.parent
  if not existing.is_dir():
    return f"{existing} is a file; a folder is needed"
  if not os.access(existing, os.W_OK | os.X_OK):
    return f"{existing} is not writable"
  return None


def disk_failure(error: BaseException) -> str | None:
  """Describes a failure of a disk or bucket in one line.

  Libraries wrap such an error in their own, so the causes are searched too.

  Returns:
    The description; None if neither the error nor one of its causes is such a failure.
  """
  for link in _with_causes(error):
    description = _describe_disk_error(link)
    if description is not None:
      return description
  return None


def _with_causes(error: BaseException) -> Iterator[BaseException]:
  """Yields an error, its cause, the cause of that, ..; each once, also in a circle."""
  visited: set[int] = set()
  link: BaseException | None = error
  while link is not None and id(link) not in visited:
    visited.add(id(link))
    yield link
    link = link.__cause__ or link.__context__


def _describe_disk_error(error: BaseException) -> str | None:
  """Describes an error that itself says that a disk or bucket fails; else None."""
  if isinstance(error, OSError):
    file = error.filename
    if file and is_bucket(str(file)):
      return f"{file}: the bucket fails ({error.strerror})"
    if error.errno in _DISK_ERRORS:
      description = f"the disk fails ({error.strerror})"
      return f"{file}: {description}" if file else description
  message = _DISK_MESSAGES.search(str(error))
  if message:
    return f"the disk fails ({message[0]})"
  return None
