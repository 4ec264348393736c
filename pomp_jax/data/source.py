"""What every data set looks like to the loader."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


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


def spread_evenly(count: int, total: int) -> np.ndarray:
  """`count` different indices below `total`, as evenly spaced as integers allow.

  Raises:
    ValueError: count is not between 1 and total.
  """
  if not 1 <= count <= total:
    raise ValueError(f"{count} classes are not between 1 and the {total} that there are")
  return np.arange(count) * total // count
