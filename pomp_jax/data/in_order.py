"""Batches for evaluation: every image once, in order.

Shapes: G images of a batch over all processes, B of these that a process reads.
"""

from collections.abc import Iterator

import grain
import numpy as np

from pomp_jax.data.source import Source, readable_images


def ordered_batches(
  source: Source,
  *,
  batch_size: int,
  rows: np.ndarray | None = None,
  threads: int = 2,
  prefetch: int = 4,
) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
  """Reads the batches one after the other, rendered or decoded ahead by threads.

  Args:
    source: the images.
    batch_size: G; the last batch is filled up with the last image.
    rows: int [B], which images of each batch to read; all if None.
    threads: that read ahead.
    prefetch: batches that they hold ready.

  Yields:
    The index of the batch's first image, the images of `rows`, uint8 [B,H,W,3], and index -> reason
      for those of them that can't be read, which are black.
  """
  rows = np.arange(batch_size) if rows is None else rows

  def read(batch: int) -> tuple[int, np.ndarray, dict[int, str]]:
    start = batch * batch_size
    return start, *readable_images(source, np.minimum(start + rows, len(source) - 1))

  order = grain.MapDataset.range(-(-len(source) // batch_size)).map(read)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
  return iter(order.to_iter_dataset(options))
