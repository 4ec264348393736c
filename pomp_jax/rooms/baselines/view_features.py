"""Features of augmented views of the training images, epoch by epoch.

Shapes: n images, V views of each, E embedding.
"""

from collections.abc import Iterator
import itertools
from typing import NamedTuple

from jaxtyping import Bool, Float
import numpy as np

from pomp_jax import hosts
from pomp_jax.config.fields import Data
from pomp_jax.data.loader import Fetch, SkippedImages, name_of
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.files.terminal import steps_of
from pomp_jax.train.batches import VIEWS, bytes_of_view, read_ahead


class Epoch(NamedTuple):
  """Features of all training images in one epoch; those of unreadable images are undefined."""

  features: Float[np.ndarray, "n V E"]  # of the views of each image, not normalised
  readable: Bool[np.ndarray, " n"]


def view_features(
  data: Data, source: Source, encoder: Encoder, fetch: Fetch, n_epochs: int
) -> Iterator[Epoch]:
  """Yields the features of all training images, epoch by epoch, on each process.

  Without augmentation all epochs are the same, and computed once. CorruptDataError if more images
  than `data.max_corrupt` allows can't be read.
  """
  if not n_epochs:
    return
  n_different = n_epochs if data.augment != "none" else 1
  size = max(1, VIEWS // data.views)
  parts = np.split(np.arange(len(source)), range(size, len(source), size))

  def read(number: int):
    indices = parts[number % len(parts)]
    return fetch(indices, np.full(len(indices), number // len(parts)))

  total = n_different * len(parts)
  stored = isinstance(source, StoredImages)
  part_bytes = size * data.views * bytes_of_view(fetch) if stored else 0
  shown = steps_of(
    read_ahead(data, total, read, part_bytes=part_bytes),
    *("features of the training's views", "batches", total),
  )
  skipped = SkippedImages(source, data.max_corrupt)
  for number in range(n_different):
    features, readable = [], []
    for indices, (found, could_be_read) in zip(parts, shown, strict=False):
      if found.ndim > 3:  # pixels [B,V,S,S,3], not stored features [B,V,E]
        flat = found.reshape(-1, *found.shape[2:])
        found = encoder.image_features(flat, unit=False).reshape(*found.shape[:2], -1)
      features.append(found)
      readable.append(could_be_read)
      unreadable = indices[~could_be_read].tolist()
      skipped.add({index: name_of(source, index) for index in unreadable})
      hosts.raise_if_preempted()
    if not number:
      skipped.gather()
    epoch = Epoch(np.concatenate(features), np.concatenate(readable))
    yield epoch
  yield from itertools.repeat(epoch, n_epochs - n_different)
