"""Images of a source in batches over all devices: each is read by the process of its
device.

Shapes: n images of a source, B images of a batch over all processes, S their side.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int, UInt8
import numpy as np

from pomp_jax.data.loader import choose_readers, map_ahead
from pomp_jax.data.source import Source, readable_images
from pomp_jax.data.unreadable import SkippedImages
from pomp_jax.encoder import Encoder
from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.mesh import CLASS, DATA

# The label of a row that does not count: padding, or an image that can't be read.
NO_LABEL = -1


class Batch(NamedTuple):
  """Images of a batch and their labels, the rows split over all devices."""

  images: UInt8[jax.Array, "B S S 3"]
  labels: Int[jax.Array, " B"]  # NO_LABEL for unreadable images, which are black
  n_images: int  # without those that pad the batch


def image_batches(
  encoder: Encoder,
  source: Source,
  skipped: SkippedImages,
  batch_size: int,
  threads: int,
  task: str,
  indices: Int[np.ndarray, " n"] | None = None,
) -> Iterator[Batch]:
  """Yields images by index, or all, in batches of one size; each process reads its
  devices' rows.

  The last batch is padded with the last image. Adds unreadable images to `skipped`.
  """
  source = encoder.sized(source)
  indices = np.arange(len(source)) if indices is None else indices
  n_devices = encoder.mesh.size
  # A part of the images has the same size, so that features do not depend on which part
  # it is.
  size = n_devices * -(-min(batch_size, len(source)) // n_devices)
  sharding = NamedSharding(encoder.mesh, P((DATA, CLASS)))
  shards = sharding.addressable_devices_indices_map((size,)).values()
  own = np.unique(np.concatenate([np.arange(size)[shard] for shard in shards]))

  def over_devices(part: np.ndarray) -> jax.Array:
    return jax.make_array_from_process_local_data(
      sharding, part, (size, *part.shape[1:])
    )

  def read(batch: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    shown = indices[np.minimum(batch * size + own, len(indices) - 1)]
    return shown, *readable_images(source, shown)

  n_batches = -(-len(indices) // size)
  batches = map_ahead(read, range(n_batches), choose_readers(threads, 0))
  for number, (shown, images, reasons) in enumerate(
    steps_of(batches, task, "batches", n_batches)
  ):
    skipped.add(reasons)
    labels = np.where(
      np.isin(shown, list(reasons)), NO_LABEL, np.asarray(source.labels)[shown]
    )
    n_images = min(size, len(indices) - number * size)
    yield Batch(over_devices(images), over_devices(labels), n_images)
