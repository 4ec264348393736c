"""Atomic file writes, and reasons why a disk or bucket can't be written to."""

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
# Messages of C++ libraries, and NumPy's message for a write that is cut short.
_DISK_MESSAGES = re.compile(
  r"No space left on device|Disk quota exceeded|\d+ requested and \d+ written"
)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a new file that replaces `path` atomically once it is complete.

  On a disk the bytes go to a temporary file beside `path`. The temporary file is
  flushed, then renamed over `path`. An object of a bucket is sent in one request. If
  the process is killed or the `with` block raises, the old file stays: `path` never
  holds a part of the new one.

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
      # Sync before the rename: otherwise a power failure could leave the new name
      # pointing to an empty file.
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, target)
  except BaseException:  # also remove the temporary file after an interrupt
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
  """Writes a file atomically by `replacing`, and returns the content's `checksum`.

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
  """Describes why a folder can't be created or written to; None if no reason is found.

  The check writes nothing, so it detects neither a full disk nor a read-only bucket.
  """
  if is_bucket(folder):
    return store_of(folder).why_unwritable(os.fspath(folder))

  # The folder, or its nearest parent that exists: missing folders are created in that.
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

  Libraries wrap a disk's error in an error of their own, so this function searches the
  causes too.

  Returns:
    The description; None if neither the error nor a cause is a failure of a disk or
    bucket.
  """
  for link in _with_causes(error):
    description = _describe_disk_error(link)
    if description is not None:
      return description
  return None


def _with_causes(error: BaseException) -> Iterator[BaseException]:
  """Yields an error and its chain of causes, each once even if the chain is a cycle."""
  visited: set[int] = set()
  link: BaseException | None = error
  while link is not None and id(link) not in visited:
    visited.add(id(link))
    yield link
    link = link.__cause__ or link.__context__


def _describe_disk_error(error: BaseException) -> str | None:
  """Describes an error that is itself a failure of a disk or bucket; else None."""
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
