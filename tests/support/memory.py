"""Memory that a call takes."""

from collections.abc import Callable
import pathlib
import re

_STATUS = pathlib.Path("/proc/self/status")


def peak_mib(call: Callable[[], object]) -> float:
  """Rise of this process's memory in MiB while the call runs; 0 where Linux does not tell."""
  try:
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
  except OSError:
    call()
    return 0.0
  before = _memory("VmRSS")
  call()
  return max(0.0, _memory("VmHWM") - before)


def _memory(field: str) -> float:
  return int(re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())[1]) / 1024
