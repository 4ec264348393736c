"""Devices, this process's share of the CPU cores, and its peak memory."""

import contextlib
import math
import os
import pathlib
import re
import resource
import sys

import jax

from pomp_jax.hosts.messages import gather, own_index

# CPU limit of a container (cgroup v2): "QUOTA PERIOD" in microseconds, or "max PERIOD".
_QUOTA = pathlib.Path("/sys/fs/cgroup/cpu.max")

_n_sharers = 1  # processes of the run on the cores of this one


def devices(*, local: bool = False) -> list[jax.Device]:
  """Devices of all processes, ordered by process; only this process's if `local`.

  No other module of the package asks JAX for devices.
  """
  found = jax.local_devices() if local else jax.devices()
  return sorted(found, key=lambda device: (device.process_index, device.id))


def own_cores() -> int:
  """Cores for each of the run's processes that share this one's cores.

  Divides the cores of the CPU affinity, or a container's smaller quota, rounding down.
  """
  n_cores = float(len(os.sched_getaffinity(0)))
  # Without a limit there is no such file, or the quota is "max".
  with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
    quota, period = _QUOTA.read_text().split()
    n_cores = min(n_cores, int(quota) / int(period))
  return max(1, math.floor(n_cores / _n_sharers))


def share_cores(seconds: float) -> None:
  """Counts the run's processes that share this one's cores, for `own_cores`; all
  processes call it together."""
  global _n_sharers
  cores = sorted(os.sched_getaffinity(0))
  cores_of_processes = gather(cores, "counting cores", seconds)
  # Equal host and equal cores.
  own = cores_of_processes[own_index()]
  _n_sharers = sum(other == own for other in cores_of_processes)


def peak_mib() -> float:
  """Peak resident memory of this process, MiB."""
  # Prefer VmHWM: a process inherits `ru_maxrss` from a larger parent. Some kernels have
  # no VmHWM, or no /proc.
  status = pathlib.Path("/proc/self/status")
  text = status.read_text() if status.exists() else ""
  if found := re.search(r"^VmHWM:\s*(\d+) kB$", text, re.MULTILINE):
    return int(found[1]) / 2**10
  # `ru_maxrss` is in bytes on macOS, and in KiB elsewhere.
  per_mib = 2**20 if sys.platform == "darwin" else 2**10
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mib
