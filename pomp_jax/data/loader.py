"""Batches for training: a global shuffle that is a function of the seed, read by position.

Shapes: G images of a global batch.
"""

from collections.abc import Iterator

import grain
import numpy as np

from pomp_jax.data.source import Source


def train_batches(
  source: Source,
  *,
  batch_size: int,
  seed: int,
  start: int = 0,
  shard: tuple[int, int] = (0, 1),
  threads: int = 2,
  prefetch: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
  """Endless batches from position `start` on, rendered or decoded ahead by threads.

  Batch i holds the images i*G..(i+1)*G-1 of a sequence of epochs, each shuffled anew. So the
  position in the data is the number of steps done, and a run that starts again reads on.

  Args:
    source: the images.
    batch_size: G, over all processes.
    seed: of the shuffles.
    start: batches to skip.
    shard: (index, count): which process of how many this is; it gets its block of each batch.
    threads: that read ahead.
    prefetch: batches that they hold ready.

  Yields:
    {"image": uint8 [G/count,H,W,3], "label": int32 [G/count]}.

  Raises:
    ValueError: the processes do not divide the batch.
  """
  index, count = shard
  if batch_size % count:
    raise ValueError(f"a batch of {batch_size} does not divide by {count} processes")
  rows = slice(index * batch_size // count, (index + 1) * batch_size // count)

  def read(indices: np.ndarray) -> dict[str, np.ndarray]:
    mine = np.asarray(indices)[rows]
    return {"image": source.images(mine), "label": source.labels[mine].astype(np.int32)}

  order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().batch(batch_size)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
  return iter(order[start:].map(read).to_iter_dataset(options))
