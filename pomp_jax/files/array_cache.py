"""Caches of computed arrays: single arrays by key, and image features in blocks of rows.

Every file is a `.npy`, written atomically, with the CRC-32 of all its bytes as the last four, which
NumPy ignores. A file that is damaged or has no checksum counts as missing, with a warning. Any file
may be deleted at any time.

Shapes: n images, R augmented versions of each, E embedding, B images of a batch.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
import concurrent.futures
import contextlib
import hashlib
import io
import logging
import math
import os
from typing import Any

from jaxtyping import Float, Int
import numpy as np

from pomp_jax.errors import InputError, RunError
from pomp_jax.files.atomic import creating, is_temporary, replacing
from pomp_jax.files.checksums import is_intact, npy_with_checksum
from pomp_jax.files.paths import (
  Path,
  exists,
  file_size,
  is_bucket,
  is_file,
  read_bytes,
  store_of,
  to_path,
  version_of,
)
from pomp_jax.files.run_folder import RunFolderError, read_json, to_json, writing
from pomp_jax.files.terminal import printable, steps_of

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_STAMPS = 16  # files that are asked for at once; a bucket's answer takes time
_DESCRIPTION = "cache.json"
_REPAIR = "config.job='cache', or a restart under data.features='once', computes it again"


_OTHER_IMAGES = (
  ": images were added, removed or renamed; start another --workdir or data.feature_cache,"
  " or restore the images"
)


class FeatureCacheError(InputError, ValueError):
  """A feature cache that can't be used; the message is one line."""


class DamagedBlockError(FeatureCacheError):
  """A block that is damaged or missing when its images are read."""

  status = RunError.status


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
  """Part of a cache key: sizes and modification times of files, which tell whether one changed.

  Of objects in a bucket it is the version.
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
  """Cache of the `in_memory` arrays last used, and of `KEY.npy` files in a folder, if there is one.

  Keys are from `fingerprint`. The folder is created with the first array.
  """

  def __init__(self, folder: str | os.PathLike | None = None, in_memory: int = 4):
    self._folder = to_path(folder) if folder else None
    self._in_memory = in_memory
    self._held: OrderedDict[str, np.ndarray] = OrderedDict()

  @property
  def folder(self) -> Path | None:
    """The folder, if there is one."""
    return self._folder

  def create(self) -> None:
    """Creates the folder.

    Raises:
      RunFolderWriteError: it can't be created.
    """
    with writing(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)

  def find(self, key: str) -> np.ndarray | None:
    """Returns the array of a key, read-only; None if it is not cached."""
    if key not in self._held:
      array = self._read(key)
      if array is None:
        return None
      self._hold(key, array)
    self._held.move_to_end(key)
    return self._held[key]

  def keep(self, key: str, array: np.ndarray, *, write: bool = True) -> np.ndarray:
    """Caches an array, also in a file if `write` (by one process of several); returns it read-only.

    Raises:
      RunFolderWriteError: the file can't be written.
    """
    if self._folder is not None and write:
      with writing(self._path(key)):
        self._folder.mkdir(parents=True, exist_ok=True)
        _write(self._path(key), array)
    self._hold(key, array)
    return self._held[key]

  def _hold(self, key: str, array: np.ndarray) -> None:
    array = array.view()
    array.setflags(write=False)
    self._held[key] = array
    while len(self._held) > self._in_memory:
      self._held.popitem(last=False)

  def _read(self, key: str) -> np.ndarray | None:
    if self._folder is None or not is_file(self._path(key)):
      return None
    try:
      content = self._path(key).read_bytes()
      if not is_intact(content):
        raise ValueError("damaged, or written without a checksum")
      return np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header fails in more ways than NumPy documents
      log.warning("%s: can't be read (%s); computing it again", self._path(key), error)
      return None

  def _path(self, key: str) -> Path:
    return self._folder / f"{key}.npy"


class FeatureBlocks:
  """Image features float32 [n,R,E] in a folder, for several concurrent writers and readers.

  Local files are mapped into memory. Of objects in a bucket only the rows that are asked for are
  fetched, so that no host reads all of a cache that it shares with others. Such a part has no
  checksum: `to_compute` and `unreadable` read whole blocks and compare theirs.


  `cache.json` describes what the features were computed from; `block-00000.npy` and so on hold
  them. Features of an unreadable image are NaN. Attributes: see the arguments.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    n_images: int,
    n_versions: int,
    width: int,
    made_from: Mapping[str, Any],
    block_size: int = 1024,
  ):
    """Opens the folder if it exists; writes nothing.

    Args:
      folder: folder of the cache.
      n_images: n.
      n_versions: R.
      width: E.
      made_from: everything that the features depend on, as JSON.
      block_size: images per block of a new folder; an existing one keeps its own.

    Raises:
      FeatureCacheError: the folder holds something else, or features of something else.
    """
    self._folder = to_path(folder)
    self.n_images, self.n_versions, self.width = n_images, n_versions, width
    self.block_size = block_size
    self._description = {
      "format_version": FORMAT_VERSION,
      "n_images": n_images,
      "n_versions": n_versions,
      "width": width,
      "made_from": dict(made_from),
    }
    self._blocks: dict[int, np.ndarray] = {}
    self._starts: dict[int, int] = {}
    # In this order: another process may create the description and write blocks meanwhile.
    is_used = not all(map(is_temporary, self._folder.glob("*")))
    if exists(self._folder / _DESCRIPTION):
      self._check_description()
    elif is_used:
      raise FeatureCacheError(f"{self._folder}: not empty, and no {_DESCRIPTION} in it")

  def __getstate__(self) -> dict:
    # A worker process maps the files into its own memory.
    return self.__dict__ | {"_blocks": {}}

  @property
  def n_blocks(self) -> int:
    """Number of blocks of a complete cache."""
    return -(-self.n_images // self.block_size)

  def missing(self) -> list[int]:
    """Blocks without a file."""
    present = {path.name for path in self._folder.glob("*.npy")}
    return [block for block in range(self.n_blocks) if _block_name(block) not in present]

  def to_compute(self) -> list[int]:
    """Blocks that are missing or damaged; warns of each damaged one. Reads all others."""
    missing, damaged = self.missing(), []
    there = sorted(set(range(self.n_blocks)) - set(missing))
    for block in steps_of(there, "reading the feature cache", "blocks"):
      try:
        self._block(block)
      except DamagedBlockError as error:
        log.warning("%s", error)
        damaged.append(block)
    return sorted(missing + damaged)

  def indices(self, block: int) -> Int[np.ndarray, " b"]:
    """Indices of the images of a block."""
    start = block * self.block_size
    return np.arange(start, min(start + self.block_size, self.n_images))

  def create(self) -> None:
    """Creates the folder and its description, or adopts the block size of those that exist.

    Raises:
      RunFolderWriteError: it can't be written.
      FeatureCacheError: another process has created the cache of something else.
    """
    path = self._folder / _DESCRIPTION
    description = self._description | {"block_size": self.block_size}
    with writing(path):
      self._folder.mkdir(parents=True, exist_ok=True)
      with contextlib.suppress(FileExistsError), creating(path) as file:
        file.write(to_json(description).encode())
    self._check_description()

  def write(self, block: int, features: Float[np.ndarray, "b R E"]) -> None:
    """Writes a block, float32, atomically.

    Raises:
      RunFolderWriteError: it can't be written.
    """
    expected = (len(self.indices(block)), self.n_versions, self.width)
    if features.shape != expected or features.dtype != np.float32:
      raise ValueError(f"block {block} takes float32 {expected}, got {features.shape}")
    path = self._folder / _block_name(block)
    with writing(path):
      _write(path, features)
    self._blocks.pop(block, None)

  def read(
    self, indices: Int[np.ndarray, " B"], versions: Int[np.ndarray, "B V"]
  ) -> Float[np.ndarray, "B V E"]:
    """Reads features of images in some of their versions.

    Raises:
      DamagedBlockError: a block is missing or damaged.
    """
    if is_bucket(self._folder):
      return self._fetch(indices, versions)
    result = np.empty((*versions.shape, self.width), np.float32)
    blocks = np.asarray(indices) // self.block_size
    for block in np.unique(blocks).tolist():
      rows = np.flatnonzero(blocks == block)
      within = indices[rows] - block * self.block_size
      result[rows] = self._block(block)[within[:, None], versions[rows]]
    return result

  def unreadable(self) -> Int[np.ndarray, " u"]:
    """Indices of the images of a complete cache that could not be read.

    Raises:
      DamagedBlockError: a block is missing or damaged.
    """
    marks = [np.isnan(self._block(block)[:, 0, 0]) for block in range(self.n_blocks)]
    return np.flatnonzero(np.concatenate(marks))

  def _fetch(self, indices: np.ndarray, versions: np.ndarray) -> np.ndarray:
    """As `read`, by one range of bytes an image."""
    firsts = versions.min(axis=1)
    counts = versions.max(axis=1) - firsts + 1
    paths, starts = [], []
    for index, first in zip(np.asarray(indices).tolist(), firsts.tolist(), strict=True):
      block, row = divmod(index, self.block_size)
      paths.append(str(self._folder / _block_name(block)))
      row_bytes = 4 * self.width
      starts.append(self._data_start(block) + (row * self.n_versions + first) * row_bytes)
    ends = [start + 4 * self.width * n for start, n in zip(starts, counts.tolist(), strict=True)]
    try:
      parts = store_of(self._folder).cat_ranges(paths, starts, ends, on_error="raise")
      found = [np.frombuffer(part, "<f4").reshape(-1, self.width) for part in parts]
      return np.stack(
        [found[i][versions[i] - firsts[i]] for i in range(len(found))], dtype=np.float32
      )
    except (OSError, ValueError, IndexError) as error:
      raise DamagedBlockError(f"{self._folder}: can't be read ({printable(str(error))})") from error

  def _data_start(self, block: int) -> int:
    """Checks the header and the size of an object when first asked; offset of its first number."""
    if block not in self._starts:
      path = self._folder / _block_name(block)
      header = io.BytesIO()
      shape = (len(self.indices(block)), self.n_versions, self.width)
      fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
      np.lib.format.write_array_header_1_0(header, fields)
      expected = header.getvalue()
      try:
        found = store_of(path).cat_file(str(path), start=0, end=len(expected))
        size = file_size(path)
      except OSError as error:
        raise DamagedBlockError(f"{path}: can't be read ({error.strerror})") from error
      if found != expected or size != len(expected) + 4 * math.prod(shape) + 4:
        raise DamagedBlockError(f"{path}: {size} bytes that are not float32 {shape}; {_REPAIR}")
      self._starts[block] = len(expected)
    return self._starts[block]

  def _block(self, block: int) -> np.ndarray:
    if block in self._blocks:
      return self._blocks[block]
    path = self._folder / _block_name(block)
    try:
      if is_bucket(path):
        content = read_bytes(path)
        array, offset = np.load(io.BytesIO(content), allow_pickle=False), 0
      else:
        array = np.lib.format.open_memmap(path, mode="r")  # takes no pickles
        content, offset = np.memmap(path, np.uint8, mode="r"), array.offset
      # Earlier versions stored the checksum of the array alone, without NumPy's header.
      intact = is_intact(content) or is_intact(content[offset:])
      expected = (len(self.indices(block)), self.n_versions, self.width)
      if array.shape != expected or array.dtype != np.float32:
        raise ValueError(f"got {array.dtype} {array.shape}, expected float32 {expected}")
      if not intact:
        raise ValueError("damaged, or written without a checksum")
    except Exception as error:  # a damaged header fails in more ways than NumPy documents
      raise DamagedBlockError(
        f"{path}: can't be read ({printable(str(error))}); {_REPAIR}"
      ) from error
    if not is_bucket(path):
      self._blocks[block] = array
    return array

  def _check_description(self) -> None:
    """Compares the folder's description with this cache's, and adopts its block size."""
    path = self._folder / _DESCRIPTION
    try:
      stored = read_json(path)
      block_size, made_from = stored.pop("block_size"), stored["made_from"]
      if not isinstance(block_size, int) or block_size < 1 or not isinstance(made_from, dict):
        raise ValueError("fields of the wrong type")
    except (RunFolderError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise FeatureCacheError(f"{path}: not the description of a cache ({error})") from error
    for field, found, needed in _differences(stored, self._description):
      found = printable(repr(found))
      hint = _OTHER_IMAGES if field in ("n_images", "made_from.images") else ""
      raise FeatureCacheError(
        f"{path}: {printable(field)} is {found}, this run needs {needed!r}{hint}"
      )
    self.block_size = block_size


def _differences(found: Mapping, needed: Mapping) -> Iterator[tuple[str, Any, Any]]:
  """Yields (field, found, needed) wherever two descriptions differ."""
  for field in dict.fromkeys([*needed, *found]):
    a, b = found.get(field), needed.get(field)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      for name, *values in _differences(a, b):
        yield (f"{field}.{name}", *values)
    elif a != b:
      yield field, a, b


def _block_name(block: int) -> str:
  return f"block-{block:05d}.npy"


def _write(path: Path, array: np.ndarray) -> None:
  with replacing(path) as file:
    file.write(npy_with_checksum(array))
