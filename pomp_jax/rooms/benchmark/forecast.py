"""What a compiled step says of a run on a machine that is not here: its figures and the
report.

Memory, collectives and cycles are the compiler's, the floor is the arithmetic of the
model's sizes at the chip's peak rates (`chips.py`). Nothing is measured on the machine,
so no time here is more than an estimate.
"""

from typing import Any

from pomp_jax import hosts
from pomp_jax.prompt.mesh import DATA
from pomp_jax.rooms.benchmark import costs, hlo
from pomp_jax.rooms.benchmark.absent import Outcome
from pomp_jax.rooms.benchmark.chips import GIB, SOURCES, Machine
from pomp_jax.rooms.benchmark.flops import image_flops, step_flops
from pomp_jax.train import setup

_MIB = 2**20


def read_rate(run: setup.PromptRun) -> float:
  """Views/s that a core of this machine reads for a training."""
  read = costs.reading(run)["read"]
  threads, workers = run.readers
  n_cores = min(hosts.own_cores(), threads * max(1, workers))
  return run.loop.batch_size / read.seconds / n_cores


def figures_of(outcome: Outcome, machine: Machine, rate: float = 0.0) -> dict[str, Any]:
  """Numbers of a compiled step and its run, by name; times in seconds.

  `rate` is the machine's an hour.
  """
  run, compiled = outcome.there, outcome.compiled
  tries: dict[str, Any] = {
    "machine": str(machine),
    "fits": outcome.fits,
    "changes": outcome.changes,
    "problems": [with_text(changes) + problem for changes, problem in outcome.problems],
    "rate": rate,
  }
  if compiled is None or not outcome.fits:
    return tries
  chip, mesh = machine.chip, run.encoder.mesh
  program = hlo.parse(compiled.text)
  flops = step_flops(run)
  floor = max(
    sum(flops.values()) / chip.peak[run.clip.dtype],
    compiled.memory.arguments / chip.bandwidth,
  )
  cycles = hlo.cycles(program) if chip.clock else None
  estimate = cycles.total / chip.clock if cycles else None
  online = run.data.features == "online"
  return tries | {
    "views_per_core": read_rate(outcome.here) if online else None,
    "memory": compiled.memory,
    "flops": flops,
    "floor_seconds": floor,
    "cycles": cycles,
    "estimate_seconds": estimate,
    "collectives": hlo.collectives(
      program, _of_slice(dict(mesh.shape), machine.n_slices)
    ),
    "compile_seconds": compiled.seconds,
    "compile_cpu_seconds": compiled.cpu_seconds,
    "is_cached": compiled.is_cached,
    "step_memory": run.step_memory,
    "n_hosts": len({device.process_index for device in mesh.devices.flat}),
    "steps": run.total_steps,
    "stored_views": 0 if online else costs.stored_views(run),
  }


def _of_slice(sizes: dict[str, int], n_slices: int) -> dict[str, int]:
  """Sizes of a mesh's axes within a slice: the first goes over the slices, see
  `make_mesh`."""
  return sizes | {DATA: max(1, sizes[DATA] // n_slices)}


def lines(run: setup.PromptRun, machine: Machine, figures: dict[str, Any]) -> list[str]:
  """The report of `figures_of` and `absent.run`, with the source of each figure."""
  chip, batch_size = machine.chip, run.loop.batch_size
  mesh = " x ".join(f"{name} {size}" for name, size in run.encoder.mesh.shape.items())
  limit = chip.memory / GIB
  source = "XLA's list, 75% of it" if chip.gpu else "libtpu"
  found = [
    f"compiled {run.clip.model} for {machine}, mesh {mesh}: nothing was measured on it",
    f"  run: {len(run.source.names):,} classes, {len(run.source):,} training images,"
    f" {run.total_steps:,} steps of {batch_size:,} views",
  ]
  found += [f"  does NOT fit: {problem}" for problem in figures["problems"]]
  if not figures["fits"]:
    ways = "a smaller batch_size or k, more devices, or data.features=stored"
    n_tries = len(figures["problems"])
    return [*found, f"  none of the {n_tries} above fits; left are {ways}"]
  if figures["changes"]:
    found.append(f"  fits {with_text(figures['changes'])}compiled again")
  memory, plan = figures["memory"], figures["step_memory"]
  flops, floor, estimate = (
    figures[f"{x}"] for x in ("flops", "floor_seconds", "estimate_seconds")
  )
  found += [
    f"  memory of a device: {memory.arguments / _MIB:,.0f} MiB of weights and data,"
    f" {memory.temporaries / _MIB:,.0f} MiB of temporaries, {memory.others / _MIB:,.0f} MiB of"
    f" program and results (the compiler's); {memory.total / GIB:.1f} of {limit:.1f} GiB"
    f" ({source}): fits",
    f"  text tower: remat={plan.remat}, {plan.n_chunks} chunks, as clip.memory_gib="
    f"{run.clip.memory_gib:.3g} GiB allows",
    f"  step, floor: {_seconds(floor)}: {_flops(flops)} a device (counted from the model's sizes)"
    f" at {chip.peak[run.clip.dtype] / 1e12:,.0f} TFLOP/s, {memory.arguments / 1e9:.2f} GB of"
    f" arguments at {chip.bandwidth / 1e9:,.0f} GB/s ({SOURCES[chip.kind]})",
  ]
  if estimate is None:
    found.append("  step, estimate: XLA gives none for GPUs; the floor alone")
  else:
    cycles = figures["cycles"]
    unknown = (
      f", {cycles.unknown} loops of unknown length once" if cycles.unknown else ""
    )
    found.append(
      f"  step, estimate: {_seconds(estimate)}: {cycles.total / 1e6:,.1f} M cycles (the compiler's;"
      f" {cycles.products / cycles.total:.0%} in products, {cycles.loops / cycles.total:.0%} in"
      f" loops{unknown}) at {chip.clock / 1e9:.2f} GHz"
    )
  step, by = (estimate, "by the estimate") if estimate else (floor, "by the floor")
  most = "" if estimate else "at most "
  found.append(
    f"  steps an hour: {most}{3600 / step:,.0f} {by}; {batch_size / step:,.0f} views/s,"
    f" {batch_size / step / machine.n_devices:,.0f} of a device"
  )
  of_step = [
    f"{one.number} {one.kind} over {one.axes}, {_bytes(one.n_bytes)}"
    for one in figures["collectives"]
  ]
  found.append(
    f"  collectives of a step (in the compiled program): {'; '.join(of_step) or 'none'}"
  )
  if machine.n_slices > 1:
    found[-1] += "; the estimate has no time for the data-centre network"
  found.append(f"  reading: {most}{_reading(run, figures, step)}")
  found += _whole_run(run, machine, figures)
  origin = (
    "compiled by an earlier dry run; read" if figures["is_cached"] else "compiled"
  )
  times = figures["compile_seconds"], figures["compile_cpu_seconds"]
  found.append(f"  {origin} in {times[0]:.0f} s, {times[1]:.0f} s of a core")
  return found


def _whole_run(
  run: setup.PromptRun, machine: Machine, figures: dict[str, Any]
) -> list[str]:
  """Hours of the training, and their price."""
  estimate, n_hours = figures["estimate_seconds"], run.total_steps / 3600
  hours = least = n_hours * figures["floor_seconds"]
  text, bound = f"at least {_hours(least)} by the floor", "at least "
  if estimate:
    hours, bound = n_hours * estimate, ""
    text = f"{_hours(hours)} by the estimate, {text}"
  if n_views := figures["stored_views"]:
    rate = machine.n_devices * machine.chip.peak[run.clip.dtype]
    features = n_views * image_flops(run) / rate / 3600
    text += f"; before it, once, features of {n_views:,} views: {_hours(features)} by the floor"
  found = [f"  training: {text}; without validation, evaluation and start"]
  if rate := figures["rate"]:
    found.append(
      f"  price of the training at {rate:,.2f} an hour: {bound}{rate * hours:,.2f}"
    )
  return found


def _reading(run: setup.PromptRun, figures: dict[str, Any], step: float) -> str:
  """What hosts must deliver, beside what a core of this one does."""
  n_hosts, rate = figures["n_hosts"], run.loop.batch_size / step
  hosts_text = "the host" if n_hosts == 1 else f"each of {n_hosts} hosts"
  of_host = rate / n_hosts
  if run.data.features != "online":
    size = 4 * run.encoder.clip.config.projection_dim
    return f"{of_host:,.0f} stored features/s for {hosts_text}, {of_host * size / 1e6:,.1f} MB/s"
  per_core = figures["views_per_core"]
  return (
    f"{of_host:,.0f} views/s for {hosts_text}; a core of this machine read {per_core:,.0f}"
    f" (measured now), so {of_host / per_core:,.0f} such cores"
  )


def with_text(changes: dict[str, Any]) -> str:
  """Changed fields in words; "" without any."""
  texts = [f"{field}={value:.4g}" for field, value in changes.items()]
  return f"with {' '.join(texts)}: " if texts else ""


def _seconds(seconds: float) -> str:
  return f"{1e3 * seconds:,.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"


def _hours(hours: float) -> str:
  return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _flops(flops: dict[str, float]) -> str:
  parts = [f"{name} {value / 1e12:.2f}" for name, value in flops.items()]
  return f"{sum(flops.values()) / 1e12:.2f} TFLOP ({', '.join(parts)})"


def _bytes(n_bytes: int) -> str:
  return (
    f"{n_bytes / _MIB:,.1f} MiB" if n_bytes >= _MIB else f"{n_bytes / 2**10:,.1f} KiB"
  )
