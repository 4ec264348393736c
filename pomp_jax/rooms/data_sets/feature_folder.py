"""Image source `features`: features that another program has computed, in place of the
images.

docs/reference/formats.md describes the folder, and docs/scripts/dump_open_clip.py
writes it. The features
are mapped into memory, and each row is compared with its CRC-32 whenever it is read.
`features.json` may have a checksum. The features of an image that the other program
could not read are NaN.

Shapes: n images of a split, N classes, B images of one call, E embedding.
"""

from collections.abc import Callable
import hashlib
import os
from typing import Any, NamedTuple
import zlib

from jaxtyping import Float, Int, UInt32
import numpy as np

from pomp_jax.clip.open_clip import HUB_PREFIX, PREFIX
from pomp_jax.config.fields import Data
from pomp_jax.data.class_lists import ClassList, check_names, load_class_list
from pomp_jax.data.folder import classes_of, match_classes
from pomp_jax.data.images import ImageError
from pomp_jax.data.source import FeatureSource, LabelledSet, SourceError, StoredImages
from pomp_jax.files.features import DamagedFeaturesError
from pomp_jax.files.paths import (
  Path,
  is_dir,
  local_copy,
  read_file,
  read_user_json,
  to_path,
)
from pomp_jax.files.run_folder import DamagedFileError, without_checksum
from pomp_jax.files.terminal import printable

_SPLITS = ("train", "validation", "test")
# Ends of the names of a split's files: features [n,E], labels [n], CRC-32 of each row,
# keys.
_ENDINGS = (".npy", "_labels.npy", "_crc32.npy", "_keys.txt")


def _texts(value: Any) -> bool:
  return all(isinstance(one, str) for one in value)


# Items of `features.json`: which values are accepted, in code and in words.
_ITEMS: dict[str, tuple[Callable[[Any], bool], str]] = {
  "format_version": (lambda value: type(value) is int and value == 1, "1"),
  "clip_model": (lambda value: isinstance(value, str), "the name of a CLIP"),
  "width": (
    lambda value: type(value) is int and value > 0,
    "the width of the features",
  ),
  "names": (
    lambda value: isinstance(value, list) and _texts(value),
    "a list of class names",
  ),
  "splits": (
    lambda value: (
      isinstance(value, dict)
      and set() < {*value} <= {*_SPLITS}
      and _texts(value.values())
    ),
    f"an object with the SHA-256 of some of {', '.join(_SPLITS)}",
  ),
}


class Header(NamedTuple):
  """Content of `features.json`."""

  path: Path
  # value of `config.clip.model` whose image tower computed the features
  clip_model: str
  width: int  # E
  names: list[str]  # of the N classes, or their WordNet ids
  splits: dict[str, str]  # by name: SHA-256 of the files of labels, checksums and keys


class FeatureRows:
  """The `storage` of a `FeatureSource`; a worker process maps the file for itself."""

  def __init__(self, path: Path, checksums_n: UInt32[np.ndarray, " n"], header: Header):
    """Maps the file; SourceError if it is not float16 or float32 [n,E]."""
    self._given = path, checksums_n, header
    self.path, self.checksums_n, self.width = path, checksums_n, header.width
    self._rows_nxE = _map_array(
      path, ("float16", "float32"), (len(checksums_n), self.width)
    )

  def __reduce__(self) -> tuple:
    return FeatureRows, self._given

  def read(self, row: int, key: str) -> bytes:
    raise ImageError(f"{self.where(row, key)}: has features and no pixels")

  def where(self, row: int, key: str) -> str:
    return f"{self.path}: row {row}, {printable(key, 200)}"

  def features(self, rows_B: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B E"]:
    """Features of some rows; DamagedFeaturesError for another checksum."""
    found_BxE = np.ascontiguousarray(self._rows_nxE[rows_B])
    for row, own_E in zip(rows_B.tolist(), found_BxE, strict=True):
      if zlib.crc32(own_E) != self.checksums_n[row]:
        raise DamagedFeaturesError(
          f"{self.path}: row {row} changed after it was written: copy or dump the split again"
        )
    return found_BxE.astype(np.float32)

  def check_clip(self, model: str, width: int) -> None:
    """Raises SourceError unless a CLIP of this name and width computed them."""
    _, _, header = self._given
    # Files of one's own behind a second colon don't change which model it is.
    model = ":".join(model.split(":")[:2]) if model.startswith(PREFIX) else model
    if header.clip_model.removeprefix(HUB_PREFIX) != model.removeprefix(HUB_PREFIX):
      got = printable(repr(header.clip_model), 80)
      raise SourceError(f"{header.path}: clip_model: got {got}, expected {model!r}")
    if header.width != width:
      expected = f"{width}, that of {model}"
      raise SourceError(
        f"{header.path}: width: got {header.width}, expected {expected}"
      )


def splits(data: Data) -> tuple[str, ...]:
  """Splits that `data.root` has."""
  return tuple(read_header(data.root).splits)


def open_split(data: Data, split: str) -> StoredImages:
  """Opens a split with the classes of `data.names`, or the file's own."""
  classes = load_class_list(data.names) if data.names else None
  return _open(read_header(data.root), split, classes, all_classes=True)


def open_test_set(
  root: str | os.PathLike, dataset: str, classes: ClassList | None
) -> LabelledSet:
  """Opens the test split of a folder, or of the folder `dataset` in it, or else another
  split.

  A class of the list that the file lacks has no image, and is a possible answer.
  """
  if dataset and is_dir(to_path(root) / dataset):
    root = to_path(root) / dataset
  header = read_header(root)
  split = next(split for split in reversed(_SPLITS) if split in header.splits)
  source = _open(header, split, classes, all_classes=False)
  return LabelledSet(
    source, classes or classes_of(header.names, str(header.path)), split
  )


def read_header(root: str | os.PathLike) -> Header:
  """Reads `features.json`; SourceError, or VocabularyError of the names."""
  path = to_path(root) / "features.json"
  try:
    found = without_checksum(read_user_json(path, SourceError), path)
  except DamagedFileError as error:
    raise SourceError(str(error)) from error
  for key, (fits, expected) in _ITEMS.items():
    value = found.get(key) if isinstance(found, dict) else None
    if not fits(value):
      raise SourceError(
        f"{path}: {key}: got {printable(repr(value), 80)}, expected {expected}"
      )
  check_names(found["names"], f"{path}: names")
  return Header(path, *(found[key] for key in Header._fields[1:]))


def _open(
  header: Header, split: str, classes: ClassList | None, all_classes: bool
) -> StoredImages:
  """Opens a split under the file's own names, or those of a list, of which it may
  lack some."""
  folder, where = header.path.parent, str(header.path)
  rows, *others = (folder / f"{split}{ending}" for ending in _ENDINGS)
  content = [read_file(path, SourceError) for path in others]
  digest, told = hashlib.sha256(b"".join(content)).hexdigest(), header.splits[split]
  if digest != told:
    raise SourceError(
      f"{where}: splits.{split}: got {printable(told, 80)!r}, expected {digest}, the SHA-256 of"
      f" {', '.join(path.name for path in others)}: damaged, or files of another dump"
    )
  keys = content[-1].decode(errors="replace").removesuffix("\n").split("\n")
  labels, checksums = (
    np.array(_map_array(path, (kind,), (len(keys),)))
    for path, kind in zip(others, ("int32", "uint32"), strict=False)
  )
  storage, names = (
    FeatureRows(rows, checksums, header),
    classes_of(header.names, where).names,
  )
  try:
    source = FeatureSource(names, labels, keys, storage)
  except ValueError as error:
    raise SourceError(f"{others[0]}: {error}") from error
  if len(set(keys)) < len(keys):
    raise SourceError(f"{others[-1]}: some of the {len(keys)} keys are repeated")
  if classes is None:
    return source
  class_of = match_classes(header.names, classes, where, all_classes=all_classes)
  own_N = np.array([class_of.get(name, -1) for name in header.names], np.int32)
  return source.relabelled(classes.names, own_N[source.labels])


def _map_array(
  path: Path, types: tuple[str, ...], shape: tuple[int, ...]
) -> np.ndarray:
  """Maps an .npy file into memory; SourceError for another type or shape, or a
  damaged file."""
  try:
    array = np.lib.format.open_memmap(local_copy(path), mode="r")
  except Exception as error:  # a damaged header fails in more ways than NumPy documents
    reason = getattr(error, "strerror", None) or printable(str(error), 200)
    raise SourceError(f"{path}: can't be read as an .npy file ({reason})") from error
  if array.dtype not in map(np.dtype, types) or array.shape != shape:
    expected = f"{' or '.join(types)} {list(shape)}"
    raise SourceError(
      f"{path}: got {array.dtype} {list(array.shape)}, expected {expected}"
    )
  return array
