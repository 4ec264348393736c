"""Arrays that are costly to compute, kept by a fingerprint of all they were computed from."""

from collections import OrderedDict
from collections.abc import Iterable
import hashlib
import io
import logging
import os
import pathlib

import numpy as np

from pomp_jax.files import checksums
from pomp_jax.files.atomic import replacing
from pomp_jax.files.run_folder import writing

log = logging.getLogger(__name__)


def fingerprint(parts: Iterable[str | np.ndarray]) -> str:
  """SHA-256 of texts and arrays, their types, shapes and order included, as hexadecimal digits."""
  digest = hashlib.sha256()
  for part in parts:
    if isinstance(part, str):
      content = part.encode()
      head = f"text {len(content)}\n"
    else:
      part = np.asarray(part)
      head, content = f"{part.dtype.str} {part.shape}\n", np.ascontiguousarray(part)
    digest.update(head.encode())
    digest.update(content)
  return digest.hexdigest()


class ArrayCache:
  """Keeps the last few arrays in memory, and all of them in a folder if there is one.

  The files are `KEY.npy`, each written atomically, with a checksum behind the array; any may be
  deleted at any time. One that can't be read, is not what was written or has no checksum (those of
  earlier versions had none) is ignored with a warning, and replaced once it is computed again.
  """

  def __init__(self, folder: str | os.PathLike | None = None, in_memory: int = 4):
    """Nothing is created before there is something to keep.

    Args:
      folder: for the files; none if empty.
      in_memory: how many arrays to hold, the latest used.
    """
    self._folder = pathlib.Path(folder) if folder else None
    self._in_memory = in_memory
    self._held: OrderedDict[str, np.ndarray] = OrderedDict()

  def find(self, key: str) -> np.ndarray | None:
    """The array of a key, read-only; None if it is not kept."""
    if key not in self._held:
      array = self._read(key)
      if array is None:
        return None
      self._hold(key, array)
    self._held.move_to_end(key)
    return self._held[key]

  def keep(self, key: str, array: np.ndarray, *, write: bool = True) -> np.ndarray:
    """Keeps an array under a key; returns it, read-only.

    Args:
      key: from `fingerprint`.
      array: anything but objects.
      write: whether to write the file too, if there is a folder (one process of many does).

    Raises:
      RunFolderWriteError: the file can't be written.
    """
    if self._folder is not None and write:
      with writing(self._path(key)):
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._path(key)) as file:
          file.write(checksums.array_file(array))
    self._hold(key, array)
    return self._held[key]

  def _hold(self, key: str, array: np.ndarray) -> None:
    array = array.view()
    array.setflags(write=False)
    self._held[key] = array
    while len(self._held) > self._in_memory:
      self._held.popitem(last=False)

  def _read(self, key: str) -> np.ndarray | None:
    if self._folder is None or not self._path(key).is_file():
      return None
    try:
      content = self._path(key).read_bytes()
      if not checksums.is_whole(content):
        raise ValueError("it is not what was written, or was written without a checksum")
      return np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header fails in more ways than NumPy documents
      log.warning("%s: can't be read (%s); computing it again", self._path(key), error)
      return None

  def _path(self, key: str) -> pathlib.Path:
    return self._folder / f"{key}.npy"
