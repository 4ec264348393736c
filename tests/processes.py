"""Runs of several processes on this machine, each with its own virtual CPU devices."""

from collections.abc import Sequence
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent


def free_port() -> int:
  """A port that nobody listens on."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def environment(devices: int, **more: str) -> dict[str, str]:
  """This one's, with so many virtual devices, and without a trace of a cluster around it."""
  found = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("SLURM_", "OMPI_", "JOBSET_", "TPU_", "MEGASCALE_"))
  }
  flags = f"--xla_force_host_platform_device_count={devices}"
  return found | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)} | more


def keep_programs() -> tempfile.TemporaryDirectory:
  """What this process or one that it starts compiles serves all of them; called before JAX starts.

  Returns:
    The folder of the programs; it goes when this process ends.
  """
  folder = tempfile.TemporaryDirectory(prefix="pomp_jax_programs_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  return folder


class Processes(contextlib.AbstractContextManager):
  """The processes of one run; those that still run at the end are killed.

  Attributes:
    processes: those that were started, by their number.
    port: where process 0 listens, if there are several.
  """

  def __init__(
    self,
    count: int,
    command: Sequence[str],
    *,
    devices: int = 1,
    own: dict[int, Sequence[str]] | None = None,
    environ: dict[int, dict[str, str]] | None = None,
    absent: Sequence[int] = (),
  ):
    """Starts them.

    Args:
      count: how many.
      command: arguments behind `python`, the same for each; those that say which it is are added.
      devices: virtual ones, of each.
      own: more arguments of single processes.
      environ: more variables of single processes.
      absent: processes that never start.
    """
    self.port = free_port()
    self.processes = {}
    for index in range(count):
      if index in absent:
        continue
      which = (
        [
          "--coordinator",
          f"127.0.0.1:{self.port}",
          f"--num_processes={count}",
          f"--process_id={index}",
        ]
        if count > 1
        else []
      )
      self.processes[index] = subprocess.Popen(
        [sys.executable, *command, *which, *(own or {}).get(index, ())],
        cwd=ROOT,
        env=environment(devices, **(environ or {}).get(index, {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )

  def finish(self, seconds: float = 240) -> dict[int, tuple[int, str]]:
    """Waits for all; the status and the output of each."""
    end = time.monotonic() + seconds
    return {
      index: (lambda output, process=process: (process.returncode, output))(
        process.communicate(timeout=max(1, end - time.monotonic()))[0]
      )
      for index, process in self.processes.items()
    }

  def __exit__(self, *exception: object) -> None:
    for process in self.processes.values():
      process.kill()
      process.wait()
