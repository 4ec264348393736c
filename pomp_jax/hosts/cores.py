"""The CPU cores of this process: those that it may run on, shared with the processes beside it."""

import contextlib
import math
import os
import pathlib

from pomp_jax.hosts.messages import gather, own_index

# "QUOTA PERIOD" in microseconds, or "max PERIOD"; a container's limit (cgroup v2).
_QUOTA = pathlib.Path("/sys/fs/cgroup/cpu.max")

_n_sharers = 1


def own_cores() -> int:
  """Cores of the CPU affinity, at most a container's quota, over the run's processes on them."""
  n_cores = float(len(os.sched_getaffinity(0)))
  with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
    quota, period = _QUOTA.read_text().split()
    n_cores = min(n_cores, int(quota) / int(period))
  return max(1, math.floor(n_cores / _n_sharers))


def share_cores(seconds: float) -> None:
  """Counts the processes on the cores of this one; all call it together, as `gather`."""
  global _n_sharers
  found = gather(sorted(os.sched_getaffinity(0)), "counting cores", seconds)
  _n_sharers = sum(one == found[own_index()] for one in found)
