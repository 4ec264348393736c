"""Arrays by a key of what they were computed from, in memory and as pieces of a folder."""

from collections import OrderedDict
from collections.abc import Iterable
import concurrent.futures
import hashlib
import os

import numpy as np

from pomp_jax.files.paths import is_bucket, version_of
from pomp_jax.files.pieces import Pieces

_STAMPS = 16  # files that are looked at at once: a bucket's answer takes time
_ARRAY = "array"


def fingerprint(parts: Iterable[str | np.ndarray]) -> str:
  """Cache key: SHA-256 of texts and arrays with their dtypes, shapes and order, in hexadecimal."""
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


def file_stamps(paths: Iterable[str | os.PathLike]) -> str:
  """Part of a cache key that tells whether one of some files has changed.

  It has the size and the modification time of a file, and the version of an object in a bucket.
  """

  def stamp(path: str | os.PathLike) -> str:
    try:
      if is_bucket(path):
        return f"{path} {version_of(path)}"
      found = os.stat(path)
      return f"{path} {found.st_size} {found.st_mtime_ns}"
    except OSError:
      return f"{path} missing"

  with concurrent.futures.ThreadPoolExecutor(_STAMPS) as pool:
    return "\n".join(pool.map(stamp, paths))


class ArrayCache:
  """The arrays last used, in memory, and all of them in a folder, if there is one.

  Keys are from `fingerprint`.
  """

  def __init__(self, folder: str | os.PathLike | None = None, in_memory: int = 4):
    self._folder, self._in_memory = folder, in_memory
    self._held: OrderedDict[str, np.ndarray] = OrderedDict()

  def find(self, key: str) -> np.ndarray | None:
    """Returns the array of a key, read-only; None if it is not cached."""
    if key not in self._held:
      piece = Pieces(self._folder, key).load(key) if self._folder else None
      return None if piece is None else self._hold(key, piece.arrays[_ARRAY])
    self._held.move_to_end(key)
    return self._held[key]

  def keep(self, key: str, array: np.ndarray, *, write: bool = True) -> np.ndarray:
    """Caches an array, also in the folder if `write` (one process of several); read-only.

    Raises:
      RunFolderWriteError: the file can't be written.
    """
    if self._folder and write:
      Pieces(self._folder, key).save(key, {}, {_ARRAY: array})
    return self._hold(key, array)

  def _hold(self, key: str, array: np.ndarray) -> np.ndarray:
    array = array.view()
    array.setflags(write=False)
    self._held[key] = array
    while len(self._held) > self._in_memory:
      self._held.popitem(last=False)
    return array
