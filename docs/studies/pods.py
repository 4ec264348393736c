"""What trainings would take on pods that are not here: a table in Markdown.

  python -m docs.studies.pods [--configs=imagenet21k_vit_l14 ..] [--machines=v5e-8 h100:8 ..]
  python -m docs.studies.pods --columns=memory --configs ..    # what `clip.memory_gib` plans
  python -m docs.studies.pods --columns=disk    # of any machine: nothing is compiled

Compiles each step (`config.dry_run`), which takes one to five CPU minutes for each row;
another start reads the rows that are there already from JAX's folder of compiled
programs. TPUs need the extra `aot-tpu`, GPUs `aot-cuda`; a row that can't be compiled
says why. Times are estimates of the compiler (GPUs: the floor alone), and nothing was
measured.
"""

import argparse
from collections.abc import Callable
import pathlib
import tempfile
from typing import Any

import jax

from pomp_jax import hosts
from pomp_jax.config import unpack, validate
from pomp_jax.config.command_line import load_config
from pomp_jax.errors import InputError
from pomp_jax.files.compilation import use_compilation_cache
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.benchmark import absent, costs, dry_run
from pomp_jax.rooms.benchmark.chips import GIB, machine_of
from pomp_jax.train import setup

_RECIPE = "imagenet21k_vit_l14"
CONFIGS = (_RECIPE, f"{_RECIPE}:features=stored,fresh=5")
MACHINES = ("v5e-8", "v5e-16", "v5p-16", "v6e-8", "h100:8", "a100:8")
HEAD = (
  "machine",
  "config",
  "GiB of a device",
  "steps/s",
  "views/s a host",
  "hours",
  "hours, floor",
  "lost at a preemption",
)
MEMORY_HEAD = (
  "machine",
  "config",
  "remat, chunks",
  "weights and data, GiB",
  "temporaries, GiB",
  "all of it",
  "not fitting before",
  "CPU s",
)
DISK_HEAD = (
  "config",
  "training images",
  "images, GB",
  "stored features, GB",
  "checkpoints, MB",
)


def disk_row(config: str) -> list[str]:
  """Cells of `DISK_HEAD`; the checkpoint is one that is written here."""
  settings = unpack(load_config(config))
  settings = settings.replace(
    dry_run.changes_of(
      settings.data, settings.eval.images, settings.clip.model, settings.prompt
    )
  )
  with tempfile.TemporaryDirectory() as name:
    folder = RunFolder(pathlib.Path(name) / "run")
    prepare = lambda encoder: setup.prepare(settings, folder, encoder=encoder)
    job = absent.Job(settings.clip, 1, settings.loop, settings.data, prepare)
    run = absent.prepare(job, machine_of("v5e:1"), hosts.devices()[:1]).here
    folder.create()
    found = costs.disk(run)
  features = (
    f"{found['stored_features'] / 1e9:.2f}" if found["stored_features"] else "-"
  )
  images = f"{found['images'] / 1e9:.1f}"
  checkpoints = f"{found['checkpoints'] / 1e6:.2f}"
  return [
    config.removeprefix("imagenet21k_"),
    f"{len(run.source):,}",
    images,
    features,
    checkpoints,
  ]


def row(config: str, machine: str, cells: Callable[..., list[str]]) -> list[str]:
  """Cells of a config on a machine after their names; InputError: it can't be
  compiled here."""
  settings = unpack(load_config(config)).replace({"dry_run": machine})
  validate(settings)
  with tempfile.TemporaryDirectory() as folder:
    dry_run.check(settings, folder)
    figures = dry_run.run(settings, folder)
  return [
    machine,
    config.removeprefix("imagenet21k_"),
    *cells(settings, machine, figures),
  ]


def memory_cells(settings: Any, machine: str, figures: dict[str, Any]) -> list[str]:
  """Cells of `MEMORY_HEAD`: what was planned, and what the compiler makes of it."""
  before = "; ".join(figures["problems"]) or "-"
  if not figures["fits"]:
    return ["-", "-", "-", "does not fit", before, "-"]
  memory, plan = figures["memory"], figures["step_memory"]
  limit = machine_of(machine).chip.memory
  return [
    f"{plan.remat}, {plan.n_chunks}",
    f"{memory.arguments / GIB:.2f}",
    f"{memory.temporaries / GIB:.2f}",
    f"{memory.total / GIB:.1f} of {limit / GIB:.1f}",
    before,
    f"{figures['compile_cpu_seconds']:.0f}",
  ]


def cells(settings: Any, machine: str, figures: dict[str, Any]) -> list[str]:
  """Cells of the figures of a dry run for a machine."""
  if not figures["fits"]:
    return [f"does not fit: {figures['problems'][-1]}", *["-"] * 5]
  estimate, floor = figures["estimate_seconds"], figures["floor_seconds"]
  step = estimate or floor
  most, least = ("", "") if estimate else ("<= ", ">= ")
  limit = machine_of(machine).chip.memory
  steps, every = figures["steps"], settings.checkpoint.every
  return [
    f"{figures['memory'].total / GIB:.1f} of {limit / GIB:.1f}",
    f"{most}{1 / step:,.1f}",
    f"{most}{settings.batch_size / step / figures['n_hosts']:,.0f}",
    f"{least}{steps * step / 3600:.2f}" if estimate else "-",
    f">= {steps * floor / 3600:.2f}",
    f"{every} steps, {least}{every * step:.0f} s",
  ]


def main() -> None:
  """Entry point."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--configs", nargs="+", default=CONFIGS)
  parser.add_argument("--machines", nargs="+", default=MACHINES)
  parser.add_argument("--cache", default="auto", help="folder of compiled programs")
  parser.add_argument("--columns", choices=("times", "memory", "disk"), default="times")
  options = parser.parse_args()
  head, cells_of = HEAD, cells
  if options.columns == "memory":
    head, cells_of = MEMORY_HEAD, memory_cells
  jax.config.update("jax_platforms", "cpu")
  use_compilation_cache(options.cache, "")
  if options.columns == "disk":
    for line in (DISK_HEAD, ["---"] * len(DISK_HEAD), *map(disk_row, options.configs)):
      print(f"| {' | '.join(line)} |", flush=True)
    return
  for line in (head, ["---"] * len(head)):
    print(f"| {' | '.join(line)} |", flush=True)
  for config in options.configs:
    for machine in options.machines:
      try:
        found = row(config, machine, cells_of)
      except InputError as error:
        found = [machine, config, str(error), *["-"] * (len(head) - 3)]
      print(f"| {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
  main()
