"""Runs of several processes on this machine, each with its own virtual CPU devices."""

from collections.abc import Iterator, Sequence
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent.parent


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
  """A port that nobody else is given meanwhile, for a server that shares ports or reuses addresses.

  One that is merely free may be another's by the time that a process has imported JAX.
  """
  with socket.socket() as holder:
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
      holder.setsockopt(socket.SOL_SOCKET, option, 1)
    holder.bind(("127.0.0.1", 0))
    yield holder.getsockname()[1]


def xla_flags(devices: int) -> str:
  """So many virtual devices. They wait for each other longer than 40 s, after which XLA aborts the
  process: on a busy machine they get there one after the other.
  """
  patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
  return f"--xla_force_host_platform_device_count={devices} {patience}"


def environment(devices: int, **more: str) -> dict[str, str]:
  """This one's, with so many virtual devices, and without a trace of a cluster around it."""
  found = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("SLURM_", "OMPI_", "JOBSET_", "TPU_", "MEGASCALE_"))
  }
  own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices), "PYTHONPATH": str(ROOT)}
  return found | own | more


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
    self._stack = contextlib.ExitStack()
    self.port = self._stack.enter_context(reserved_port())
    self.processes, self._outputs = {}, {}
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
      # No pipe: whoever has filled one waits until it is read, and the others wait for him.
      output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by the stack)
      self._outputs[index] = self._stack.enter_context(output)
      self.processes[index] = subprocess.Popen(
        [sys.executable, *command, *which, *(own or {}).get(index, ())],
        cwd=ROOT,
        env=environment(devices, **(environ or {}).get(index, {})),
        stdout=output,
        stderr=subprocess.STDOUT,
      )

  def finish(self, seconds: float = 600) -> dict[int, tuple[int, str]]:
    """Waits for all; the status and the output of each."""
    end, found = time.monotonic() + seconds, {}
    for index, process in self.processes.items():
      status = process.wait(max(1, end - time.monotonic()))
      self._outputs[index].seek(0)
      found[index] = status, self._outputs[index].read()
    return found

  def __exit__(self, *exception: object) -> None:
    for process in self.processes.values():
      process.kill()
      process.wait()
    self._stack.close()
