"""What every data set looks like to the loader and to evaluation.

A `Source` gives images that are ready for the CLIP. `StoredImages` is one that holds encoded images
(JPEG files, records), which a loader may decode in its own way.
"""

from collections.abc import Sequence
import copy
import os
import pathlib
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
import numpy as np

from pomp_jax.data.images import ImageError, decode_image
from pomp_jax.errors import InputError


class SourceError(InputError, ValueError):
  """Data that isn't as it has to be; one line that names the file or folder."""


@runtime_checkable
class Source(Protocol):
  """Labelled images with random access.

  Attributes:
    names: the class names, N.
    labels: int32 [n], the class of each image.
  """

  names: Sequence[str]
  labels: np.ndarray

  def __len__(self) -> int:
    """The number of images, n."""
    ...

  def images(self, indices: np.ndarray) -> np.ndarray:
    """Images by index: int [B] -> uint8 [B,H,W,3], resized and cropped for the CLIP."""
    ...


@runtime_checkable
class Storage(Protocol):
  """Where encoded images lie. Can be pickled, so that worker processes open it themselves."""

  def read(self, row: int, key: str) -> bytes:
    """The bytes of one image, JPEG or another format that Pillow knows.

    Args:
      row: its number in the storage.
      key: its name in the storage.

    Raises:
      ImageError: it can't be read; the message names it.
    """
    ...

  def where(self, row: int, key: str) -> str:
    """What to call the image in a message."""
    ...


class Files:
  """Images in files; a key is a path relative to the root."""

  def __init__(self, root: str | os.PathLike):
    """Looks at nothing yet."""
    self._root = pathlib.Path(root)

  def read(self, row: int, key: str) -> bytes:
    """The file's bytes."""
    try:
      return (self._root / key).read_bytes()
    except OSError as error:
      raise ImageError(f"{self._root / key}: can't be read ({error.strerror})") from error

  def where(self, row: int, key: str) -> str:
    """The file's path."""
    return str(self._root / key)


class StoredImages:
  """Labelled encoded images with random access; a `Source` as well.

  Attributes:
    names: the class names, N.
    labels: int32 [n], the class of each image.
    keys: n strings (NumPy's StringDType), one an image and all different: a relative path, or a
      record's id. They don't depend on where the data lies, and are the same on every host.
    image_size: S, side of what `images` gives, pixels.
  """

  def __init__(
    self,
    names: Sequence[str],
    labels: np.ndarray,
    keys: Sequence[str] | np.ndarray,
    storage: Storage,
    *,
    rows: np.ndarray | None = None,
    image_size: int = 224,
  ):
    """Ties labels to stored images; reads none of them.

    Args:
      names: N class names.
      labels: int [n], indices into `names`.
      keys: n different strings.
      storage: what `keys` and `rows` name the images of.
      rows: int [n], their numbers in the storage; 0..n-1 if None.
      image_size: S.

    Raises:
      ValueError: lengths that differ, or a label outside 0..N-1.
    """
    self.names = tuple(names)
    self.labels = np.asarray(labels, np.int32)
    self.keys = np.asarray(keys, np.dtypes.StringDType())
    self.image_size = image_size
    self._storage = storage
    self._rows = np.arange(len(self.labels)) if rows is None else np.asarray(rows, np.int64)
    if not len(self.labels) == len(self.keys) == len(self._rows):
      raise ValueError(
        f"{len(self.labels)} labels, {len(self.keys)} keys and {len(self._rows)} rows"
      )
    if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.names):
      raise ValueError(f"labels outside 0..{len(self.names) - 1}")

  def __len__(self) -> int:
    return len(self.labels)

  def encoded(self, index: int) -> bytes:
    """One image as it is stored.

    Raises:
      ImageError: it can't be read; the message names the file or the record.
    """
    return self._storage.read(int(self._rows[index]), str(self.keys[index]))

  def where(self, index: int) -> str:
    """What to call an image in a message: its file, or its record."""
    return self._storage.where(int(self._rows[index]), str(self.keys[index]))

  def images(self, indices: np.ndarray) -> UInt8[np.ndarray, "B S S 3"]:
    """Images by index, prepared as CLIP's test images are: uint8 [B,S,S,3].

    Raises:
      ImageError: one can't be read or decoded; the message names it.
    """
    return np.stack(
      [decode_image(self.encoded(i), self.where(i), self.image_size) for i in map(int, indices)]
    )

  def readable_images(
    self, indices: np.ndarray
  ) -> tuple[UInt8[np.ndarray, "B S S 3"], dict[int, str]]:
    """As `images`, but black where an image can't be read: and index -> why, for those."""
    shape = (self.image_size, self.image_size, 3)
    pixels, reasons = np.zeros((len(indices), *shape), np.uint8), {}
    for row, index in enumerate(map(int, indices)):
      try:
        pixels[row] = decode_image(self.encoded(index), self.where(index), self.image_size)
      except ImageError as error:
        reasons[index] = str(error)
    return pixels, reasons

  def subset(self, indices: np.ndarray) -> "StoredImages":
    """Some of the images, in the order of `indices`, with the same class names."""
    part = copy.copy(self)
    part.labels, part.keys = self.labels[indices], self.keys[indices]
    part._rows = self._rows[indices]
    return part

  def sized(self, image_size: int) -> "StoredImages":
    """The same, whose `images` have another size."""
    other = copy.copy(self)
    other.image_size = image_size
    return other

  def relabelled(self, names: Sequence[str], labels: np.ndarray) -> "StoredImages":
    """The same images under other class names.

    Args:
      names: the new class names, N'.
      labels: int [n], indices into them; -1 leaves the image out.

    Raises:
      ValueError: another number of labels than images, or a label outside -1..N'-1.
    """
    if len(labels) != len(self):
      raise ValueError(f"{len(labels)} labels for {len(self)} images")
    kept = np.flatnonzero(np.asarray(labels) != -1)
    return StoredImages(
      names,
      np.asarray(labels)[kept],
      self.keys[kept],
      self._storage,
      rows=self._rows[kept],
      image_size=self.image_size,
    )


class ClassSubset:
  """A source with fewer classes: n of them, spread evenly over its list.

  Attributes:
    names: the classes that are left, in their order.
    labels: int32 [n], indices into `names`.
  """

  def __init__(self, source: Source, n_classes: int):
    """Keeps n_classes of the source's classes and the images of these.

    Raises:
      ValueError: more classes than the source has.
    """
    kept = spread_evenly(n_classes, len(source.names))
    self._source = source
    self.names = tuple(source.names[c] for c in kept)
    new_label = np.full(len(source.names), -1, np.int32)
    new_label[kept] = np.arange(n_classes)
    self._images = np.flatnonzero(new_label[source.labels] >= 0)
    self.labels = new_label[source.labels[self._images]]

  def __len__(self) -> int:
    return len(self._images)

  def images(self, indices: np.ndarray) -> np.ndarray:
    """Images by index, uint8 [B,H,W,3]."""
    return self._source.images(self._images[indices])


def readable_images(source: Source, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
  """Images of any source, black where one can't be read: and index -> why, for those."""
  if isinstance(source, StoredImages):
    return source.readable_images(indices)
  return source.images(indices), {}


def spread_evenly(count: int, total: int) -> np.ndarray:
  """`count` different indices below `total`, as evenly spaced as integers allow.

  Raises:
    ValueError: count is not between 1 and total.
  """
  if not 1 <= count <= total:
    raise ValueError(f"{count} classes are not between 1 and the {total} that there are")
  return np.arange(count) * total // count
