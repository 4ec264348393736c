"""Runs and jobs in several processes on this machine, each with its own virtual CPU
devices."""

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
  from pomp_jax.config import Config

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
  """XLA_FLAGS for virtual devices, the same in tests and in the processes that they
  start."""
  count = [f"--xla_force_host_platform_device_count={devices}"] if devices > 1 else []
  return " ".join([*count, *_FLAGS])


# Programs run for few steps here, so optimising them costs more than it saves.
# Collectives time out after 600 s instead of 40 s: on a busy machine devices arrive
# late.
_FLAGS = (
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)


def environment(devices: int, **more: str) -> dict[str, str]:
  """Environment of a child process: virtual devices, and no variable of a
  surrounding cluster."""
  clusters = ("SLURM_", "OMPI_", "JOBSET_", "TPU_", "MEGASCALE_")
  found = {
    name: value for name, value in os.environ.items() if not name.startswith(clusters)
  }
  own = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": xla_flags(devices),
    "PYTHONPATH": str(ROOT),
  }
  own["USE_TORCH"] = "0"  # as `pomp_jax.command` sets it
  return found | own | more


def small_demo(**changes: object) -> list[str]:
  """Arguments of the command line: a short form of the demo; `changes` by full field
  name."""
  fields = {
    "data.n_classes": 300,
    "data.images_per_class": 2,
    "k": 20,
    "batch_size": 16,
  }
  fields |= {"eval.images": 64} | changes
  return [
    "--config=configs/demo.py",
    *(f"--config.{name}={fields[name]}" for name in fields),
  ]


def share_compilation_cache() -> None:
  """Shares one compilation cache among all tests and later runs; call it before JAX
  starts.

  Each kind of processor, release of jaxlib and set of flags has its own folder in the
  user's cache folder. All of it is safe to delete. A folder of over 2 GiB is deleted
  here.
  """
  cache = pathlib.Path(
    os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  )
  processor = platform.platform()
  # programs are compiled for the features of the processor
  with contextlib.suppress(OSError):
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = {line for line in lines if line.startswith(("model name", "flags"))}
    processor = " ".join(sorted(names))
  key = hashlib.sha256(" ".join([processor, *_FLAGS]).encode()).hexdigest()[:12]
  folder = (
    cache / "pomp_jax_tests" / f"jaxlib-{importlib.metadata.version('jaxlib')}-{key}"
  )
  if folder.exists():
    with os.scandir(folder) as files:
      size = sum(file.stat().st_size for file in files)
    if size > 2 * 2**30:
      shutil.rmtree(folder, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def wait_until(
  happened: Callable[[], object], process: subprocess.Popen | None = None
) -> None:
  """Waits until a condition holds, while the process runs, at most 600 s."""
  end = time.monotonic() + 600
  while not happened():
    assert process is None or process.poll() is None, "the process ended too early"
    assert time.monotonic() < end, "it took too long"
    time.sleep(0.02)


class Processes(contextlib.AbstractContextManager):
  """The processes of one run, by index in `processes`; killed on exit if they still
  run."""

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
    """Starts `count` processes with `devices` virtual devices each, all but the
    `absent` ones.

    `command` are the arguments of `python`, to which coordinator, count and index are
    appended. `own` and `environ` are further arguments and environment variables, by
    process index.
    """
    self._stack = contextlib.ExitStack()
    self.port = self._stack.enter_context(reserved_port())
    self.processes, self._outputs = {}, {}
    for index in set(range(count)) - set(absent):
      which = [f"--coordinator=127.0.0.1:{self.port}", f"--num_processes={count}"]
      which = [*which, f"--process_id={index}"] if count > 1 else []
      # A file, not a pipe: a process blocks on a full pipe, and the others then wait
      # for it.
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

  def succeed(self, seconds: float = 600) -> list[str]:
    """Waits for all processes, asserts that their exit status is 0, and returns
    their outputs."""
    found = self.finish(seconds).values()
    for status, output in found:
      assert status == 0, output[-3000:]
    return [output for _, output in found]

  def __exit__(self, *exception: object) -> None:
    for process in self.processes.values():
      process.kill()
      process.wait()
    self._stack.close()


def run_in_processes(
  jobs: Sequence[tuple["Config", Sequence[pathlib.Path]]],
  file: pathlib.Path,
  *,
  count: int = 2,
  devices: int = 2,
  seconds: float = 600,
) -> None:
  """Runs jobs one after the other in several processes; `file` passes the jobs to them.

  A job is a config and the run folder of each process, shared or separate.
  """
  values = [(config.flat(), list(map(str, workdirs))) for config, workdirs in jobs]
  file.write_text(json.dumps(values))
  command = [__file__, str(file), str(devices)]
  with Processes(count, command, devices=devices) as processes:
    processes.succeed(seconds)


def _main() -> None:
  """Runs a child process of `run_in_processes`."""
  parser = argparse.ArgumentParser()
  parser.add_argument("file", type=pathlib.Path)
  parser.add_argument("devices", type=int)
  parser.add_argument("--coordinator")
  parser.add_argument("--num_processes", type=int, default=1)
  parser.add_argument("--process_id", type=int, default=0)
  arguments = parser.parse_args()
  import jax

  count = arguments.num_processes
  if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(arguments.coordinator, count, arguments.process_id)
  assert (jax.process_count(), jax.device_count()) == (count, count * arguments.devices)
  from pomp_jax.config import defaults
  from tests.support.encoders import encoders_opened_once
  from tests.support.small_run import run_job

  with encoders_opened_once():
    for values, workdirs in json.loads(arguments.file.read_text()):
      run_job(defaults().replace(values), workdirs[arguments.process_id])


if __name__ == "__main__":
  _main()
