"""Memory that this process has used."""

import pathlib
import re
import resource
import sys


def peak_mib() -> float:
  """Peak resident memory of this process, MiB."""
  # A process inherits `ru_maxrss` from a larger parent. Some kernels have no VmHWM, or no /proc.
  status = pathlib.Path("/proc/self/status")
  text = status.read_text() if status.exists() else ""
  if found := re.search(r"^VmHWM:\s*(\d+) kB$", text, re.MULTILINE):
    return int(found[1]) / 2**10
  unit = 2**20 if sys.platform == "darwin" else 2**10
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
