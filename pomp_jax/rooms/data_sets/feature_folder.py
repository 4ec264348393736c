"""Image source `features`: features that another program computed, without the images.

docs/reference/formats.md describes the folder, and docs/scripts/dump_open_clip.py
writes such a folder. The features are mapped into memory, and each row is compared with
its CRC-32 whenever it is read. `features.json` may have a checksum. The features of an
image that the other program could not read are NaN.

Shapes: n images of a split, N classes, B images of one call, E embedding.
"""

from collections.abc import Callable, Sequence
import hashlib
import os
from typing import Any, NamedTuple
import zlib

from jaxtyping import Float, Int, UInt32
import numpy as np

from pomp_jax.clip.open_clip import HUB_PREFIX, PREFIX
from pomp_jax.config.fields import Data
from pomp_jax.data.class_lists import ClassList, check_names, load_class_list
from pomp_jax.data.folder_classes import classes_of, match_classes
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


def _is_version(value: Any) -> bool:
  return type(value) is int and value == 1


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_width(value: Any) -> bool:
  return type(value) is int and value > 0


def _is_names(value: Any) -> bool:
  return isinstance(value, list) and all(map(_is_text, value))


def _is_splits(value: Any) -> bool:
  if not isinstance(value, dict) or not value:
    return False
  return set(value) <= set(_SPLITS) and all(map(_is_text, value.values()))


# Items of `features.json`: the check of a value, and a description of accepted values.
_ITEMS: dict[str, tuple[Callable[[Any], bool], str]] = {
  "format_version": (_is_version, "1"),
  "clip_model": (_is_text, "the name of a CLIP"),
  "width": (_is_width, "the width of the features"),
  "names": (_is_names, "a list of class names"),
  "splits": (
    _is_splits,
    f"an object with the SHA-256 of some of {', '.join(_SPLITS)}",
  ),
}


class Header(NamedTuple):
  """Content of `features.json`."""

  path: Path
  clip_model: str  # value of `config.clip.model` that computed the features
  width: int  # E
  names: list[str]  # names or WordNet ids of the N classes
  splits: dict[str, str]  # split -> SHA-256 of its files of labels, checksums and keys


class FeatureRows:
  """The `storage` of a `FeatureSource`; a worker process maps the file for itself."""

  def __init__(self, path: Path, checksums_n: UInt32[np.ndarray, " n"], header: Header):
    """Maps the file.

    Args:
      path: .npy file of the features.
      checksums_n: CRC-32 of each row.
      header: content of `features.json`.

    Raises:
      SourceError: the file is damaged, or not float16 or float32 [n,E].
    """
    self.path = path
    self.checksums_n = checksums_n
    self.width = header.width
    self._header = header
    shape = len(checksums_n), header.width
    self._rows_nxE = _map_array(path, ("float16", "float32"), shape)

  def __reduce__(self) -> tuple:
    return FeatureRows, (self.path, self.checksums_n, self._header)

  def read(self, row: int, key: str) -> bytes:
    raise ImageError(f"{self.where(row, key)}: has features and no pixels")

  def where(self, row: int, key: str) -> str:
    return f"{self.path}: row {row}, {printable(key, 200)}"

  def features(self, rows_B: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B E"]:
    """Reads the features of some rows; DamagedFeaturesError if a checksum differs."""
    features_BxE = np.ascontiguousarray(self._rows_nxE[rows_B])
    for row, feature_E in zip(rows_B.tolist(), features_BxE, strict=True):
      if zlib.crc32(feature_E) != self.checksums_n[row]:
        raise DamagedFeaturesError(
          f"{self.path}: row {row} changed after it was written: copy or dump the split again"
        )
    return features_BxE.astype(np.float32)

  def check_clip(self, model: str, width: int) -> None:
    """Checks that the configured CLIP computed the features.

    Args:
      model: name of the CLIP, `config.clip.model`.
      width: width of the CLIP's features, E.

    Raises:
      SourceError: the name or the width of the CLIP that computed them differs.
    """
    header = self._header
    if model.startswith(PREFIX):
      # Drop a user's files behind the second colon: the model is the same without them.
      model = ":".join(model.split(":")[:2])
    # The hub's prefix is optional in a CLIP's name.
    stored_name = header.clip_model.removeprefix(HUB_PREFIX)
    if stored_name != model.removeprefix(HUB_PREFIX):
      got = printable(repr(header.clip_model), 80)
      raise SourceError(f"{header.path}: clip_model: got {got}, expected {model!r}")
    if header.width != width:
      expected = f"{width}, that of {model}"
      raise SourceError(
        f"{header.path}: width: got {header.width}, expected {expected}"
      )


def splits(data: Data) -> tuple[str, ...]:
  """Lists the splits that `data.root` has."""
  return tuple(read_header(data.root).splits)


def open_split(data: Data, split: str) -> StoredImages:
  """Opens a split with the classes of `data.names`, or the file's own."""
  classes = None
  if data.names:
    classes = load_class_list(data.names)
  return _open(read_header(data.root), split, classes, all_classes=True)


def open_test_set(
  root: str | os.PathLike, dataset: str, classes: ClassList | None
) -> LabelledSet:
  """Opens the test split of a folder, or else its validation or training split.

  Args:
    root: folder of a data set, or a folder with such a folder for each data set.
    dataset: name of the data set's folder in `root`, if it has a folder there.
    classes: class list; None for the file's own. A class that the file lacks has no
      image, and is a possible answer.

  Raises:
    SourceError: a missing or damaged file.
  """
  folder = to_path(root)
  if dataset and is_dir(folder / dataset):
    folder = folder / dataset
  header = read_header(folder)

  # Take the last of train, validation and test. A header has at least one split.
  present = [split for split in _SPLITS if split in header.splits]
  split = present[-1]
  images = _open(header, split, classes, all_classes=False)
  if classes is None:
    classes = classes_of(header.names, str(header.path))
  return LabelledSet(images, classes, split)


def read_header(root: str | os.PathLike) -> Header:
  """Reads `features.json`.

  Raises:
    SourceError: the file is missing or damaged, or an item has an invalid value.
    VocabularyError: the class names are unusable.
  """
  path = to_path(root) / "features.json"
  try:
    content = without_checksum(read_user_json(path, SourceError), path)
  except DamagedFileError as error:
    raise SourceError(str(error)) from error
  for key, (fits, expected) in _ITEMS.items():
    value = content.get(key) if isinstance(content, dict) else None
    if not fits(value):
      got = printable(repr(value), 80)
      raise SourceError(f"{path}: {key}: got {got}, expected {expected}")
  check_names(content["names"], f"{path}: names")
  return Header(
    path=path,
    clip_model=content["clip_model"],
    width=content["width"],
    names=content["names"],
    splits=content["splits"],
  )


def _open(
  header: Header, split: str, classes: ClassList | None, all_classes: bool
) -> StoredImages:
  """Opens a split under the file's own names, or under those of a list.

  Unless `all_classes`, the file may lack classes of the list.
  """
  folder = header.path.parent
  where = str(header.path)
  labels_file = folder / f"{split}_labels.npy"
  checksums_file = folder / f"{split}_crc32.npy"
  keys_file = folder / f"{split}_keys.txt"
  keys = _read_keys(header, split, [labels_file, checksums_file, keys_file])
  labels_n = np.array(_map_array(labels_file, ("int32",), (len(keys),)))
  checksums_n = np.array(_map_array(checksums_file, ("uint32",), (len(keys),)))
  rows = FeatureRows(folder / f"{split}.npy", checksums_n, header)
  names = classes_of(header.names, where).names
  try:
    source = FeatureSource(names, labels_n, keys, rows)
  except ValueError as error:
    raise SourceError(f"{labels_file}: {error}") from error
  if len(set(keys)) < len(keys):
    raise SourceError(f"{keys_file}: some of the {len(keys)} keys are repeated")
  if classes is None:
    return source
  class_of = match_classes(header.names, classes, where, all_classes=all_classes)
  # Class in the list of each label in the file; images of class -1 are left out.
  classes_N = np.array([class_of.get(name, -1) for name in header.names], np.int32)
  return source.relabelled(classes.names, classes_N[source.labels])


def _read_keys(header: Header, split: str, paths: Sequence[Path]) -> list[str]:
  """Reads the keys in the last of some files, and checks the SHA-256 of all of them."""
  content = [read_file(path, SourceError) for path in paths]
  digest = hashlib.sha256(b"".join(content)).hexdigest()
  stated = header.splits[split]
  if digest != stated:
    raise SourceError(
      f"{header.path}: splits.{split}: got {printable(stated, 80)!r}, expected {digest}, the"
      f" SHA-256 of {', '.join(path.name for path in paths)}: damaged, or files of another dump"
    )
  return content[-1].decode(errors="replace").removesuffix("\n").split("\n")


def _map_array(
  path: Path, types: tuple[str, ...], shape: tuple[int, ...]
) -> np.ndarray:
  """Maps an .npy file into memory, or a local copy of a bucket's file.

  Args:
    path: the file.
    types: names of the NumPy types that it may have.
    shape: shape that it must have.

  Raises:
    SourceError: the file is missing or damaged, or of another type or shape.
  """
  try:
    array = np.lib.format.open_memmap(local_copy(path), mode="r")
  except Exception as error:  # a damaged header fails in more ways than NumPy documents
    # The text of an OSError would repeat the path.
    reason = getattr(error, "strerror", None)
    if not reason:
      reason = printable(str(error), 200)
    raise SourceError(f"{path}: can't be read as an .npy file ({reason})") from error

  accepted_types = [np.dtype(name) for name in types]
  if array.dtype not in accepted_types or array.shape != shape:
    actual = f"{array.dtype} {list(array.shape)}"
    expected = f"{' or '.join(types)} {list(shape)}"
    raise SourceError(f"{path}: got {actual}, expected {expected}")
  return array
