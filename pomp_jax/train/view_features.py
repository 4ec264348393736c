"""Features of the training images as one epoch after the other shows them.

For methods that learn from features of the frozen tower: the same views of the same images as a
training step is fed with, computed now or read from the cache.
Shapes: n images, B of them read together, V views of each, E embedding.
"""

from collections.abc import Iterator
import itertools
from typing import NamedTuple

import grain
from jaxtyping import Bool, Float
import numpy as np

from pomp_jax import hosts
from pomp_jax.config.fields import Data
from pomp_jax.data.loader import Fetch, SkippedImages, in_workers, name_of
from pomp_jax.data.source import Source
from pomp_jax.encoder import Encoder
from pomp_jax.files.progress import steps_of
from pomp_jax.train import batches

# Views that are decoded, and sent to the devices, together.
_VIEWS = 256
_DECODED_AHEAD = 4


class Epoch(NamedTuple):
  """What an epoch shows.

  Attributes:
    features: of the views of every image, as the tower gives them; not normalised.
    readable: the images that could be read; the features of the others mean nothing.
  """

  features: Float[np.ndarray, "n V E"]
  readable: Bool[np.ndarray, " n"]


def view_features(data: Data, source: Source, encoder: Encoder, n_epochs: int) -> Iterator[Epoch]:
  """Yields `n_epochs` epochs from the first on; each process computes all of it.

  Args:
    data: `config.data`: which views, read by whom. Without augmentation all epochs are the same,
      computed once.
    source: the training images.
    encoder: the CLIP.
    n_epochs: epochs.

  Raises:
    FeatureCacheError: a cache that is of something else, or not complete.
    CorruptDataError: more images than `data.max_corrupt` allows can't be read.
    Preempted: there are several processes, and one was asked to stop (SIGTERM).
  """
  fetch = batches.open_fetch(data, source, encoder)
  if data.augment != "none":
    yield from _epochs(data, source, encoder, fetch, n_epochs)
    return
  yield from itertools.repeat(next(_epochs(data, source, encoder, fetch, 1)), n_epochs)


def _epochs(
  data: Data, source: Source, encoder: Encoder, fetch: Fetch, n_epochs: int
) -> Iterator[Epoch]:
  size = max(1, _VIEWS // data.views)
  starts = range(0, len(source), size)
  parts = [np.arange(start, min(start + size, len(source))) for start in starts]

  def read(number: int):
    indices = parts[number % len(parts)]
    return fetch(indices, np.full(len(indices), number // len(parts)))

  options = grain.ReadOptions(
    num_threads=data.threads, prefetch_buffer_size=max(_DECODED_AHEAD, data.threads)
  )
  order = grain.MapDataset.range(n_epochs * len(parts)).map(read).to_iter_dataset(options)
  shown = in_workers(order, data.workers, _DECODED_AHEAD)
  total, skipped = n_epochs * len(parts), SkippedImages(source, data.max_corrupt)
  shown = steps_of(shown, "features of the training's views", "batches", total)
  for number in range(n_epochs):
    features, readable = [], []
    for indices, (views, could_be_read) in zip(parts, shown, strict=False):
      features.append(_features(encoder, views))
      readable.append(could_be_read)
      unreadable = indices[~could_be_read].tolist()
      skipped.add({index: name_of(source, index) for index in unreadable})
      hosts.raise_if_preempted()
    if not number:
      skipped.gather()
    yield Epoch(np.concatenate(features), np.concatenate(readable))


def _features(encoder: Encoder, views_BxVx: np.ndarray) -> Float[np.ndarray, "B V E"]:
  """Of pixels [B,V,S,S,3]; features from the cache are there already."""
  if views_BxVx.ndim == 3:
    return views_BxVx
  flat = views_BxVx.reshape(-1, *views_BxVx.shape[2:])
  return encoder.image_features(flat, unit=False).reshape(*views_BxVx.shape[:2], -1)
