"""Stored features of images, on a disk or in a bucket, for concurrent writers and readers.

The folder is a zarr array (version 3), float32 [n,R,E+1]: R versions of each of n
images. TensorStore writes each block of images as one file, atomically, with a CRC-32C
for each chunk and for the index of the chunks. The features of an unreadable image are
NaN. The last number of a row is its place, computed from the index of the image. A
wrong place reveals rows of a moved or swapped file. Version 1 of the format, [n,R,E],
has no places; `create` adds the places.

Shapes: n images, R versions of each image, E embedding, b images of a block, B images
and V versions of a read.
"""

from collections.abc import Iterator, Mapping
import contextlib
import logging
import os
import re
from typing import Any

from jaxtyping import Float, Float32, Int
import numpy as np
import tensorstore

from pomp_jax.errors import InputError, RunError
from pomp_jax.files.paths import Path, exists, is_bucket, store_of, to_path
from pomp_jax.files.pieces import Pieces, fingerprint
from pomp_jax.files.run_folder import RunFolderWriteError, to_json
from pomp_jax.files.terminal import printable, steps_of

log = logging.getLogger(__name__)

_BLOCK = 1024  # images
_COMPLETE = "complete"
_DESCRIPTION = "zarr.json"
_PLACES = 2**24  # float32 represents all integers up to this one
_IN_MEMORY = 256 * 2**20  # bytes of the cache for chunks and for indexes of chunks


class FeatureStoreError(InputError, ValueError):
  """Stored features can't be used; the message is one line."""


class DamagedFeaturesError(FeatureStoreError):
  """Features turn out to be damaged or missing at a read."""

  status = RunError.status


class Features:
  """Array of one set of images in blocks of `block_size`; the last may be smaller."""

  def __init__(
    self,
    folder: str | os.PathLike,
    shape: tuple[int, int, int],
    made_from: Mapping[str, Any],
    *,
    together: tuple[int, int] = (1, 1),
  ):
    """Names the folder; nothing is read or written yet.

    Args:
      folder: folder of these features and nothing else.
      shape: n images, R versions of each image, E numbers of each version.
      made_from: everything that the features depend on, as JSON.
      together: numbers of images and versions in a chunk. A chunk is read as a whole
        and has one checksum.
    """
    n_images, _, width = shape
    self.folder: Path = to_path(folder)
    self.shape = shape
    self.made_from = dict(made_from)

    images_together, versions_together = together
    chunk_size = min(images_together, _BLOCK)
    self._chunk = (chunk_size, versions_together)
    # A block consists of whole chunks. If all images fit into one block, the block has
    # only as many chunks as the images need.
    n_chunks_needed = -(-n_images // chunk_size)  # rounded up
    n_chunks = min(_BLOCK // chunk_size, n_chunks_needed)
    self.block_size = chunk_size * n_chunks

    key = fingerprint([to_json(self._metadata(width + 1))])
    self._pieces = Pieces(self.folder, key)
    self._first_place = int(key[:6], 16)  # place of image 0; differs between arrays
    self._array: tensorstore.TensorStore | None = None

  def __getstate__(self) -> dict[str, Any]:
    # Don't pickle the open array: a worker process opens its own.
    return self.__dict__ | {"_array": None}

  @property
  def n_blocks(self) -> int:
    """Number of blocks."""
    return -(-self.shape[0] // self.block_size)  # rounded up

  def rows(self, block: int) -> slice:
    """Indices of the images of a block, as a slice."""
    start = block * self.block_size
    return slice(start, min(start + self.block_size, self.shape[0]))

  def size(self, block: int) -> int:
    """Number of images of a block."""
    rows = self.rows(block)
    return rows.stop - rows.start

  def create(self) -> None:
    """Creates the array, by writing its description `zarr.json`.

    Stored blocks are kept: the places in their rows tell whether they belong to this
    array. A description that is damaged, or that describes other features, is replaced.
    The rows of version 1 get their places.

    Raises:
      RunFolderWriteError: the folder can't be written.
    """
    description = self.folder / _DESCRIPTION
    with self._writing():
      if not is_bucket(self.folder):
        self.folder.mkdir(parents=True, exist_ok=True)
      try:
        self._array = self._open(create=True)
        return
      except Exception:  # TensorStore's errors have few types
        if not exists(description):
          raise

      # The description is of version 1, damaged, or of other features.
      is_version_1 = self._add_places()
      if not is_version_1:
        log.warning("%s: damaged, or of other features; writing it again", description)
      description.unlink(missing_ok=True)
      self._array = self._open(create=True)

  def stored(self) -> list[int]:
    """Lists the blocks that have a file, with one listing of the folder."""
    with self._reading():
      names = [path.name for path in self.folder.glob("c.*")]
    matches = (re.fullmatch(r"c\.(\d+)\.0\.0", name) for name in names)
    return sorted(int(match[1]) for match in matches if match)

  def to_compute(self) -> list[int]:
    """Lists the blocks that are missing or damaged; logs a warning for a damaged one.

    Reads all blocks, unless `complete` has stored that they are intact.
    """
    stored = self.stored()
    if len(stored) == self.n_blocks and self._pieces.load(_COMPLETE):
      return []
    blocks = steps_of(stored, "reading stored features", "blocks")
    intact = {block for block in blocks if self.find(block) is not None}
    return [block for block in range(self.n_blocks) if block not in intact]

  def complete(self) -> list[int]:
    """Finds the unreadable images of an array that has all its blocks.

    The first call reads all blocks, and stores the answer beside the blocks.

    Returns:
      Indices of the unreadable images, ascending.

    Raises:
      DamagedFeaturesError: a block is missing or damaged.
    """
    piece = self._pieces.load(_COMPLETE)
    if piece is None:
      first_numbers = []
      for block in range(self.n_blocks):
        # All versions of an unreadable image are NaN, so the first version is enough.
        features_bx1xE = self._read_block(block, np.s_[:1])
        first_numbers.append(features_bx1xE[:, 0, 0])
      first_number_n = np.concatenate(first_numbers)
      unreadable = np.flatnonzero(np.isnan(first_number_n))
      piece = self._pieces.save(_COMPLETE, {"unreadable": unreadable})
    return piece.facts["unreadable"]

  def find(self, block: int) -> Float[np.ndarray, "b R E"] | None:
    """Reads a block; None, with a warning, if it is damaged or missing."""
    try:
      return self._read_block(block)
    except DamagedFeaturesError as error:
      log.warning("%s", error)
      return None

  def read(
    self, indices: Int[np.ndarray, " B"], versions: Int[np.ndarray, "B V"]
  ) -> Float[np.ndarray, "B V E"]:
    """Reads V versions of each of B images.

    Raises:
      DamagedFeaturesError: a block is missing or damaged. The next start then reads all
        blocks to find such blocks.
    """
    return self._read((indices[:, None], versions), indices)

  def write(self, block: int, features: Float[np.ndarray, "b R E"]) -> None:
    """Writes a block; RunFolderWriteError if that fails."""
    rows = self.rows(block)
    place_b = self._places(np.r_[rows])
    place_bxRx1 = np.broadcast_to(place_b[:, None, None], (*features.shape[:2], 1))
    placed = np.concatenate([features, place_bxRx1], axis=-1, dtype=np.float32)
    with self._writing():
      if self.size(block) < self.block_size:
        # The file of the last block has room for more images than there are. Delete the
        # file, or TensorStore would read it before it writes a part of it.
        files: Any = self._opened().kvstore
        del files[_file_of(block)]
      self._opened()[rows].write(placed).result()

  def _places(self, indices: Int[np.ndarray, " B"]) -> Float32[np.ndarray, " B"]:
    """Places of some images, the last numbers of their rows."""
    return ((self._first_place + indices) % _PLACES).astype(np.float32)

  def _read_block(self, block: int, versions: slice = np.s_[:]) -> np.ndarray:
    rows = self.rows(block)
    return self._read((rows, versions), np.r_[rows])

  def _read(
    self, where: Any, indices: Int[np.ndarray, " B"]
  ) -> Float[np.ndarray, "B V E"]:
    """Reads the rows of some images, checks their places, and returns their features.

    Args:
      where: images and versions, as an index of the array.
      indices: indices of the images, to compute the expected places.

    Raises:
      DamagedFeaturesError: a block is missing or damaged.
    """
    with self._reading():
      placed_BxVxE = self._opened().vindex[where].read().result()
      moved = (placed_BxVxE[..., -1] != self._places(indices)[:, None]).any(axis=1)
      if moved.any():
        file = _file_of(int(indices[moved][0]) // self.block_size)
        raise ValueError(f"{file} holds the rows of another file")
    return np.ascontiguousarray(placed_BxVxE[..., :-1])

  def _add_places(self) -> bool:
    """Appends the place of each row to the row, in the stored blocks of version 1.

    After an interruption the next call does the rest: a block that has its places can't
    be read as a block of version 1, so it is skipped.

    Returns:
      Whether the stored array is of version 1.
    """
    try:
      version_1 = self._open(create=False, width=self.shape[2])
    except Exception:  # TensorStore's errors have few types
      return False

    self._array = self._open(assume=True)
    blocks = steps_of(self.stored(), "adding places to stored features", "blocks")
    for block in blocks:
      try:
        features_bxRxE = version_1[self.rows(block)].read().result()
      except Exception:  # damaged, or written with places already
        continue
      self.write(block, features_bxRxE)
    return True

  @contextlib.contextmanager
  def _reading(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # TensorStore's errors have few types
      # The next start must read all blocks again.
      with contextlib.suppress(OSError):
        self._pieces.path(_COMPLETE).unlink()
      raise DamagedFeaturesError(
        f"{self.folder}: can't be read ({_reason(error)}); a restart computes again what is"
        " missing or damaged"
      ) from error

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # TensorStore's errors have few types
      raise RunFolderWriteError(
        f"{self.folder}: can't be written ({_reason(error)})"
      ) from error

  def _opened(self) -> tensorstore.TensorStore:
    if self._array is None:
      self._array = self._open(assume=True)
    return self._array

  def _metadata(self, width: int) -> dict[str, Any]:
    """Content of `zarr.json`, as the specification of zarr 3 defines it.

    A block of images is a shard of zarr: one uncompressed file that consists of chunks.
    A chunk is the unit of a read. The cache key of the array is the fingerprint of this
    content as text, so a new order of the keys in the content makes all stored features
    count as missing.

    Args:
      width: numbers in a row: E + 1 with the place, E in version 1.
    """
    n_images, n_versions, _ = self.shape
    float_bytes = {"name": "bytes", "configuration": {"endian": "little"}}
    checksum = {"name": "crc32c"}
    chunks_of_block = {
      "codecs": [float_bytes, checksum],
      "index_codecs": [float_bytes, checksum],
      # Not at the end: a request for the first bytes of an object is like any other
      # request for a range of bytes on Google's store.
      "index_location": "start",
      "chunk_shape": (*self._chunk, width),
    }
    block_shape = (self.block_size, n_versions, width)
    return {
      "shape": (n_images, n_versions, width),
      "data_type": "float32",
      "fill_value": 0.0,
      "chunk_grid": {
        "name": "regular",
        "configuration": {"chunk_shape": block_shape},
      },
      "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
      "codecs": [{"name": "sharding_indexed", "configuration": chunks_of_block}],
      "attributes": {"made_from": self.made_from},
    }

  def _open(
    self, *, create: bool = False, assume: bool = False, width: int | None = None
  ) -> tensorstore.TensorStore:
    """Opens the array.

    Args:
      create: whether to write `zarr.json` if it is missing.
      assume: whether to assume the content of `zarr.json` without reading the file.
      width: numbers in a row; None for E + 1, a row with its place.
    """
    folder = os.fspath(self.folder)
    if is_bucket(folder):
      files = store_of(folder).key_value_store(folder)
    else:
      files = {"driver": "file", "path": f"{os.path.abspath(folder)}/"}
    return tensorstore.open(
      {
        "driver": "zarr3",
        "kvstore": files,
        "metadata": self._metadata(self.shape[2] + 1 if width is None else width),
        # Raise an error for a missing block: by default zeros are returned.
        "fill_missing_data_reads": False,
        # Write blocks of zeros too: a block without a file would count as missing.
        "store_data_equal_to_fill_value": True,
        "recheck_cached_data": "open",
        "context": {"cache_pool": {"total_bytes_limit": _IN_MEMORY}},
      },
      open=True,
      create=create,
      assume_metadata=assume,
    ).result()


def _file_of(block: int) -> str:
  return f"c.{block}.0.0"


def _reason(error: Exception) -> str:
  """Text of an error, without the specification that TensorStore appends."""
  return printable(getattr(error, "strerror", None) or str(error).partition(" [")[0])
