"""Files that are either wholly there or not there at all."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import os
from pathlib import Path
import tempfile
from typing import BinaryIO

# The only portable way to read the mask is to set it, for the whole process: once, before other
# threads make files.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
_TEMPORARY = ".tmp"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a file to write that takes the place of `path` only once it is complete.

  The bytes go to a temporary file in the same folder, are flushed to the disk, and are renamed over
  `path`. A process killed at any moment leaves the old file or the new one, never half of either.
  Each writer has a temporary file of its own; `is_temporary` tells those that a killed one left.

  Args:
    path: the file to write; its folder exists.

  Yields:
    The temporary file, opened for binary writing.

  Raises:
    OSError: the folder is missing or not writable, or the disk is full. `path` is then as it was.
  """
  with _written(Path(path), os.replace) as file:
    yield file


@contextlib.contextmanager
def creating(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """As `replacing`, of a file that must not be there yet: of several writers at once, one succeeds.

  Raises:
    FileExistsError: it is there by now, complete.
    OSError: as `replacing`.
  """
  with _written(Path(path), _move_where_nothing_is) as file:
    yield file


def is_temporary(path: str | os.PathLike) -> bool:
  """Whether a file is one that `replacing` or `creating` writes, or was killed while it wrote."""
  name = Path(path).name
  return name.startswith(".") and name.endswith(_TEMPORARY)


def why_unwritable(folder: str | os.PathLike) -> str | None:
  """What keeps a folder from being made, or from being written to; None if nothing is found.

  Writes nothing: a full disk shows only later.
  """
  existing = Path(folder).absolute()
  while not existing.exists() and existing != existing.parent:
    existing = existing.parent
  if not existing.is_dir():
    return f"{existing} is a file; a folder is needed"
  if not os.access(existing, os.W_OK | os.X_OK):
    return f"{existing} is not writable"
  return None


@contextlib.contextmanager
def _written(path: Path, move: Callable[[str, Path], None]) -> Iterator[BinaryIO]:
  descriptor, temporary = tempfile.mkstemp(
    prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent
  )
  try:
    with os.fdopen(descriptor, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp makes the file private to its owner
    move(temporary, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    raise
  _sync_folder(path.parent)


def _move_where_nothing_is(temporary: str, path: Path) -> None:
  try:
    os.link(temporary, path)
  except FileExistsError:
    raise
  except OSError:  # a file system without links
    if path.exists():
      raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
    os.replace(temporary, path)
  else:
    os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
  """Makes a rename survive a power failure, where the file system lets a folder be flushed."""
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
