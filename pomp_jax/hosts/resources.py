"""Devices; CPU cores that this process may run on, shared with those beside it; its
peak memory."""

import contextlib
import math
import os
import pathlib
import re
import resource
import sys

import jax

from pomp_jax.hosts.messages import gather, own_index

# "QUOTA PERIOD" in microseconds, or "max PERIOD"; a container's limit (cgroup v2).
_QUOTA = pathlib.Path("/sys/fs/cgroup/cpu.max")

_n_sharers = 1


def devices(*, local: bool = False) -> list[jax.Device]:
  """Devices of all processes, or only this one's, those of a process together.

  The package asks JAX for devices here alone.
  """
  found = jax.local_devices() if local else jax.devices()
  return sorted(found, key=lambda device: (device.process_index, device.id))


def own_cores() -> int:
  """Cores of the CPU affinity, at most a container's quota, over the run's processes
  on them."""
  n_cores = float(len(os.sched_getaffinity(0)))
  # no such file, or "max"
  with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
    quota, period = _QUOTA.read_text().split()
    n_cores = min(n_cores, int(quota) / int(period))
  return max(1, math.floor(n_cores / _n_sharers))


def share_cores(seconds: float) -> None:
  """Counts the processes on the cores of this one; all call it together, as
  `gather`."""
  global _n_sharers
  found = gather(sorted(os.sched_getaffinity(0)), "counting cores", seconds)
  _n_sharers = sum(one == found[own_index()] for one in found)


def peak_mib() -> float:
  """Peak resident memory of this process, MiB."""
  # A process inherits `ru_maxrss` from a larger parent. Some kernels have no VmHWM, or
  # no /proc.
  status = pathlib.Path("/proc/self/status")
  text = status.read_text() if status.exists() else ""
  if found := re.search(r"^VmHWM:\s*(\d+) kB$", text, re.MULTILINE):
    return int(found[1]) / 2**10
  unit = 2**20 if sys.platform == "darwin" else 2**10
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
