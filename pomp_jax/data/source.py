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
