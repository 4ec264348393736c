"""Runs and jobs in several processes on this machine, each with its own virtual CPU devices."""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imports JAX, which must not start before the environment is set
  from pomp_jax.config import Settings

ROOT = pathlib.Path(__file__).parent.parent.parent


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
  """Reserves a port for a server that sets SO_REUSEPORT or SO_REUSEADDR.

  A port that is merely free may be taken by the time that a process has imported JAX.
  """
  with socket.socket() as holder:
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
      holder.setsockopt(socket.SOL_SOCKET, option, 1)
    holder.bind(("127.0.0.1", 0))
    yield holder.getsockname()[1]


def xla_flags(devices: int) -> str:
  """XLA_FLAGS for a number of virtual devices, the same in tests and in the processes they start.

  Programs run for few steps here, so optimising them costs more than it saves. Collectives time
  out after 600 s instead of 40 s: on a busy machine devices arrive late.
  """
  count = [f"--xla_force_host_platform_device_count={devices}"] if devices > 1 else []
  return " ".join([*count, *_FLAGS])


_FLAGS = (
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)


def environment(devices: int, **more: str) -> dict[str, str]:
  """Environment of a child process: virtual devices, and no variable of a surrounding cluster."""
  found = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("SLURM_", "OMPI_", "JOBSET_", "TPU_", "MEGASCALE_"))
  }
  own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices), "PYTHONPATH": str(ROOT)}
  return found | own | more


def share_compilation_cache() -> None:
  """Shares one compilation cache among all tests and later runs; call it before JAX starts.

  Each kind of processor, release of jaxlib and set of flags has its own folder in the user's cache
  folder. All of it is safe to delete. A folder of over 2 GiB is deleted here.
  """
  cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
  key = hashlib.sha256(" ".join([_processor(), *_FLAGS]).encode()).hexdigest()[:12]
  folder = cache / "pomp_jax_tests" / f"jaxlib-{importlib.metadata.version('jaxlib')}-{key}"
  if folder.exists():
    with os.scandir(folder) as files:
      size = sum(file.stat().st_size for file in files)
    if size > 2 * 2**30:
      shutil.rmtree(folder, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def _processor() -> str:
  """Name and features of this machine's processor: programs are compiled for them."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.platform()
  return " ".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def wait_until(happened: Callable[[], object], process: subprocess.Popen) -> None:
  """Waits while a process runs, five minutes at most, until something has happened."""
  end = time.monotonic() + 300
  while not happened():
    assert process.poll() is None and time.monotonic() < end
    time.sleep(0.02)


class Processes(contextlib.AbstractContextManager):
  """The processes of one run; killed on exit if they still run.

  Attributes:
    processes: started processes by index.
    port: port of process 0 if there are several processes.
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
    """Starts the processes.

    Args:
      count: number of processes.
      command: arguments of `python`; coordinator, count and index are appended.
      devices: virtual devices per process.
      own: extra arguments by process index.
      environ: extra environment variables by process index.
      absent: indices of processes that never start.
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
      # A file, not a pipe: a process blocks on a full pipe, and the others then wait for it.
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
    """Waits for all processes and returns exit status and output by index."""
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


# A config and the run folder of each process, shared or separate.
Job = tuple["Settings", Sequence[pathlib.Path]]


def run_in_processes(
  jobs: Sequence[Job],
  file: pathlib.Path,
  *,
  count: int = 2,
  devices: int = 2,
  seconds: float = 600,
) -> None:
  """Runs jobs one after the other in several processes; `file` passes the jobs to them."""
  values = [(config.flat(), list(map(str, workdirs))) for config, workdirs in jobs]
  file.write_text(json.dumps(values))
  command = [__file__, str(file), str(count), str(devices)]
  with Processes(count, command, devices=devices) as processes:
    for status, output in processes.finish(seconds).values():
      assert status == 0, output[-3000:]


def main() -> None:
  """Entry point of a child process of `run_in_processes`."""
  parser = argparse.ArgumentParser()
  parser.add_argument("file", type=pathlib.Path)
  parser.add_argument("count", type=int)
  parser.add_argument("devices", type=int)
  parser.add_argument("--coordinator")
  parser.add_argument("--num_processes", type=int)
  parser.add_argument("--process_id", type=int, default=0)
  arguments = parser.parse_args()
  import jax

  count = arguments.count
  if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(arguments.coordinator, count, arguments.process_id)
  assert (jax.process_count(), jax.device_count()) == (count, count * arguments.devices)
  from pomp_jax.config import Settings, load_job, validate

  for values, workdirs in json.loads(arguments.file.read_text()):
    config = Settings().replace(values)
    validate(config)
    module = load_job(config.job)
    module.check(config, workdirs[arguments.process_id])
    module.run(config, workdirs[arguments.process_id])


if __name__ == "__main__":
  main()
