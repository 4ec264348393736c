"""Batches of images for training, shuffled and endless, and what reads ahead.

Shapes: G rows of a global batch, V views an image, B images of a batch that a process
reads.
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
from pomp_jax.data.source import Labelled
from pomp_jax.data.unreadable import CorruptDataError, SkippedImages, name_of

log = logging.getLogger(__name__)

# (images [B], epoch of each [B]) -> pixels or features [B,V,..] and which were readable
# [B]. Views may also be records of a structured type, whose fields become arrays of the
# batch.
Fetch = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

# consecutive unreadable images to skip: more than random damage explains
_MAX_SKIPS = 100
_N_BATCHES = 2**62  # endless
_AHEAD = 4  # batches to hold ready, over all workers
# A thread that decodes and augments holds the interpreter's lock for 38% of its time,
# so more than a few threads add nothing; docs/reproduce/performance.md has the
# measurement.
_MOST_THREADS = 4
_LEAST_CORES = 4  # fewer cores read about as fast by threads, which start at once
_BATCHES_PER_WORKER = 4  # of an epoch: a worker takes seconds to start
# shared memory: a worker's queue, and those in Grain's threads; measured
_BATCHES_IN_MEMORY = 5
_SHARED_MEMORY = "/dev/shm"
# Signals that a launcher, or Ctrl-C, sends to all processes of a run.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Readers(NamedTuple):
  """What reads images."""

  threads: int  # of each process that reads
  workers: int  # processes that read; 0: the run's own


class Shard(NamedTuple):
  """The part of each batch that a process reads."""

  number: int
  n_shards: int  # of one size


_READERS = Readers(threads=2, workers=0)
_WHOLE = Shard(0, 1)


class Loader(Iterator[dict[str, np.ndarray]]):
  """Endless training batches from a position on, prepared ahead of the step.

  Batch i holds images i*G/V..(i+1)*G/V-1 of a sequence of epochs, each with its own
  shuffle by Grain, a function of the seed. An unreadable image, see `skipped`, is
  replaced by the next one.

  Yields:
    {"image": [G/count,..], "label": int32 [G/count]}; the V views of an image are
    adjacent. Of
      records, their fields instead of "image".
  """

  def __init__(
    self,
    source: Labelled,
    fetch: Fetch,  # reads pixels or features; pickled for workers
    *,
    batch_size: int,  # G
    seed: int,  # random seed of the shuffles, 0 to 2^32 - 1
    n_views: int = 1,  # V
    start: int = 0,  # batches to skip
    # index and count of this process, which gets its part of each
    shard: tuple[int, int] = (0, 1),
    readers: Readers = _READERS,
    max_corrupt: float = 0.0,  # see `SkippedImages`
    unreadable: frozenset[int] = frozenset(),  # images known already
  ):
    """Starts reading when the first batch is requested; ValueError if G does not
    divide."""
    if batch_size % (n_views * shard[1]):
      parts = f"{n_views} views x {shard[1]} processes"
      raise ValueError(f"a batch of {batch_size} does not divide by {parts}")
    names = {index: name_of(source, index) for index in unreadable}
    self.skipped = SkippedImages(source, max_corrupt, names)
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle()
    read = functools.partial(
      _read_batch, source.labels, fetch, order, batch_size // n_views, shard
    )
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
  decodes: bool = False,  # stored images; other reading is too little work for workers
  n_batches: int = 0,  # batches of an epoch
  batch_bytes: int = 0,  # bytes of a batch of this process
  n_cores: int | None = None,  # cores of this process; None: counted
  # free bytes to pass batches through; None: of the machine
  shared_memory: int | None = None,
) -> Readers:
  """Fills in what `data.threads` (0) and `data.workers` (-1) leave open."""
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
  """Iterates over `read(number)` in order, some of them ahead, from threads or worker
  processes.

  Workers start when the first element is requested. `close()` ends them.

  Args:
    read: function of a number; worker processes must be able to unpickle it.
    numbers: numbers to read.
    readers: threads and worker processes.
  """
  threads, workers = readers
  # Many workers hold few batches each: a batch of pixels takes 100 MB and more.
  ahead = -(-_AHEAD // max(1, workers))
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(ahead, threads)
  )
  order = grain.MapDataset.range(numbers.start, numbers.stop)
  elements = order.map(read).to_iter_dataset(options)
  if not workers:
    return iter(elements)
  if not flags.FLAGS.is_parsed():
    # Grain reads flags of its own, which a program without a command line has not
    # parsed.
    flags.FLAGS.mark_as_parsed()
  processes = grain.MultiprocessingOptions(workers, ahead)
  return _spawned(iter(elements.mp_prefetch(processes, _begin_worker)))


def _spawned(elements: grain.DatasetIterator) -> Iterator:
  """Iterates over workers' elements, with stop signals blocked while the workers
  start."""
  # A worker imports for seconds before `_begin_worker` runs. It inherits the signal
  # mask of Grain's thread that starts it, which inherits it from this thread.
  _start_resource_tracker()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
  try:
    try:
      # Grain's threads are made for the first element, and keep the signals blocked.
      first = list(itertools.islice(elements, 1))
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # Not from `elements` alone: the end of this generator would close them first.
    yield from itertools.chain(first, elements)
  finally:
    _close_together(elements)


def _start_resource_tracker() -> None:
  """Starts the process that removes, without warnings, shared memory that is left at
  the end."""
  # Grain leaves that of workers which end while they hand over a batch. A tracker
  # started later would unblock the stop signals in the thread that starts it.
  before = dict(os.environ)
  os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
  try:
    multiprocessing.resource_tracker.ensure_running()
  finally:
    del os.environ["PYTHONWARNINGS"]
    os.environ.update(before)


def _close_together(elements: Any) -> None:
  """Ends the workers side by side: Grain waits for one after the other, up to a
  batch each."""
  # Grain has no public name for its iterators over single workers; one worker has none.
  workers = [
    one for one in getattr(elements, "_iterators_in_use", ()) if one is not None
  ]
  with concurrent.futures.ThreadPoolExecutor(max(1, len(workers))) as pool:
    list(pool.map(lambda worker: worker.close(), workers))
  elements.close()


def _begin_worker(*_: int) -> None:
  """Makes a worker ignore stop signals, because the run saves first, and end with
  the run."""
  for number in _STOP_SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)

  def exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

  threading.Thread(target=exit_with_parent, daemon=True).start()


def _read_batch(
  labels_n: np.ndarray,
  fetch: Fetch,
  order: grain.MapDataset,
  batch_size: int,
  shard: tuple[int, int],
  batch: int,
) -> dict[str, np.ndarray]:
  """Reads this process's part of a batch of images; pickled for worker processes."""
  part = batch_size // shard[1]
  positions_B = batch * batch_size + shard[0] * part + np.arange(part)
  epochs_B = positions_B // len(labels_n)
  shown_B = np.array([order[position] for position in positions_B.tolist()])
  views, readable_B = fetch(shown_B, epochs_B)
  unreadable: list[int] = []
  for _ in range(_MAX_SKIPS):
    again = np.flatnonzero(~readable_B)
    if not len(again):
      labels = np.repeat(labels_n[shown_B].astype(np.int32), views.shape[1])
      counted = {"label": labels, "unreadable": np.array(unreadable, np.int64)}
      views = views.reshape(-1, *views.shape[2:])
      if views.dtype.names is None:
        return {"image": views} | counted
      return {
        name: np.ascontiguousarray(views[name]) for name in views.dtype.names
      } | counted
    unreadable += shown_B[again].tolist()
    shown_B[again] = (shown_B[again] + 1) % len(labels_n)
    views[again], readable_B[again] = fetch(shown_B[again], epochs_B[again])
  found = f"{_MAX_SKIPS} consecutive images, up to number {shown_B[again[0]]}"
  raise CorruptDataError(f"{found}, can't be read")
