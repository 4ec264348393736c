"""Batches of a source's images over all devices; each process reads the images of its
own devices.

Shapes: n images of a source, B images of a batch over all processes, S side of an image
in pixels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int, UInt8
import numpy as np

from pomp_jax.data.loader import choose_readers, map_ahead
from pomp_jax.data.skipped_images import SkippedImages
from pomp_jax.data.source import Source, readable_images
from pomp_jax.encoder import Encoder
from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.mesh import CLASS, DATA

# The label of a row that does not count: padding, or an image that can't be read.
NO_LABEL = -1


class Batch(NamedTuple):
  """Images of a batch and their labels, the rows split over all devices."""

  images: UInt8[jax.Array, "B S S 3"]
  labels: Int[jax.Array, " B"]  # NO_LABEL for unreadable images, which are black
  n_images: int  # number of images without padding


def image_batches(
  encoder: Encoder,
  source: Source,
  skipped: SkippedImages,
  batch_size: int,
  threads: int,
  task: str,
  indices: Int[np.ndarray, " n"] | None = None,
) -> Iterator[Batch]:
  """Yields images in batches of one size; each process reads its devices' rows.

  The last batch is padded with copies of the last image.

  Args:
    encoder: CLIP. Images get its size, and the devices of its mesh share a batch.
    source: images.
    skipped: record to which unreadable images are added.
    batch_size: images of a batch over all processes, rounded up to a multiple of the
      devices.
    threads: threads that read images in this process.
    task: description for the progress.
    indices: images to read, in this order; all if None.

  Raises:
    CorruptDataError: too many images can't be read.
  """
  source = encoder.sized(source)
  if indices is None:
    indices = np.arange(len(source))
  n_devices = encoder.mesh.size
  # Round up to a multiple of the devices. The size depends on the whole source rather
  # than on `indices`, so that features do not depend on which images are asked for.
  size = n_devices * -(-min(batch_size, len(source)) // n_devices)
  sharding = NamedSharding(encoder.mesh, P((DATA, CLASS)))
  local_rows = _local_rows(sharding, size)

  def over_devices(part: np.ndarray) -> jax.Array:
    shape = (size, *part.shape[1:])
    return jax.make_array_from_process_local_data(sharding, part, shape)

  def read(batch: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    # Rows beyond the last image repeat that image: they are padding.
    places = np.minimum(batch * size + local_rows, len(indices) - 1)
    images, reasons = readable_images(source, indices[places])
    return indices[places], images, reasons

  n_batches = -(-len(indices) // size)
  batches = map_ahead(read, range(n_batches), choose_readers(threads, 0))
  batches = steps_of(batches, task, "batches", n_batches)
  for number, (batch_indices, images, reasons) in enumerate(batches):
    skipped.add(reasons)
    labels = np.asarray(source.labels)[batch_indices]
    is_unreadable = np.isin(batch_indices, list(reasons))
    labels = np.where(is_unreadable, NO_LABEL, labels)
    n_images = min(size, len(indices) - number * size)
    yield Batch(over_devices(images), over_devices(labels), n_images)


def _local_rows(sharding: NamedSharding, size: int) -> Int[np.ndarray, " rows"]:
  """Rows of a batch that this process's devices hold."""
  slices = sharding.addressable_devices_indices_map((size,)).values()
  rows = [np.arange(size)[shard] for shard in slices]
  return np.unique(np.concatenate(rows))
