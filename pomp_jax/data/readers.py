"""How many threads and worker processes read images: chosen from the cores of this process."""

import logging
import shutil
from typing import NamedTuple

from pomp_jax import hosts

log = logging.getLogger(__name__)

# A thread that decodes and augments holds the interpreter's lock for 38% of its time, so more than
# a few threads add nothing; docs/performance.md has the measurement.
_MOST_THREADS = 4
_LEAST_CORES = 4  # fewer cores read about as fast by threads, which start at once
_BATCHES_PER_WORKER = 4  # of an epoch: a worker takes seconds to start
_BATCHES_IN_MEMORY = 5  # shared memory: a worker's queue, and those in Grain's threads; measured
_SHARED_MEMORY = "/dev/shm"


class Readers(NamedTuple):
  """What reads images."""

  threads: int  # of each process that reads
  workers: int  # processes that read; 0: the run's own

  @property
  def n_at_once(self) -> int:
    """Number of batches that are read at the same time."""
    return self.threads * max(1, self.workers)


def choose_readers(
  threads: int,
  workers: int,
  *,
  decodes: bool = False,  # stored images; other reading is too little work for workers
  n_batches: int = 0,  # batches of an epoch
  batch_bytes: int = 0,  # bytes of a batch of this process
  n_cores: int | None = None,  # cores of this process; None: counted
  shared_memory: int | None = None,  # free bytes to pass batches through; None: of the machine
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
        *(_SHARED_MEMORY, free >> 20, fitting, workers),
      )
    workers = min(workers, fitting)
    workers = workers if workers > 1 else 0
  workers = max(workers, 0)
  return Readers(threads or max(1, min(_MOST_THREADS, n_cores // max(1, workers))), workers)


def _free_shared_memory() -> int:
  try:
    return shutil.disk_usage(_SHARED_MEMORY).free
  except OSError:
    return 0
