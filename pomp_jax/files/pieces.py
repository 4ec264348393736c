"""The store of finished pieces: what a job has done, so that its restart does only the
rest.

A piece is `NAME.json` (facts), or `NAME.npz` (arrays, and the facts as the JSON text
`facts`). It holds its name, the key of what it was computed from, and a checksum, and
is written atomically, on a disk and in a bucket. A piece that is missing, of another
key, damaged or another piece's (both with a warning) counts as not done. Pieces of
earlier versions do not hold their name.
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

_FACTS, _ARRAY = "facts", "array"
_NAME = "piece"  # member of the stored facts that holds the piece's name


def fingerprint(parts: Iterable[str | np.ndarray]) -> str:
  """Cache key: SHA-256 of texts and arrays with their dtypes, shapes and order, in
  hexadecimal."""
  digest = hashlib.sha256()
  for part in parts:
    content: Any = (
      part.encode() if isinstance(part, str) else np.ascontiguousarray(part)
    )
    if isinstance(part, str):
      head = f"text {len(content)}\n"
    else:
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
    """Touches nothing; `keys`: the `fingerprint` of all pieces, or of each by its
    name."""
    self.folder: Path = to_path(folder)
    self._keys = keys

  def missing(
    self,
    names: Iterable[str],
    fits: Callable[[dict[str, Any]], bool] = lambda facts: True,
  ) -> list[str]:
    """Names of the pieces to compute, as the first process sees them; all call it
    together.

    A stored piece also counts as missing if `fits` is false of its facts.
    """
    found = None
    if hosts.is_first():
      pieces = ((name, self.load(name)) for name in names)  # one at a time in memory
      found = [name for name, piece in pieces if piece is None or not fits(piece.facts)]
    return hosts.from_first(found, f"what {self.folder} lacks")

  def load(self, name: str) -> Piece | None:
    """Reads a piece, on this process; None if it has to be computed."""
    for path in (self.path(name), self.path(name, "npz")):
      try:
        piece = _read(path, name) if exists(path) else None
      except run_folder.DamagedFileError as error:
        log.warning("%s; computing it again", printable(str(error)))
        continue
      if piece is not None and piece.facts.get("key") == self._key(name):
        return piece
    return None

  def read(self, name: str) -> Piece:
    """As `load`, of a piece that is done; RunFolderError if its file has gone since."""
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
    """Writes a piece, on one process, and returns it as `load` would.

    It is an `.npz` file if arrays are given, even none. RunFolderWriteError if it can't
    be written.
    """
    path = self.path(name, "json" if arrays is None else "npz")
    plain = json.loads(run_folder.to_json({"key": self._key(name), **facts}))
    named = {**plain, _NAME: name}
    with run_folder.writing(path):
      self.folder.mkdir(parents=True, exist_ok=True)
      if arrays is None:
        run_folder.write_json(path, named)
        return Piece(plain, {})
      stored = run_folder.to_json(
        run_folder.with_checksum({**named, "arrays": _checksums(arrays)})
      )
      contents: dict[str, Any] = {
        _FACTS: np.frombuffer(stored.encode(), np.uint8),
        **arrays,
      }
      with replacing(path) as file:
        np.savez(file, **contents)
    return Piece(plain, dict(arrays))

  def remove(self) -> None:
    """Removes the folder and all its pieces."""
    remove_folder(self.folder)

  def path(self, name: str, ending: str = "json") -> Path:
    """File of a piece of facts, or with `ending="npz"` of arrays."""
    return self.folder / f"{name}.{ending}"

  def _key(self, name: str) -> str:
    return self._keys if isinstance(self._keys, str) else self._keys[name]


class ArrayCache:
  """The arrays last used, in memory, and all of them as pieces of a folder, if there
  is one."""

  def __init__(self, folder: str | os.PathLike | None = None, in_memory: int = 4):
    self._folder, self._in_memory = folder, in_memory
    self._held: OrderedDict[str, np.ndarray] = OrderedDict()

  def find(self, key: str) -> np.ndarray | None:
    """Returns the array of a `fingerprint`, read-only; None if it is not cached."""
    if key not in self._held:
      piece = Pieces(self._folder, key).load(key) if self._folder else None
      return None if piece is None else self._hold(key, piece.arrays[_ARRAY])
    self._held.move_to_end(key)
    return self._held[key]

  def keep(self, key: str, array: np.ndarray, *, write: bool = True) -> np.ndarray:
    """Caches an array, read-only; also in the folder if `write` (on one process), as
    `save`."""
    if self._folder and write:
      Pieces(self._folder, key).save(key, {}, {_ARRAY: array})
    return self._hold(key, array)

  def get(self, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the array of a `fingerprint`, read-only: cached, or computed and
    cached."""
    found = self.find(key)
    return self.keep(key, compute()) if found is None else found

  def _hold(self, key: str, array: np.ndarray) -> np.ndarray:
    array = array.view()
    array.setflags(write=False)
    self._held[key] = array
    while len(self._held) > self._in_memory:
      self._held.popitem(last=False)
    return array


def _read(path: Path, name: str) -> Piece | None:
  """Reads a piece of a name; None of an archive without facts, a cell's prompt for
  example."""
  arrays: dict[str, np.ndarray] = {}
  if path.suffix == ".json":
    content = read_file(path, run_folder.RunFolderError)
  else:
    try:
      with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as archive:
        if _FACTS not in archive.files:
          return None
        arrays = {name: archive[name] for name in archive.files}
      content = arrays.pop(_FACTS).tobytes()
    except (
      Exception
    ) as error:  # a damaged archive fails in more ways than NumPy documents
      raise run_folder.DamagedFileError(f"{path}: can't be read ({error})") from error
  facts = run_folder.parse_json(content, path)
  if not isinstance(facts, dict) or b'"checksum": ' not in content:
    raise run_folder.DamagedFileError(f"{path}: not a JSON object with its checksum")
  if path.suffix != ".json" and facts.pop("arrays") != _checksums(arrays):
    raise run_folder.DamagedFileError(f"{path}: changed after it was written")
  stored_name = facts.pop(_NAME, name)
  if stored_name != name:
    raise run_folder.DamagedFileError(
      f"{path}: holds the piece {stored_name!r}, not {name!r}"
    )
  return Piece(facts, arrays)


def _checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
  """CRC-32 of each array with its dtype and shape."""
  found = {}
  for name, array in arrays.items():
    array = np.asarray(array)
    head = zlib.crc32(f"{array.dtype.str} {array.shape}".encode())
    found[name] = f"{zlib.crc32(array.tobytes(), head):08x}"
  return found
