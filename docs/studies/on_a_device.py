r"""Measures what `--config.dry_run=MACHINE` only estimates, on the devices of this
machine.

python -m docs.studies.on_a_device --config=imagenet21k_vit_b16:features=stored,fresh=5 \
  --cache=gs://BUCKET/programs

First, anywhere, fill the folder:

pomp --config=.. --config.dry_run=v5e-8 --config.compilation_cache=CACHE

Then this, on that machine, in about ten minutes. Batches, weights and bank are
synthetic, the shapes are the config's. It prints whether the program was read from the
folder, the peak of memory beside the compiler's plan, and steps/s beside the floor (the
estimate is in the dry run's report). A CPU reports no memory and has no floor. `--set
FIELD=VALUE ..` changes fields.
"""

import argparse
import pathlib
import tempfile
import time
from typing import Any

import jax

from pomp_jax import hosts
from pomp_jax.config import HERE, unpack, validate
from pomp_jax.config.command_line import load_config
from pomp_jax.files.compilation import use_compilation_cache
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.step import repeated
from pomp_jax.rooms.benchmark import costs, dry_run, flops
from pomp_jax.rooms.benchmark.chips import chip_of
from pomp_jax.train import setup

_MIB = 2**20
_HIT = "/jax/compilation_cache/cache_hits"


def main() -> None:
  """Entry point."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--config", default="demo")
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
  parser.add_argument("--cache", default="auto", help="folder of compiled programs")
  parser.add_argument("--steps", type=int, default=20)
  options = parser.parse_args()
  use_compilation_cache(options.cache, "")
  colon = "," if ":" in options.config else ":"
  config = options.config + (colon + ",".join(options.set) if options.set else "")
  settings = unpack(load_config(config)).replace({"dry_run": HERE})
  validate(settings)
  with tempfile.TemporaryDirectory() as folder:
    dry_run.check(settings, folder)
    measure(settings, RunFolder(pathlib.Path(folder) / "run"), options.steps)


def measure(settings: Any, folder: RunFolder, n_steps: int) -> None:
  """Compiles and runs the step; prints what was found."""
  fields = settings.data, settings.eval.images, settings.clip.model, settings.prompt
  changes = dry_run.changes_of(*fields)
  run = setup.prepare(settings.replace(changes), folder)
  device = hosts.devices(local=True)[0]
  print(f"{len(hosts.devices())} x {device.device_kind}, jax {jax.__version__}")

  hits: list[str] = []
  jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
  state, batch = costs.noise_state(run), costs.batch_shapes(run)
  hits.clear()
  start = time.monotonic()
  program = run.build_step().lower(state, run.frozen, batch).compile()
  seconds = time.monotonic() - start
  found = "read from the folder" if _HIT in hits else "compiled here"
  print(f"program: {found}, {seconds:.1f} s")

  planned: Any = program.memory_analysis()
  if planned:
    arguments, temporaries = planned.argument_size_in_bytes, planned.temp_size_in_bytes
    print(f"memory planned: {arguments / _MIB:,.0f} + {temporaries / _MIB:,.0f} MiB")
  step = repeated(program, state, run.frozen, costs.ones(batch))
  step()
  start = time.monotonic()
  for _ in range(n_steps):
    step()
  rate = n_steps / (time.monotonic() - start)
  peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
  print(
    f"memory, peak: {peak / _MIB:,.0f} MiB"
    if peak
    else "memory, peak: the device has no count"
  )

  chip = chip_of(device.device_kind)
  text = "this device's peak is not known: no floor"
  if chip:
    floor = sum(flops.step_flops(run).values()) / chip.peak[run.clip.dtype]
    text = f"at most {1 / floor:.3g} by the floor, {rate * floor:.0%} of it"
  print(f"steps/s: {rate:.3g}; {text}")


if __name__ == "__main__":
  main()
