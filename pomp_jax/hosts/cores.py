"""The CPU cores of this process: those that it may run on, shared with the processes beside it."""

import math
import os
import pathlib

from pomp_jax.hosts.messages import gather, own_index

# "QUOTA PERIOD" in microseconds, or "max PERIOD"; a container's limit (cgroup v2).
_QUOTA = pathlib.Path("/sys/fs/cgroup/cpu.max")

_n_sharers = 1


def own_cores() -> int:
  """Number of cores for this process, 1 or more.

  The cores of its CPU affinity, at most a container's quota, over the number of the run's processes
  that share them.
  """
  n_cores = float(len(os.sched_getaffinity(0)))
  try:
    quota, period = _QUOTA.read_text().split()
    n_cores = min(n_cores, int(quota) / int(period))
  except (OSError, ValueError, ZeroDivisionError):
    pass  # no such file, or "max"
  return max(1, math.floor(n_cores / _n_sharers))


def share_cores(seconds: float) -> None:
  """Counts the processes on the cores of this one; all processes call it together.

  Raises:
    LostHostError: processes that did not answer in time.
  """
  global _n_sharers
  found = gather(sorted(os.sched_getaffinity(0)), "counting cores", seconds)
  _n_sharers = sum(one == found[own_index()] for one in found)
