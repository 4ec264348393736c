"""The job without configs, for machines that have jax, flax and numpy alone."""

import argparse

from pomp_jax.jobs import benchmark


class _Config(dict):
  """A dict whose items are attributes too, as ConfigDict has it."""

  __getattr__ = dict.__getitem__


def main() -> None:
  """One flag a setting."""
  parser = argparse.ArgumentParser(
    prog="python -m pomp_jax.jobs.benchmark",
    description=benchmark.__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
  )
  parser.add_argument("--workdir", required=True)
  for name, value in benchmark.DEFAULTS.items():
    parser.add_argument(f"--{name}", type=type(value), default=value)
  arguments = vars(parser.parse_args())
  workdir = arguments.pop("workdir")
  try:
    benchmark.run(_Config(benchmark=arguments), workdir)
  except benchmark.BenchmarkError as error:
    parser.error(str(error))


if __name__ == "__main__":
  main()
