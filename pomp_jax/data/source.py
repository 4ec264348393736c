"""Labelled images with random access: the interface of all sources, and stored images.

Shapes: n images, N classes, C chosen classes, B images of one call, S side in pixels, E
embedding.
"""

from collections.abc import Sequence
import copy
import os
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, UInt8
import numpy as np

from pomp_jax.data.class_lists import ClassList
from pomp_jax.data.images import (
  CLIPS_RESIZE,
  ImageError,
  Resize,
  check_decodes,
  read_image,
)
from pomp_jax.errors import InputError
from pomp_jax.files.paths import Path, file_size, file_stamps, read_file, to_path


class SourceError(InputError, ValueError):
  """Unusable data; the message is one line that names the file or folder."""


@runtime_checkable
class Labelled(Protocol):
  """Images by number, n of them, with N class names."""

  @property
  def names(self) -> Sequence[str]: ...  # a property: tuples are accepted too

  labels: np.ndarray  # int32 [n], class of each image

  def __len__(self) -> int: ...


@runtime_checkable
class Source(Labelled, Protocol):
  """Labelled images with random access.

  A source may also have `keys` [n], for caches: keys, labels and names together
  determine the pixels.
  """

  def images(self, indices: np.ndarray) -> np.ndarray:
    """Images by index: int [B] -> uint8 [B,H,W,3], resized and cropped for the CLIP."""
    ...


Storage = Any  # encoded images of a data set, with the methods of `Files`


class Files:
  """Storage of images in files; a key is a path relative to the root.

  Worker processes get a pickled storage and open its files themselves.
  """

  def __init__(self, root: str | os.PathLike):
    self._root = to_path(root)

  def read(self, row: int, key: str) -> bytes:
    """Content of the image with this number and name; ImageError if unreadable."""
    return read_file(self._root / key, ImageError)

  def size(self, row: int, key: str) -> int:
    """Bytes of the image with this number and name; ImageError if it can't be read."""
    try:
      return file_size(self._root / key)
    except OSError as error:
      raise ImageError(
        f"{self.where(row, key)}: can't be read ({error.strerror})"
      ) from error

  def where(self, row: int, key: str) -> str:
    """Name of an image for messages."""
    return str(self._root / key)

  def files(self, keys: Sequence[str]) -> list[Path]:
    """Files that hold the images with these names; a storage may lack this method."""
    return [self._root / key for key in keys]


class StoredImages:
  """Labelled encoded images (JPEG files, records) with random access; a `Source`."""

  # Pictures beside the images, of a format that is not read.
  unread: tuple[str, ...] = ()
  upright = False  # whether images are turned as their EXIF orientation says
  resize: Resize = CLIPS_RESIZE  # how images become S x S pixels

  def __init__(
    self,
    names: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    keys: Sequence[str] | np.ndarray,
    storage: Storage,
    rows: np.ndarray | None = None,
    image_size: int = 224,
  ):
    """Combines a storage with the classes of its images.

    Args:
      names: names of the N classes.
      labels: class of each image.
      keys: distinct paths or ids that do not depend on where the data lies.
      storage: encoded images.
      rows: the images' numbers in the storage; None for 0 to n - 1.
      image_size: side of the images in pixels, S.

    Raises:
      SourceError: a key is not Unicode text.
      ValueError: a label is outside the classes.
    """
    self.names = tuple(names)
    self.image_size = image_size
    self.labels = np.asarray(labels, np.int32)
    try:
      self.keys = np.asarray(keys, np.dtypes.StringDType())
    except UnicodeEncodeError as error:
      where = storage.where(0, error.object)
      raise SourceError(f"{where!r} is not Unicode text") from error
    self.storage = storage
    if rows is None:
      rows = np.arange(len(self.labels))
    self._rows = np.asarray(rows, np.int64)
    if len(self.labels):
      lowest = self.labels.min()
      highest = self.labels.max()
      if lowest < 0 or highest >= len(self.names):
        raise ValueError(f"labels outside 0..{len(self.names) - 1}")

  def __len__(self) -> int:
    return len(self.labels)

  def encoded(self, index: int) -> bytes:
    """Content of one image file; ImageError if it can't be read."""
    return self.storage.read(int(self._rows[index]), str(self.keys[index]))

  def checked(self, index: int) -> tuple[bytes, str]:
    """Content of one image file, and the reason why it can't be decoded, or ""."""
    content = b""
    try:
      content = self.encoded(index)
      check_decodes(content)
    except ImageError as error:
      return content, str(error)[:300]
    return content, ""

  def encoded_size(self, index: int) -> int:
    """Bytes of one image file; ImageError if it can't be read."""
    return self.storage.size(int(self._rows[index]), str(self.keys[index]))

  def where(self, index: int) -> str:
    """File or record of an image, for messages."""
    return self.storage.where(int(self._rows[index]), str(self.keys[index]))

  def stamps(self) -> str:
    """Cache key of the images without reading them; see `paths.file_stamps`.

    The key is "" if the storage has no method `files`.
    """
    files = getattr(self.storage, "files", None)
    if files is None:
      return ""
    return file_stamps(files(list(map(str, self.keys))))

  def image(self, index: int) -> UInt8[np.ndarray, "S S 3"]:
    """One image under CLIP's test preprocessing; ImageError if it is unreadable."""
    content = self.encoded(index)
    where = self.where(index)
    return read_image(content, self.image_size, self.upright, where, self.resize)

  def images(self, indices: np.ndarray) -> UInt8[np.ndarray, "B S S 3"]:
    """Images by index; see `image`."""
    return np.stack([self.image(int(index)) for index in indices])

  def replace(self, **attributes: Any) -> "StoredImages":
    """The same images with another `image_size`, `upright` or `resize`."""
    other = copy.copy(self)
    vars(other).update(attributes)
    return other

  def subset(self, indices: np.ndarray) -> "StoredImages":
    """Some of the images, in the order of `indices`, with the same class names."""
    return self.replace(
      labels=self.labels[indices], keys=self.keys[indices], _rows=self._rows[indices]
    )

  def relabelled(
    self, names: Sequence[str], labels: Int[np.ndarray, " n"]
  ) -> "StoredImages":
    """The same images under other class names; label -1 drops the image."""
    kept = np.flatnonzero(labels != -1)
    return self.subset(kept).replace(
      names=tuple(names), labels=labels[kept].astype(np.int32)
    )

  def of_classes(self, classes: Int[np.ndarray, " C"]) -> "StoredImages":
    """Images of the C given classes, relabelled in the order of `classes`."""
    labels_N = np.full(len(self.names), -1, np.int32)
    labels_N[classes] = np.arange(len(classes))
    return self.relabelled([self.names[c] for c in classes], labels_N[self.labels])


class FeatureSource(StoredImages):
  """Labelled images without pixels, whose features another program has computed."""

  storage: Any  # `FeatureRows` of the room data_sets

  @property
  def checksums(self) -> np.ndarray:
    """Checksum of the features of each image."""
    return self.storage.checksums_n[self._rows]

  def features(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B E"]:
    """Features as the image tower gave them, not normalised; NaN if unreadable."""
    return self.storage.features(self._rows[indices])

  def views(
    self, indices: Int[np.ndarray, " B"], epochs: Int[np.ndarray, " B"]
  ) -> tuple[Float[np.ndarray, "B 1 E"], Bool[np.ndarray, " B"]]:
    """Features as views for `Loader`, and which images were readable.

    The features are the same in all epochs.
    """
    features_BxE = self.features(indices)
    return features_BxE[:, None], ~np.isnan(features_BxE[:, 0])


class LabelledSet(NamedTuple):
  """Images and their class list in the order of the labels, for an evaluation."""

  source: Source
  classes: ClassList
  split: str  # test, validation, train, or all for an undivided data set


def readable_images(
  source: Source, indices: np.ndarray
) -> tuple[np.ndarray, dict[int, str]]:
  """Reads images of any source; unreadable ones are black.

  Args:
    source: images; only `StoredImages` may have unreadable ones.
    indices: numbers of the B images.

  Returns:
    Pixels uint8 [B,S,S,3]; number of each unreadable image -> reason.
  """
  if not isinstance(source, StoredImages):
    return source.images(indices), {}

  size = source.image_size
  images_BxSxSx3 = np.zeros((len(indices), size, size, 3), np.uint8)
  reasons = {}
  for row, index in enumerate(indices.tolist()):
    try:
      images_BxSxSx3[row] = source.image(index)
    except ImageError as error:
      reasons[index] = str(error)
  return images_BxSxSx3, reasons
