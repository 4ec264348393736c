"""Jobs, one after the other, in two processes at once, each with two of four virtual devices."""

import argparse
from collections.abc import Sequence
import json
import pathlib

from ml_collections import ConfigDict
from processes import Processes

# A config, and the folder that each process writes to: the same, or one of its own.
Job = tuple[ConfigDict, Sequence[pathlib.Path]]


def run_in_two_processes(jobs: Sequence[Job], file: pathlib.Path, seconds: float = 240) -> None:
  """Runs them; `file` is where the processes read what to run."""
  from pomp_jax.config import fields

  values = [(dict(fields(config)), list(map(str, workdirs))) for config, workdirs in jobs]
  file.write_text(json.dumps(values))
  with Processes(2, [__file__, str(file)], devices=2) as processes:
    for status, output in processes.finish(seconds).values():
      assert status == 0, output[-3000:]


def main() -> None:
  """One of the two."""
  parser = argparse.ArgumentParser()
  parser.add_argument("file", type=pathlib.Path)
  parser.add_argument("--coordinator")
  parser.add_argument("--num_processes", type=int)
  parser.add_argument("--process_id", type=int)
  arguments = parser.parse_args()
  import jax

  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(arguments.coordinator, arguments.num_processes, arguments.process_id)
  assert (jax.process_count(), jax.device_count()) == (2, 4)
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
