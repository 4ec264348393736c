"""The store of finished pieces of a job's work, so that a restart does only the rest.

A piece is a file `NAME.json` (facts), or `NAME.npz` (arrays, and the facts as the JSON
text `facts`). The file holds the piece's name, the cache key of the piece's inputs, and
a checksum. It is written atomically, on a disk and in a bucket. A piece counts as not
done if its file is missing or has another key. It also counts as not done, with a
warning, if the file is damaged or holds the name of another piece. Files of earlier
versions hold no name.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
import hashlib
import io
import json
import logging
import os
from typing import Any, NamedTuple
import zlib

import numpy as np

from pomp_jax import hosts
from pomp_jax.files import run_folder
from pomp_jax.files.atomic import replacing
from pomp_jax.files.paths import (
  Path,
  exists,
  read_bytes,
  read_file,
  remove_folder,
  to_path,
)
from pomp_jax.files.terminal import printable

log = logging.getLogger(__name__)

_FACTS = "facts"  # member of an archive that holds the facts
_ARRAY = "array"  # the one array of a piece of `ArrayCache`
_NAME = "piece"  # member of the stored facts that holds the piece's name


def fingerprint(parts: Iterable[str | np.ndarray]) -> str:
  """Cache key: SHA-256 of texts and arrays with their dtypes, shapes and order, in hex."""
  digest = hashlib.sha256()
  for part in parts:
    content: Any
    if isinstance(part, str):
      content = part.encode()
      head = f"text {len(content)}\n"
    else:
      content = np.ascontiguousarray(part)
      # Take the shape of `part`: the contiguous copy of a scalar has one axis.
      head = f"{content.dtype.str} {np.shape(part)}\n"
    digest.update(head.encode())
    digest.update(content)
  return digest.hexdigest()


class Piece(NamedTuple):
  """Content of a piece: its facts with the `key`, and its arrays by name."""

  facts: dict[str, Any]
  arrays: dict[str, np.ndarray]


class Pieces:
  """Finished pieces of work in a folder, which the first `save` creates."""

  def __init__(self, folder: str | os.PathLike, keys: str | Mapping[str, str]):
    """Names the folder; nothing is read or written yet.

    Args:
      folder: folder of these pieces.
      keys: cache key (`fingerprint`) of the inputs of all pieces, or the key of each
        piece by its name.
    """
    self.folder: Path = to_path(folder)
    self._keys = keys

  def missing(
    self,
    names: Iterable[str],
    fits: Callable[[dict[str, Any]], bool] = lambda facts: True,
  ) -> list[str]:
    """Lists the pieces that are not done, as the first process sees the folder.

    All processes call this method together. A stored piece also counts as missing if
    `fits` returns false for its facts.
    """
    missing = None
    if hosts.is_first():
      missing = []
      for name in names:
        piece = self.load(name)  # one at a time in memory
        if piece is None or not fits(piece.facts):
          missing.append(name)
    return hosts.from_first(missing, f"what {self.folder} lacks")

  def load(self, name: str) -> Piece | None:
    """Reads a piece, on this process; None if it has to be computed."""
    for path in (self.path(name), self.path(name, "npz")):
      if not exists(path):
        continue
      try:
        piece = _read(path, name)
      except run_folder.DamagedFileError as error:
        log.warning("%s; computing it again", printable(str(error)))
        continue
      if piece is not None and piece.facts.get("key") == self._key(name):
        return piece
    return None

  def read(self, name: str) -> Piece:
    """Reads a piece that was done before; RunFolderError if its file has disappeared."""
    piece = self.load(name)
    if piece is None:
      raise run_folder.RunFolderError(
        f"{self.path(name)}: gone while the job ran; the same command resumes"
      )
    return piece

  def save(
    self,
    name: str,
    facts: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
  ) -> Piece:
    """Writes a piece, on one process, and returns the piece as `load` would.

    Args:
      name: name of the piece, and of its file without the suffix.
      facts: members of the piece's JSON object.
      arrays: arrays of the piece by name. An empty dict writes an `.npz` file too, and
        None writes a `.json` file.

    Raises:
      RunFolderWriteError: the piece can't be written.
    """
    keyed = {"key": self._key(name), **facts}
    # Convert through JSON, so that the returned facts equal those that `load` reads.
    plain = json.loads(run_folder.to_json(keyed))
    stored = {**plain, _NAME: name}
    if arrays is None:
      path = self.path(name)
      with run_folder.writing(path):
        self.folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(path, stored)
      return Piece(plain, {})

    path = self.path(name, "npz")
    stored["arrays"] = _checksums(arrays)
    text = run_folder.to_json(run_folder.with_checksum(stored))
    members: dict[str, Any] = {
      _FACTS: np.frombuffer(text.encode(), np.uint8),
      **arrays,
    }
    with run_folder.writing(path):
      self.folder.mkdir(parents=True, exist_ok=True)
      with replacing(path) as file:
        np.savez(file, **members)
    return Piece(plain, dict(arrays))

  def remove(self) -> None:
    """Removes the folder and all its pieces."""
    remove_folder(self.folder)

  def path(self, name: str, ending: str = "json") -> Path:
    """File of a piece; the `ending` is "npz" for a piece with arrays."""
    return self.folder / f"{name}.{ending}"

  def _key(self, name: str) -> str:
    if isinstance(self._keys, str):
      return self._keys
    return self._keys[name]


class ArrayCache:
  """Cache of arrays: the last used in memory, all as pieces in an optional folder."""

  def __init__(self, folder: str | os.PathLike | None = None, in_memory: int = 4):
    """Starts with an empty memory; nothing is read or written yet.

    Args:
      folder: folder of the pieces; None for a cache in memory alone.
      in_memory: number of arrays in memory.
    """
    self._folder = folder
    self._n_in_memory = in_memory
    # Key -> array, the least recently used first.
    self._in_memory: OrderedDict[str, np.ndarray] = OrderedDict()

  def find(self, key: str) -> np.ndarray | None:
    """Returns the read-only array of a key (`fingerprint`); None if it is not cached."""
    if key in self._in_memory:
      self._in_memory.move_to_end(key)
      return self._in_memory[key]
    if not self._folder:
      return None
    piece = Pieces(self._folder, key).load(key)
    if piece is None:
      return None
    return self._remember(key, piece.arrays[_ARRAY])

  def keep(self, key: str, array: np.ndarray, *, write: bool = True) -> np.ndarray:
    """Caches an array in memory and, if there is a folder, as a piece in the folder.

    Args:
      key: `fingerprint` of the array's inputs.
      array: array of any shape. The caller must not change the array afterwards: the
        cache holds a view of it.
      write: whether to write the piece. If all processes compute the array, only one of
        them may pass true.

    Returns:
      A read-only view of the array.

    Raises:
      RunFolderWriteError: the piece can't be written.
    """
    if self._folder and write:
      # Each key has one piece, so the key is also the name of the piece.
      Pieces(self._folder, key).save(key, facts={}, arrays={_ARRAY: array})
    return self._remember(key, array)

  def get(self, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the read-only array of a key; computes and caches it if it is missing."""
    cached = self.find(key)
    if cached is None:
      return self.keep(key, compute())
    return cached

  def _remember(self, key: str, array: np.ndarray) -> np.ndarray:
    """Puts a read-only view in memory, and drops the least recently used arrays."""
    view = array.view()
    view.setflags(write=False)
    self._in_memory[key] = view
    while len(self._in_memory) > self._n_in_memory:
      self._in_memory.popitem(last=False)
    return view


def _read(path: Path, name: str) -> Piece | None:
  """Reads a piece from its file; None if the file is an archive that is no piece."""
  is_archive = path.suffix != ".json"
  arrays: dict[str, np.ndarray] = {}
  if is_archive:
    members = _read_archive(path)
    if members is None:
      return None
    content, arrays = members
  else:
    content = read_file(path, run_folder.RunFolderError)
  facts = run_folder.parse_json(content, path)
  # `parse_json` has compared a checksum and removed it; a piece must have had one.
  if not isinstance(facts, dict) or b'"checksum": ' not in content:
    raise run_folder.DamagedFileError(f"{path}: not a JSON object with its checksum")
  if is_archive and facts.pop("arrays") != _checksums(arrays):
    raise run_folder.DamagedFileError(f"{path}: changed after it was written")
  stored_name = facts.pop(_NAME, name)
  if stored_name != name:
    raise run_folder.DamagedFileError(
      f"{path}: holds the piece {stored_name!r}, not {name!r}"
    )
  return Piece(facts, arrays)


def _read_archive(path: Path) -> tuple[bytes, dict[str, np.ndarray]] | None:
  """Reads the facts, as JSON, and the arrays of a piece.

  Returns None for an archive without facts. It is no piece, but the prompt of an
  ablation's cell for example.
  """
  try:
    with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as archive:
      if _FACTS not in archive.files:
        return None
      arrays = {member: archive[member] for member in archive.files}
    facts = arrays.pop(_FACTS).tobytes()
  except Exception as error:
    # A damaged archive fails in more ways than NumPy documents.
    raise run_folder.DamagedFileError(f"{path}: can't be read ({error})") from error
  return facts, arrays


def _checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
  """CRC-32 of each array with its dtype and shape."""
  checksums = {}
  for name, array in arrays.items():
    array = np.asarray(array)
    head = zlib.crc32(f"{array.dtype.str} {array.shape}".encode())
    checksums[name] = f"{zlib.crc32(array.tobytes(), head):08x}"
  return checksums
