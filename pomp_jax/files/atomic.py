"""Files that are either wholly there or not there at all."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import tempfile
from typing import BinaryIO

# The only portable way to read the mask is to set it, for the whole process: once, before other
# threads make files.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a file to write that takes the place of `path` only once it is complete.

  The bytes go to a temporary file in the same folder, are flushed to the disk, and are renamed over
  `path`. A process killed at any moment leaves the old file or the new one, never half of either.

  Args:
    path: the file to write; its folder exists.

  Yields:
    The temporary file, opened for binary writing.

  Raises:
    OSError: the folder is missing or not writable, or the disk is full. `path` is then as it was.
  """
  path = Path(path)
  descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
  try:
    with os.fdopen(descriptor, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp makes the file private to its owner
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    raise
  _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
  """Makes a rename survive a power failure, where the file system lets a folder be flushed."""
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
