"""Batches for training: a global shuffle that is a function of the seed, read by position.

Shapes: G rows of a global batch, V views an image, B images of a batch that a process reads.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import threading

from absl import flags
import grain
from jaxtyping import Int, Shaped
import numpy as np

from pomp_jax.data.order import epoch_order
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.data.unreadable import CorruptDataError

# What to show of B images in B epochs: [B,V,..], pixels or features, and which could be read [B].
Fetch = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

# Images in a row that may be unreadable: more than damage by chance explains.
_TRIES = 100
# Batches, more than any run has.
_ENDLESS = 2**62
# What a launcher, or Ctrl-C, sends to all processes of a run.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Loader(Iterator[dict[str, np.ndarray]]):
  """Endless batches from a position on, rendered, decoded or looked up ahead of the step.

  Batch i holds the images i*G/V..(i+1)*G/V-1 of a sequence of epochs, each shuffled anew. So the
  position in the data is the number of steps done, and a run that starts again reads on.

  An image that can't be read is replaced by the one behind it in the source: a rule that does not
  depend on who reads it.

  Yields:
    {"image": [G/count,..], "label": int32 [G/count]}; the V views of an image lie side by side.

  Attributes:
    unreadable: indices of the images that were met and could not be read.
  """

  def __init__(
    self,
    source: Source,
    fetch: Fetch,
    *,
    batch_size: int,
    seed: int,
    n_views: int = 1,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    workers: int = 0,
    prefetch: int = 4,
    max_corrupt: float = 0.0,
    unreadable: frozenset[int] = frozenset(),
  ):
    """Starts to read ahead at the first batch that is asked for.

    Args:
      source: whose images these are.
      fetch: what to show of them; is pickled where there are workers.
      batch_size: G, over all processes.
      seed: of the shuffles.
      n_views: V.
      start: batches to skip.
      shard: (index, count): which process of how many this is; it gets its block of each batch.
      threads: that read ahead, in each worker.
      workers: processes for reading; 0: none beside this one.
      prefetch: batches that are held ready.
      max_corrupt: share of the source's images that may be unreadable.
      unreadable: those that are known already.

    Raises:
      ValueError: the views or the processes do not divide the batch.
    """
    if batch_size % n_views:
      raise ValueError(f"a batch of {batch_size} does not divide by {n_views} views")
    n_images, (_, count) = batch_size // n_views, shard
    if n_images % count:
      raise ValueError(f"a batch of {n_images} images does not divide by {count} processes")
    self._source = source
    self._allowed = int(max_corrupt * len(source))
    self.unreadable = set(unreadable)
    read = _Read(source.labels, fetch, len(source), n_images, seed, shard)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    batches = grain.MapDataset.range(start, _ENDLESS).map(read).to_iter_dataset(options)
    self._batches = in_workers(batches, workers, prefetch)

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._batches)
    self.note(batch.pop("unreadable").tolist())
    return batch

  def note(self, found: Sequence[int]) -> None:
    """Takes images that could not be read, met here or by another process.

    Raises:
      CorruptDataError: with them there are more than allowed.
    """
    self.unreadable.update(found)
    if len(self.unreadable) > self._allowed:
      last = found[-1] if found else max(self.unreadable)
      raise CorruptDataError(
        f"{len(self.unreadable)} of {len(self._source)} images can't be read, {self._allowed} are"
        f" allowed by data.max_corrupt; the last: {name_of(self._source, last)}"
      )

  def close(self) -> None:
    """Ends the worker processes."""
    if hasattr(self._batches, "close"):
      self._batches.close()


def in_workers(elements: grain.IterDataset, workers: int, ahead: int) -> Iterator:
  """The elements, made by so many processes, each so many ahead; by none: in this one.

  They start when the first element is asked for. `close()` ends them.
  """
  if not workers:
    return iter(elements)
  if not flags.FLAGS.is_parsed():
    # Grain asks for flags of its own, which a program without a command line has not parsed.
    flags.FLAGS.mark_as_parsed()
  options = grain.MultiprocessingOptions(workers, ahead)
  return _spawned(iter(elements.mp_prefetch(options, _begin_worker)))


def _spawned(elements: grain.DatasetIterator) -> Iterator:
  """The elements; a signal to all processes of a run finds no worker that has yet to learn of it.

  A worker imports for seconds before `_begin_worker` runs. It inherits what the thread that starts
  it holds back, and that thread, of Grain's, inherits it from this one.
  """
  # Started later, it would let the signals through again in the thread that starts it.
  multiprocessing.resource_tracker.ensure_running()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
  try:
    try:
      # Its threads are made for the first element, and go on holding them back.
      first = list(itertools.islice(elements, 1))
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield from first
    yield from elements
  finally:
    elements.close()


def _begin_worker(index: int, count: int) -> None:
  """In a worker: it ends when its run has no more use for it, or is gone.

  A launcher, or Ctrl-C, signals all processes of a run; the run has to save first, and goes on
  until then.
  """
  del index, count
  for number in _STOP_SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
  threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)


def name_of(source: Source, index: int) -> str:
  """What to call an image in a message."""
  return source.where(index) if isinstance(source, StoredImages) else f"image {index}"


@dataclasses.dataclass(frozen=True)
class _Read:
  """Reads this process's part of a batch; is pickled for worker processes."""

  labels: np.ndarray
  fetch: Fetch
  n_images: int
  batch_size: int
  seed: int
  shard: tuple[int, int]

  def __call__(self, batch: int) -> dict[str, np.ndarray]:
    index, count = self.shard
    first, last = (i * self.batch_size // count for i in (index, index + 1))
    epochs_B, places_B = np.divmod(batch * self.batch_size + np.arange(first, last), self.n_images)
    orders = {e: epoch_order(self.n_images, self.seed, e) for e in np.unique(epochs_B).tolist()}
    indices_B = np.array(
      [orders[e][i] for e, i in zip(epochs_B.tolist(), places_B.tolist(), strict=True)], np.int64
    )
    shown, views, unreadable = self._readable(indices_B, epochs_B)
    labels = self.labels[shown].astype(np.int32)
    return {
      "image": views.reshape(-1, *views.shape[2:]),
      "label": np.repeat(labels, views.shape[1]),
      "unreadable": unreadable,
    }

  def _readable(
    self, indices: Int[np.ndarray, " B"], epochs: Int[np.ndarray, " B"]
  ) -> tuple[Int[np.ndarray, " B"], Shaped[np.ndarray, "B V ..."], Int[np.ndarray, " U"]]:
    """The images that are shown, their views, and the U images that could not be read."""
    shown = indices.copy()
    views, readable = self.fetch(shown, epochs)
    unreadable: list[int] = []
    for _ in range(_TRIES):
      again = np.flatnonzero(~readable)
      if not len(again):
        return shown, views, np.array(unreadable, np.int64)
      unreadable += shown[again].tolist()
      shown[again] = (shown[again] + 1) % self.n_images
      views[again], readable[again] = self.fetch(shown[again], epochs[again])
    raise CorruptDataError(f"{_TRIES} images in a row, up to number {shown[again[0]]}, are damaged")
