"""The evaluate job in two processes at once, each with two of four virtual devices."""

from collections.abc import Sequence
import json
import os
import pathlib
import socket
import subprocess
import sys

from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).parent.parent


def evaluate_in_two_processes(config: ConfigDict, workdirs: Sequence[pathlib.Path]) -> None:
  """Runs it; each process has a folder of its own to write to."""
  from pomp_jax.config import fields

  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
  environ = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "PYTHONPATH": str(ROOT),
  }
  values = json.dumps(dict(fields(config)))
  processes = [
    subprocess.Popen(
      [sys.executable, __file__, str(port), str(index), values, str(workdir)],
      env=environ,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index, workdir in enumerate(workdirs)
  ]
  try:
    outputs = [process.communicate(timeout=240)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 0, output[-3000:]


def main(port: str, index: str, values: str, workdir: str) -> None:
  """One of the two."""
  import jax

  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
  assert (jax.process_count(), jax.device_count()) == (2, 4)
  from pomp_jax.config import base
  from pomp_jax.jobs import evaluate

  config = base()
  for field, value in json.loads(values).items():
    config.update_from_flattened_dict({field: tuple(value) if isinstance(value, list) else value})
  evaluate.check(config, workdir)
  evaluate.run(config, workdir)


if __name__ == "__main__":
  main(*sys.argv[1:])
