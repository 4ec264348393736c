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

  The bytes go to a temporary file in the same folder, are flushed to the disk, and are
  renamed over `path`; an object of a bucket is sent once it is complete. A process that
  is killed, or an OSError of a full disk for example, leaves the old file, never a part
  of the new one.
  """
  if is_bucket(path):
    with tempfile.TemporaryFile() as file:
      yield file
      file.seek(0)
      store_of(path).pipe_file(os.fspath(path), file.read())
    return
  path = Path(path)
  temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
  try:
    with open(temporary, "xb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise
  # On file systems that can flush a folder, the rename survives a power failure.
  with contextlib.suppress(OSError):
    descriptor = os.open(path.parent, os.O_RDONLY)
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
  """Reason why a folder can't be created or written to; None if there is none.

  Writes nothing, so it detects neither a full disk nor a bucket that can only be read.
  """
  if is_bucket(folder):
    return store_of(folder).why_unwritable(os.fspath(folder))
  absolute = Path(folder).absolute()
  existing = next(path for path in (absolute, *absolute.parents) if path.exists())
  if not existing.is_dir():
    return f"{existing} is a file; a folder is needed"
  if not os.access(existing, os.W_OK | os.X_OK):
    return f"{existing} is not writable"
  return None


def disk_failure(error: BaseException) -> str | None:
  """Describes a failure of a disk or bucket in one line.

  None if neither the error nor a cause of it is one.
  """
  seen: set[int] = set()
  link: BaseException | None = error
  while link is not None and id(link) not in seen:
    seen.add(id(link))
    if isinstance(link, OSError) and link.filename and is_bucket(str(link.filename)):
      return f"{link.filename}: the bucket fails ({link.strerror})"
    if isinstance(link, OSError) and link.errno in _DISK_ERRORS:
      where = f"{link.filename}: " if link.filename else ""
      return f"{where}the disk fails ({link.strerror})"
    if match := _DISK_MESSAGES.search(str(link)):
      return f"the disk fails ({match[0]})"
    link = link.__cause__ or link.__context__
  return None
