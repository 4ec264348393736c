"""Forecasts a run on a machine that is not here from its compiled step.

Memory, collectives and cycles come from the compiler. The floor of a step's time
follows from the model's sizes and the chip's peak rates (`chips.py`). Nothing is
measured on the machine, so each time is an estimate.
"""

from typing import Any

from pomp_jax import hosts
from pomp_jax.prompt.mesh import DATA
from pomp_jax.rooms.benchmark import costs, hlo
from pomp_jax.rooms.benchmark.absent import Outcome
from pomp_jax.rooms.benchmark.chips import GIB, SOURCES, Machine
from pomp_jax.rooms.benchmark.flops import image_flops, step_flops
from pomp_jax.train.training import PromptRun

_MIB = 2**20


def read_rate(run: PromptRun) -> float:
  """Measures how many views/s a core of this machine reads for a training."""
  read = costs.reading(run)["read"]
  threads, workers = run.readers
  n_cores = min(hosts.own_cores(), threads * max(1, workers))
  return run.loop.batch_size / read.seconds / n_cores


def figures_of(outcome: Outcome, machine: Machine, rate: float = 0.0) -> dict[str, Any]:
  """Collects the numbers of a compiled step and its run, by name.

  Args:
    outcome: result of `absent.run`.
    machine: machine that the step was compiled for.
    rate: price of an hour of the machine, in any currency; 0 if unknown.

  Returns:
    Times in seconds, counts and settings by name. If no try fits, only the machine, the
    rate and the tries.
  """
  run = outcome.there
  compiled = outcome.compiled
  figures: dict[str, Any] = {
    "machine": str(machine),
    "fits": outcome.fits,
    "changes": outcome.changes,
    "problems": [with_text(changes) + problem for changes, problem in outcome.problems],
    "rate": rate,
  }
  if compiled is None or not outcome.fits:
    return figures
  chip = machine.chip
  mesh = run.encoder.mesh
  views_per_core = None
  stored_views = 0
  if run.data.features == "online":
    views_per_core = read_rate(outcome.here)
  else:
    stored_views = costs.stored_views(run)
  program = hlo.parse(compiled.text)
  cycles = None
  estimate = None
  if chip.clock:
    cycles = hlo.cycles(program)
  if cycles:
    estimate = cycles.total / chip.clock
  flops = step_flops(run)
  # A step can't take less time than its products, nor than reading its arguments.
  products = sum(flops.values()) / chip.peak[run.clip.dtype]
  arguments = compiled.memory.arguments / chip.bandwidth
  axis_sizes = _of_slice(dict(mesh.shape), machine.n_slices)
  return figures | {
    "views_per_core": views_per_core,
    "memory": compiled.memory,
    "flops": flops,
    "floor_seconds": max(products, arguments),
    "cycles": cycles,
    "estimate_seconds": estimate,
    "collectives": hlo.collectives(program, axis_sizes),
    "compile_seconds": compiled.seconds,
    "compile_cpu_seconds": compiled.cpu_seconds,
    "is_cached": compiled.is_cached,
    "step_memory": run.step_memory,
    "n_hosts": len({device.process_index for device in mesh.devices.flat}),
    "steps": run.total_steps,
    "stored_views": stored_views,
  }


def _of_slice(sizes: dict[str, int], n_slices: int) -> dict[str, int]:
  """Sizes of a mesh's axes within a slice; `make_mesh` splits DATA over the slices."""
  return sizes | {DATA: max(1, sizes[DATA] // n_slices)}


def lines(run: PromptRun, machine: Machine, figures: dict[str, Any]) -> list[str]:
  """Writes the report of `figures_of`, with the source of each figure.

  Args:
    run: training whose arrays are shapes, with the mesh of the machine.
    machine: machine that the step was compiled for.
    figures: result of `figures_of`.
  """
  mesh = " x ".join(f"{name} {size}" for name, size in run.encoder.mesh.shape.items())
  report = [
    f"compiled {run.clip.model} for {machine}, mesh {mesh}: nothing was measured on it",
    f"  run: {len(run.source.names):,} classes, {len(run.source):,} training images,"
    f" {run.total_steps:,} steps of {run.loop.batch_size:,} views",
  ]
  report += [f"  does NOT fit: {problem}" for problem in figures["problems"]]
  if not figures["fits"]:
    ways = "a smaller batch_size or k, more devices, or data.features=stored"
    n_tries = len(figures["problems"])
    report.append(f"  none of the {n_tries} above fits; left are {ways}")
    return report
  if figures["changes"]:
    report.append(f"  fits {with_text(figures['changes'])}compiled again")
  report += _memory_lines(run, machine, figures)
  report += _step_lines(run, machine, figures)
  report += _whole_run(run, machine, figures)
  origin = "compiled"
  if figures["is_cached"]:
    origin = "compiled by an earlier dry run; read"
  wall = figures["compile_seconds"]
  cpu = figures["compile_cpu_seconds"]
  report.append(f"  {origin} in {wall:.0f} s, {cpu:.0f} s of a core")
  return report


def _memory_lines(
  run: PromptRun, machine: Machine, figures: dict[str, Any]
) -> list[str]:
  """Memory of a device, and the text tower's chunks and remat under its limit."""
  memory = figures["memory"]
  plan = figures["step_memory"]
  limit = machine.chip.memory / GIB
  source = "XLA's list, 75% of it" if machine.chip.gpu else "libtpu"
  return [
    f"  memory of a device: {memory.arguments / _MIB:,.0f} MiB of weights and data,"
    f" {memory.temporaries / _MIB:,.0f} MiB of temporaries, {memory.others / _MIB:,.0f} MiB of"
    f" program and results (the compiler's); {memory.total / GIB:.1f} of {limit:.1f} GiB"
    f" ({source}): fits",
    f"  text tower: remat={plan.remat}, {plan.n_chunks} chunks, as clip.memory_gib="
    f"{run.clip.memory_gib:.3g} GiB allows",
  ]


def _step_lines(run: PromptRun, machine: Machine, figures: dict[str, Any]) -> list[str]:
  """Floor and estimate of a step's time, its collectives, and its rate of reading."""
  chip = machine.chip
  memory = figures["memory"]
  flops = figures["flops"]
  floor = figures["floor_seconds"]
  estimate = figures["estimate_seconds"]
  report = [
    f"  step, floor: {_seconds(floor)}: {_flops(flops)} a device (counted from the model's sizes)"
    f" at {chip.peak[run.clip.dtype] / 1e12:,.0f} TFLOP/s, {memory.arguments / 1e9:.2f} GB of"
    f" arguments at {chip.bandwidth / 1e9:,.0f} GB/s ({SOURCES[chip.kind]})",
  ]
  if estimate is None:
    step = floor
    basis = "by the floor"
    bound = "at most "
    report.append("  step, estimate: XLA gives none for GPUs; the floor alone")
  else:
    step = estimate
    basis = "by the estimate"
    bound = ""
    cycles = figures["cycles"]
    unknown = ""
    if cycles.unknown:
      unknown = f", {cycles.unknown} loops of unknown length once"
    report.append(
      f"  step, estimate: {_seconds(estimate)}: {cycles.total / 1e6:,.1f} M cycles (the compiler's;"
      f" {cycles.products / cycles.total:.0%} in products, {cycles.loops / cycles.total:.0%} in"
      f" loops{unknown}) at {chip.clock / 1e9:.2f} GHz"
    )
  n_steps = 3600 / step
  rate = run.loop.batch_size / step
  report.append(
    f"  steps an hour: {bound}{n_steps:,.0f} {basis}; {rate:,.0f} views/s,"
    f" {rate / machine.n_devices:,.0f} of a device"
  )
  kinds = "; ".join(
    f"{row.number} {row.kind} over {row.axes}, {_bytes(row.n_bytes)}"
    for row in figures["collectives"]
  )
  collectives = f"  collectives of a step (in the compiled program): {kinds or 'none'}"
  if machine.n_slices > 1:
    collectives += "; the estimate has no time for the data-centre network"
  report.append(collectives)
  report.append(f"  reading: {bound}{_reading(run, figures, rate)}")
  return report


def _whole_run(run: PromptRun, machine: Machine, figures: dict[str, Any]) -> list[str]:
  """Hours of the training, and their price."""
  hours_per_second = run.total_steps / 3600  # hours of the run, per second of a step
  hours = hours_per_second * figures["floor_seconds"]
  bound = "at least "
  times = f"at least {_hours(hours)} by the floor"
  if estimate := figures["estimate_seconds"]:
    hours = hours_per_second * estimate
    bound = ""
    times = f"{_hours(hours)} by the estimate, {times}"
  if n_views := figures["stored_views"]:
    peak = machine.n_devices * machine.chip.peak[run.clip.dtype]
    feature_hours = n_views * image_flops(run) / peak / 3600
    times += (
      f"; before it, once, features of {n_views:,} views:"
      f" {_hours(feature_hours)} by the floor"
    )
  report = [f"  training: {times}; without validation, evaluation and start"]
  if rate := figures["rate"]:
    price = f"{bound}{rate * hours:,.2f}"
    report.append(f"  price of the training at {rate:,.2f} an hour: {price}")
  return report


def _reading(run: PromptRun, figures: dict[str, Any], rate: float) -> str:
  """Views/s that a host must deliver, and views/s that a core of this machine reads."""
  n_hosts = figures["n_hosts"]
  hosts_text = "the host" if n_hosts == 1 else f"each of {n_hosts} hosts"
  of_host = rate / n_hosts
  if run.data.features != "online":
    size = 4 * run.encoder.clip.config.projection_dim
    megabytes = of_host * size / 1e6
    return f"{of_host:,.0f} stored features/s for {hosts_text}, {megabytes:,.1f} MB/s"
  per_core = figures["views_per_core"]
  return (
    f"{of_host:,.0f} views/s for {hosts_text}; a core of this machine read {per_core:,.0f}"
    f" (measured now), so {of_host / per_core:,.0f} such cores"
  )


def with_text(changes: dict[str, Any]) -> str:
  """Names changed fields, as "with field=value: "; returns "" without any."""
  if not changes:
    return ""
  texts = [f"{field}={value:.4g}" for field, value in changes.items()]
  return f"with {' '.join(texts)}: "


def _seconds(seconds: float) -> str:
  if seconds < 1:
    return f"{1e3 * seconds:,.3g} ms"
  return f"{seconds:,.3g} s"


def _hours(hours: float) -> str:
  if hours < 1:
    return f"{60 * hours:.1f} min"
  return f"{hours:,.1f} h"


def _flops(flops: dict[str, float]) -> str:
  parts = [f"{name} {value / 1e12:.2f}" for name, value in flops.items()]
  return f"{sum(flops.values()) / 1e12:.2f} TFLOP ({', '.join(parts)})"


def _bytes(n_bytes: int) -> str:
  if n_bytes < _MIB:
    return f"{n_bytes / 2**10:,.1f} KiB"
  return f"{n_bytes / _MIB:,.1f} MiB"
