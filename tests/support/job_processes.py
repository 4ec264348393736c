"""Jobs, one after the other, in several processes at once, each with its own virtual devices."""

import argparse
from collections.abc import Sequence
import json
import pathlib

from ml_collections import ConfigDict

from tests.support.processes import Processes, environment

# Nearly all the time goes to compiling, much of it to make small programs a little faster.
_COMPILE_FAST = "--xla_backend_optimization_level=0"
# A config, and the folder that each process writes to: the same, or one of its own.
Job = tuple[ConfigDict, Sequence[pathlib.Path]]


def run_in_processes(
  jobs: Sequence[Job],
  file: pathlib.Path,
  *,
  count: int = 2,
  devices: int = 2,
  seconds: float = 600,
) -> None:
  """Runs them; `file` is where the processes read what to run."""
  from pomp_jax.config import fields

  values = [(dict(fields(config)), list(map(str, workdirs))) for config, workdirs in jobs]
  file.write_text(json.dumps(values))
  command = [__file__, str(file), str(count), str(devices)]
  flags = f"{environment(devices)['XLA_FLAGS']} {_COMPILE_FAST}"
  environ = {index: {"XLA_FLAGS": flags} for index in range(count)}
  with Processes(count, command, devices=devices, environ=environ) as processes:
    for status, output in processes.finish(seconds).values():
      assert status == 0, output[-3000:]


def main() -> None:
  """One of the processes."""
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
  from pomp_jax.config import base, validate
  from pomp_jax.jobs import job

  for values, workdirs in json.loads(arguments.file.read_text()):
    config = base()
    for field, value in values.items():
      config.update_from_flattened_dict({field: tuple(value) if isinstance(value, list) else value})
    validate(config)
    module = job(config.job)
    module.check(config, workdirs[arguments.process_id])
    module.run(config, workdirs[arguments.process_id])


if __name__ == "__main__":
  main()
