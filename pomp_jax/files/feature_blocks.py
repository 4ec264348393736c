"""Image features computed once and kept: blocks of rows in a folder, and what they are features of.

`cache.json` says what the rows were computed from; `block-00000.npy` and so on hold them, each
written atomically, so that several processes and several starts can fill the folder at once, stop,
and resume. Each ends with a checksum, see `checksums.array_file`.

Features of an image that could not be read are NaN.

Shapes: n images, R augmented versions of each, E embedding, B images asked for.
"""

from collections.abc import Mapping, Sequence
import contextlib
import logging
import os
import pathlib
from typing import Any

from jaxtyping import Float, Int
import numpy as np

from pomp_jax.errors import InputError, RunError
from pomp_jax.files import checksums
from pomp_jax.files.atomic import creating, is_temporary, replacing
from pomp_jax.files.progress import steps_of
from pomp_jax.files.run_folder import RunFolderError, read_json, to_json, writing
from pomp_jax.files.terminal import printable

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_DESCRIPTION = "cache.json"


class FeatureCacheError(InputError, ValueError):
  """A cache that can't be used; the message is one line."""


class DamagedBlockError(FeatureCacheError):
  """A block that can't be read, or is gone: it shows when its images are asked for."""

  status = RunError.status


class FeatureBlocks:
  """Features float32 [n,R,E] in a folder.

  Attributes:
    n_images: n.
    n_versions: R.
    width: E.
    block_size: images a block; the last has what is left.
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
    """Opens the folder, if it is there; nothing is written yet.

    Args:
      folder: of the cache.
      n_images: n.
      n_versions: R.
      width: E.
      made_from: all that the features depend on, by name, as JSON has it.
      block_size: images a block, of a new folder; one that is there keeps its own.

    Raises:
      FeatureCacheError: what is there is no cache, or one of something else.
    """
    self._folder = pathlib.Path(folder)
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
    if (self._folder / _DESCRIPTION).exists():
      self._adopt()
    elif not all(map(is_temporary, self._entries())):
      raise FeatureCacheError(f"{self._folder}: not empty, and no {_DESCRIPTION} in it")

  def __getstate__(self) -> dict:
    # What is mapped into memory here is mapped anew in a worker process.
    return self.__dict__ | {"_blocks": {}}

  @property
  def n_blocks(self) -> int:
    """How many blocks a complete cache has."""
    return -(-self.n_images // self.block_size)

  def missing(self) -> list[int]:
    """The blocks that are not there."""
    present = {path.name for path in self._entries()}
    return [block for block in range(self.n_blocks) if _name(block) not in present]

  def to_compute(self) -> list[int]:
    """The blocks that are missing or damaged, which a warning says of each; reads all others."""
    missing, damaged = self.missing(), []
    there = sorted(set(range(self.n_blocks)) - set(missing))
    for block in steps_of(there, "reading the feature cache", "blocks"):
      try:
        self._blocks[block] = self._open_block(block)
      except DamagedBlockError as error:
        log.warning("%s; computing it again", error)
        damaged.append(block)
    return sorted(missing + damaged)

  def indices(self, block: int) -> Int[np.ndarray, " b"]:
    """The images of a block."""
    start = block * self.block_size
    return np.arange(start, min(start + self.block_size, self.n_images))

  def create(self) -> None:
    """Makes the folder and says what is in it, unless that is done.

    Of several starts at once one does; the others take over what that one has written.

    Raises:
      RunFolderWriteError: it can't be written.
      FeatureCacheError: another start has made it, meanwhile, the cache of something else.
    """
    path = self._folder / _DESCRIPTION
    description = self._description | {"block_size": self.block_size}
    with writing(path):
      self._folder.mkdir(parents=True, exist_ok=True)
      with contextlib.suppress(FileExistsError), creating(path) as file:
        file.write(to_json(description, path.name).encode())
    self._adopt()

  def write(self, block: int, features: Float[np.ndarray, "b R E"]) -> None:
    """Writes a block.

    Raises:
      RunFolderWriteError: it can't be written; nothing of it is left then.
    """
    expected = (len(self.indices(block)), self.n_versions, self.width)
    if features.shape != expected or features.dtype != np.float32:
      raise ValueError(f"block {block} takes float32 {expected}, got {features.shape}")
    path = self._folder / _name(block)
    with writing(path), replacing(path) as file:
      file.write(checksums.array_file(features))
    self._blocks.pop(block, None)

  def read(
    self, indices: Int[np.ndarray, " B"], versions: Int[np.ndarray, "B V"]
  ) -> Float[np.ndarray, "B V E"]:
    """Features of images in some of their versions, from files mapped into memory.

    Raises:
      DamagedBlockError: a block is missing or damaged.
    """
    result = np.empty((*versions.shape, self.width), np.float32)
    blocks = np.asarray(indices) // self.block_size
    for block in np.unique(blocks).tolist():
      rows = np.flatnonzero(blocks == block)
      within = indices[rows] - block * self.block_size
      result[rows] = self._block(block)[within[:, None], versions[rows]]
    return result

  def unreadable(self) -> Int[np.ndarray, " u"]:
    """The images of a complete cache that could not be read.

    Raises:
      DamagedBlockError: a block is missing or damaged.
    """
    blocks = range(self.n_blocks)
    marks = [np.isnan(self._block(block)[:, 0, 0]) for block in blocks]
    return np.flatnonzero(np.concatenate(marks))

  def _block(self, block: int) -> np.ndarray:
    if block not in self._blocks:
      try:
        self._blocks[block] = self._open_block(block)
      except DamagedBlockError as error:
        message = f"{error}; config.job='cache' computes it again"
        raise DamagedBlockError(message) from error
    return self._blocks[block]

  def _open_block(self, block: int) -> np.ndarray:
    path = self._folder / _name(block)
    try:
      array = np.lib.format.open_memmap(path, mode="r")  # takes no pickles
      as_written = _is_as_written(path, array)
    except Exception as error:  # a damaged header fails in more ways than NumPy documents
      raise DamagedBlockError(f"{path}: can't be read ({printable(str(error))})") from error
    expected = (len(self.indices(block)), self.n_versions, self.width)
    if array.shape != expected or array.dtype != np.float32:
      raise DamagedBlockError(
        f"{path}: holds {array.dtype} {array.shape}, float32 {expected} is needed"
      )
    if not as_written:
      raise DamagedBlockError(f"{path}: is not what was written, or has no checksum")
    return array

  def _entries(self) -> list[pathlib.Path]:
    try:
      return list(self._folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
      return []

  def _adopt(self) -> None:
    """Takes over a folder that holds the same features, filled or not."""
    path = self._folder / _DESCRIPTION
    try:
      stored = read_json(path)
      if not isinstance(stored, dict):
        raise ValueError("no object")
      block_size = stored.pop("block_size")
      made_from = stored["made_from"]
      if not isinstance(block_size, int) or block_size < 1 or not isinstance(made_from, dict):
        raise ValueError("fields of the wrong type")
    except (RunFolderError, ValueError, KeyError, TypeError) as error:
      raise FeatureCacheError(f"{path}: not the description of a cache ({error})") from error
    for field, found, needed in _differences(stored, self._description):
      found = printable(repr(found))
      raise FeatureCacheError(f"{path}: {printable(field)} is {found}, this run needs {needed!r}")
    self.block_size = block_size


def _differences(found: Mapping, needed: Mapping) -> Sequence[tuple[str, Any, Any]]:
  """(field, found, needed) wherever two descriptions differ."""
  result = []
  for field in dict.fromkeys([*needed, *found]):
    a, b = found.get(field), needed.get(field)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      result += [(f"{field}.{name}", *values) for name, *values in _differences(a, b)]
    elif a != b:
      result.append((field, a, b))
  return result


def _is_as_written(path: pathlib.Path, array: np.memmap) -> bool:
  """By the checksum at the end: of the whole file, or, as earlier versions had it, of the array."""
  content = np.memmap(path, np.uint8, mode="r")
  return checksums.is_whole(content) or checksums.is_whole(content[array.offset :])


def _name(block: int) -> str:
  return f"block-{block:05d}.npy"
