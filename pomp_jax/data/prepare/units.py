"""Where images to be stored come from, in pieces that a worker can take: slices and tar files."""

from collections.abc import Iterable, Iterator
import dataclasses
import io
import os
import pathlib
import tarfile
from typing import Protocol, runtime_checkable

import numpy as np

from pomp_jax.data.images import ImageError, open_image
from pomp_jax.data.source import SourceError, StoredImages

# A file larger than this is no image of these data sets, whatever its header says.
MAX_IMAGE_BYTES = 64 * 2**20


@runtime_checkable
class Unit(Protocol):
  """Whole classes of images; can be pickled.

  Attributes:
    weight: how much work it is, in its builder's own measure.
  """

  weight: int

  def candidates(self) -> tuple[list[str], np.ndarray]:
    """Keys and labels [n] of its images; none is read."""
    ...

  def read(self, indices: Iterable[int]) -> Iterator[tuple[int, bytes | None, str]]:
    """(index, bytes, "") in the order of `indices`; (index, None, reason) for an unreadable one."""
    ...


@dataclasses.dataclass(frozen=True)
class Slice:
  """Some images of a source."""

  source: StoredImages

  @property
  def weight(self) -> int:
    """The number of its images."""
    return len(self.source)

  def candidates(self) -> tuple[list[str], np.ndarray]:
    """See `Unit`."""
    return self.source.keys.tolist(), self.source.labels

  def read(self, indices: Iterable[int]) -> Iterator[tuple[int, bytes | None, str]]:
    """See `Unit`."""
    for index in indices:
      try:
        yield index, self.source.encoded(index), ""
      except ImageError as error:
        yield index, None, str(error)


@dataclasses.dataclass
class Tar:
  """A synset's tar file: a file of its own, or a stretch of another file.

  Nothing is extracted to the disk: regular members are read where they lie, and their names are
  nothing but names.

  Attributes:
    path: the file.
    offset: where the tar begins in it.
    size: its length, bytes.
    label: of all its images.
    synset: keys are synset/file name.
    temporary: the file is ours, to be deleted once it is stored.
  """

  path: pathlib.Path
  offset: int
  size: int
  label: int
  synset: str
  temporary: bool = False

  def __post_init__(self):
    self._members: list[tuple[int, int]] = []

  @property
  def weight(self) -> int:
    """Its bytes."""
    return self.size

  def candidates(self) -> tuple[list[str], np.ndarray]:
    """See `Unit`; links, folders and everything else that is no file are passed over.

    Raises:
      SourceError: not a tar file, or cut short.
    """
    names: dict[str, tuple[int, int]] = {}
    try:
      with _open_part(self.path, self.offset, self.size) as part:
        with tarfile.open(fileobj=part, mode="r:") as tar:
          for member in tar:
            name = pathlib.PurePosixPath(member.name).name
            if member.isreg() and not member.issparse() and name and not name.startswith("."):
              names.setdefault(name, (member.offset_data, member.size))
        ends = [offset + size for offset, size in names.values()]
        if max(ends, default=0) > self.size:
          raise SourceError(f"{self.path}: the tar of {self.synset} is cut short")
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
      if isinstance(error, SourceError):
        raise
      raise SourceError(f"{self.path}: the tar of {self.synset} can't be read ({error})") from error
    self._members = list(names.values())
    return [f"{self.synset}/{name}" for name in names], np.full(len(names), self.label)

  def read(self, indices: Iterable[int]) -> Iterator[tuple[int, bytes | None, str]]:
    """See `Unit`; `candidates` goes before."""
    with open(self.path, "rb") as file:
      for index in indices:
        offset, size = self._members[index]
        if size > MAX_IMAGE_BYTES:
          yield index, None, f"{size} bytes, more than {MAX_IMAGE_BYTES}"
          continue
        file.seek(self.offset + offset)
        yield index, file.read(size), ""


class _Part(io.RawIOBase):
  """A stretch of a file as a file."""

  def __init__(self, path: pathlib.Path, offset: int, size: int):
    self._file = open(path, "rb")  # noqa: SIM115, closed by `close`
    self._offset, self._size, self._position = offset, size, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
    self._position = start + offset
    return self._position

  def tell(self) -> int:
    return self._position

  def readinto(self, buffer) -> int:
    left = max(0, min(len(buffer), self._size - self._position))
    self._file.seek(self._offset + self._position)
    count = self._file.readinto(memoryview(buffer)[:left])
    self._position += count
    return count

  def close(self) -> None:
    self._file.close()
    super().close()


def _open_part(path: pathlib.Path, offset: int, size: int) -> io.BufferedReader:
  return io.BufferedReader(_Part(path, offset, size), 2**16)


def unreadable(image: bytes) -> str:
  """Why an image can't be decoded; empty if it can, to its last line.

  A JPEG is decoded at an eighth of its size, for which all of its data has to be there as well.
  """
  try:
    with open_image(image, "the image") as opened:
      opened.draft("RGB", (opened.width // 8, opened.height // 8))
      opened.load()
  except ImageError as error:
    return str(error)[:200]
  # Decoders of damaged files raise whatever comes: OSError, SyntaxError, ValueError, IndexError ...
  except Exception as error:
    if isinstance(error, MemoryError):
      raise
    return f"{type(error).__name__}: {error}"[:200]
  return ""
