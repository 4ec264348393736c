"""Endless shuffled batches of images for training, and threads or workers to read
ahead.

Shapes: G rows of a global batch, V views an image, B images of a batch that a process
reads, n images of the source.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import functools
import itertools
import logging
import multiprocessing
import multiprocessing.resource_tracker
import os
import shutil
import signal
import threading
from typing import Any, NamedTuple

from absl import flags
import grain
import numpy as np

from pomp_jax import hosts
from pomp_jax.data.skipped_images import CorruptDataError, SkippedImages, name_of
from pomp_jax.data.source import Labelled

log = logging.getLogger(__name__)

# Function (image numbers [B], epoch of each image [B]) -> (views [B,V,..], whether each
# image was readable [B]). Views are pixels, features, or records of a structured type,
# each field of which becomes an array of the batch.
Fetch = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

# Consecutive unreadable images that are skipped; random damage explains fewer.
_MAX_SKIPS = 100
_N_BATCHES = 2**62  # end of the batch numbers: in effect none
_AHEAD = 4  # batches to hold ready, over all workers
# A thread that decodes and augments holds the interpreter's lock for 38% of its time,
# so more than a few threads add nothing; docs/reproduce/performance.md has the
# measurement.
_MOST_THREADS = 4
# With fewer cores, threads read about as fast as workers, and start without delay.
_LEAST_CORES = 4
# Batches of an epoch that justify a worker, which takes seconds to start.
_BATCHES_PER_WORKER = 4
# Batches of a worker in shared memory: those in its queue and in Grain's threads;
# measured.
_BATCHES_IN_MEMORY = 5
_SHARED_MEMORY = "/dev/shm"
# Signals that a launcher, or Ctrl-C, sends to all processes of a run.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Readers(NamedTuple):
  """Numbers of threads and processes that read images."""

  threads: int  # threads in each process that reads
  workers: int  # worker processes that read; 0: the run's own process reads


class Shard(NamedTuple):
  """The part of each batch that a process reads."""

  number: int
  n_shards: int  # number of shards, which have the same size


_READERS = Readers(threads=2, workers=0)
_WHOLE = Shard(0, 1)


class Loader(Iterator[dict[str, np.ndarray]]):
  """Endless training batches from number `start` on, read ahead of the training step.

  Batch i holds images i*G/V..(i+1)*G/V-1 of an endless sequence of epochs. Grain
  shuffles each epoch anew, as a function of the seed. An unreadable image is recorded
  in `skipped` and replaced by the image with the next number.

  Yields:
    {"image": [G/n_shards,..], "label": int32 [G/n_shards]}; the V views of an image are
    adjacent. If the views are records, each of their fields has an array instead of
    "image".
  """

  def __init__(
    self,
    source: Labelled,
    fetch: Fetch,
    *,
    batch_size: int,
    seed: int,
    n_views: int = 1,
    start: int = 0,
    shard: Shard = _WHOLE,
    readers: Readers = _READERS,
    max_corrupt: float = 0.0,
    unreadable: frozenset[int] = frozenset(),
  ):
    """Prepares the order of the images; reading starts with the first batch.

    Args:
      source: images with labels.
      fetch: function that reads views; worker processes unpickle the function.
      batch_size: G, rows of a batch over all processes.
      seed: random seed of the shuffles, 0 to 2^32 - 1.
      n_views: V, views of an image, which are rows of one batch.
      start: number of the first batch.
      shard: part of each batch that this process reads.
      readers: threads and worker processes.
      max_corrupt: share of images that may be unreadable; see `SkippedImages`.
      unreadable: indices of images that are known to be unreadable.

    Raises:
      ValueError: G is no multiple of views times shards.
    """
    if batch_size % (n_views * shard.n_shards):
      parts = f"{n_views} views x {shard.n_shards} processes"
      raise ValueError(f"a batch of {batch_size} does not divide by {parts}")
    reasons = {index: name_of(source, index) for index in unreadable}
    self.skipped = SkippedImages(source, max_corrupt, reasons)
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle()
    n_images = batch_size // n_views
    read = functools.partial(_read_batch, source.labels, fetch, order, n_images, shard)
    self._batches = map_ahead(read, range(start, _N_BATCHES), readers)

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._batches)
    self.skipped.note(batch.pop("unreadable").tolist())
    return batch

  def close(self) -> None:
    """Ends the worker processes."""
    if hasattr(self._batches, "close"):
      self._batches.close()


def choose_readers(
  threads: int,
  workers: int,
  *,
  # whether images are decoded; other reading is too little work for workers
  decodes: bool = False,
  n_batches: int = 0,  # batches of an epoch
  batch_bytes: int = 0,  # bytes of a batch of this process
  n_cores: int | None = None,  # cores of this process; None: counted
  # free bytes of shared memory, through which workers pass batches; None: measured
  shared_memory: int | None = None,
) -> Readers:
  """Chooses the threads if `data.threads` is 0, the workers if `data.workers` is -1."""
  n_cores = n_cores or hosts.own_cores()
  if workers < 0 and decodes and n_cores >= _LEAST_CORES:
    workers = min(n_cores // max(1, threads), n_batches // _BATCHES_PER_WORKER)
    free = _free_shared_memory() if shared_memory is None else shared_memory
    fitting = free // (_BATCHES_IN_MEMORY * max(1, batch_bytes))
    if fitting < workers:
      log.warning(
        "%s has %d MiB free, enough for %d of %d worker processes that read images",
        _SHARED_MEMORY,
        free >> 20,
        fitting,
        workers,
      )
    workers = min(workers, fitting)
    # One worker alone would only replace the run's own process.
    if workers < 2:
      workers = 0
  workers = max(workers, 0)
  return Readers(
    threads or max(1, min(_MOST_THREADS, n_cores // max(1, workers))), workers
  )


def _free_shared_memory() -> int:
  try:
    return shutil.disk_usage(_SHARED_MEMORY).free
  except OSError:
    return 0


def map_ahead(read: Callable[[int], Any], numbers: range, readers: Readers) -> Iterator:
  """Yields `read(number)` in order, computed ahead by threads or worker processes.

  Workers start when the first element is requested. `close()` ends them.

  Args:
    read: function of a number; worker processes unpickle the function.
    numbers: numbers to read.
    readers: threads and worker processes.
  """
  # Divide the batches to hold ready among the workers, rounded up: a batch of pixels
  # takes 100 MB and more.
  n_readers = max(1, readers.workers)
  ahead = -(-_AHEAD // n_readers)
  options = grain.ReadOptions(
    num_threads=readers.threads, prefetch_buffer_size=max(ahead, readers.threads)
  )
  order = grain.MapDataset.range(numbers.start, numbers.stop)
  elements = order.map(read).to_iter_dataset(options)
  if readers.workers == 0:
    return iter(elements)

  if not flags.FLAGS.is_parsed():
    # Grain reads absl flags, which a program without a command line has not parsed.
    flags.FLAGS.mark_as_parsed()
  processes = grain.MultiprocessingOptions(readers.workers, ahead)
  return _spawned(iter(elements.mp_prefetch(processes, _begin_worker)))


def _spawned(elements: grain.DatasetIterator) -> Iterator:
  """Yields the elements of worker processes, which start with stop signals blocked.

  A worker imports modules for seconds before `_begin_worker` runs, and a signal that is
  not blocked would end the worker meanwhile. The worker inherits the signal mask of the
  Grain thread that starts it, and that thread inherits the mask of this thread.
  """
  _start_resource_tracker()
  mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
  try:
    try:
      # Grain starts its threads for the first element. These threads keep the signals
      # blocked.
      first = list(itertools.islice(elements, 1))
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # Not `yield from elements`: if this generator is closed early, that would call
    # `elements.close()`, which ends the workers one after the other, before
    # `_close_together` can end them at once. A `chain` has no `close` to call.
    yield from itertools.chain(first, elements)
  finally:
    _close_together(elements)


def _start_resource_tracker() -> None:
  """Starts Python's resource tracker, which removes shared memory left at the end.

  Grain leaves the shared memory of workers that end while they hand over a batch. The
  tracker starts before the stop signals are blocked, because its start unblocks these
  signals in the calling thread.
  """
  # The tracker inherits this variable, which keeps it from warning of the memory that
  # it removes.
  environment = dict(os.environ)
  os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
  try:
    multiprocessing.resource_tracker.ensure_running()
  finally:
    del os.environ["PYTHONWARNINGS"]
    os.environ.update(environment)


def _close_together(elements: Any) -> None:
  """Ends the workers in parallel: Grain would wait for one after the other, each for up
  to the time of a batch."""
  # Grain keeps its iterators over single workers in a private attribute, which is
  # missing if there is only one worker.
  workers = [
    one for one in getattr(elements, "_iterators_in_use", ()) if one is not None
  ]
  with concurrent.futures.ThreadPoolExecutor(max(1, len(workers))) as pool:
    list(pool.map(lambda worker: worker.close(), workers))
  elements.close()


def _begin_worker(*_: int) -> None:
  """Makes a worker process ignore stop signals and end together with the run.

  After a stop signal the run still saves, and needs its workers until then.
  """
  for number in _STOP_SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)

  def exit_with_run() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(1)

  threading.Thread(target=exit_with_run, daemon=True).start()


def _read_batch(
  labels_n: np.ndarray,
  fetch: Fetch,
  order: grain.MapDataset,
  n_images: int,
  shard: Shard,
  batch: int,
) -> dict[str, np.ndarray]:
  """Reads this process's part of a batch; pickled for worker processes.

  An unreadable image is replaced by the image with the next number, which brings its
  own label.

  Args:
    labels_n: class of each image.
    fetch: function that reads views of images.
    order: number of the image at each position of the endless sequence of epochs.
    n_images: images of the batch, over all processes.
    shard: part of the batch that is read here.
    batch: number of the batch.

  Returns:
    The arrays that `Loader` yields, and `unreadable`: numbers of the replaced images.

  Raises:
    CorruptDataError: too many consecutive images are unreadable.
  """
  size = n_images // shard.n_shards
  first = batch * n_images + shard.number * size
  positions_B = first + np.arange(size)
  epochs_B = positions_B // len(labels_n)
  images_B = np.array([order[position] for position in positions_B.tolist()])
  views_BxV, readable_B = fetch(images_B, epochs_B)
  unreadable: list[int] = []
  for _ in range(_MAX_SKIPS):
    rows = np.flatnonzero(~readable_B)
    if not len(rows):
      labels_B = labels_n[images_B].astype(np.int32)
      arrays = _arrays_of_views(views_BxV)
      arrays["label"] = np.repeat(labels_B, views_BxV.shape[1])
      arrays["unreadable"] = np.array(unreadable, np.int64)
      return arrays
    unreadable += images_B[rows].tolist()
    images_B[rows] = (images_B[rows] + 1) % len(labels_n)
    views_BxV[rows], readable_B[rows] = fetch(images_B[rows], epochs_B[rows])
  last = images_B[rows[0]]
  raise CorruptDataError(
    f"{_MAX_SKIPS} consecutive images, up to number {last}, can't be read"
  )


def _arrays_of_views(views_BxV: np.ndarray) -> dict[str, np.ndarray]:
  """Views as rows of a batch: one array, or an array for each field of records.

  Args:
    views_BxV: pixels or features [B,V,..], or records [B,V] of a structured type.
  """
  rows = views_BxV.reshape(-1, *views_BxV.shape[2:])
  if rows.dtype.names is None:
    return {"image": rows}
  return {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names}
