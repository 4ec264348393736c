"""Predicts the time of a training step on many devices, for planning: docs/scaling.md.

  python -m pomp_jax.analysis.step_time_model --chip=tpu_v4
  python -m pomp_jax.analysis.step_time_model --chip=h100 --step_seconds=0.031   # one device
  python -m pomp_jax.analysis.step_time_model --reading

The model follows `prompt.step`: every draw has its own K-1 negatives, devices of the class axis
share the rows of a draw, and only the context's gradient and a few scalars are averaged.
"""

import argparse
import dataclasses
import math
from typing import NamedTuple

_FLOAT = 4  # bytes of an exchanged number
_WEIGHT = 2  # bytes of a weight, bfloat16
_EFFICIENCY = 0.4  # assumed share of a chip's peak
_THREAD_VIEWS = 658.0  # measured views/s that a worker process on a core decodes and augments
# Measured views/s that threads of one process decode and augment, by their number.
_ONE_PROCESS = {2: 1056.0, 4: 1196.0}
_OVERHEAD = 1e-3  # assumed constant seconds a step


@dataclasses.dataclass(frozen=True)
class Work:
  """Computation of one step in any layout; by default ViT-B/16 and the published recipe."""

  views: int = 1024  # image views a step
  k: int = 1000
  n_tokens: float = 4.32  # mean tokens of a class: name, ".", EOT
  m: int = 4
  text_width: int = 512
  text_layers: int = 12
  embedding: int = 512
  image_flops: float = 35.2e9  # FLOP of the image tower for one view; 0 with cached features
  image_weights: float = 86e6

  @property
  def text_weights(self) -> float:
    """Weights of the text tower's dense layers, 12 D^2 a layer."""
    return 12.0 * self.text_width**2 * self.text_layers

  def draw_flops(self, n_rows: int) -> float:
    """FLOP of the text tower, forward and back to its inputs: two products a weight and pass."""
    return 4 * self.text_weights * (n_rows * self.n_tokens + self.m + 1)


class Chip(NamedTuple):
  """A device and its share of the host."""

  flops: float  # peak dense bfloat16 FLOP/s
  memory: float  # memory bandwidth, bytes/s
  link: float  # bandwidth to the devices of its host or TPU slice, bytes/s
  network: float  # bandwidth to other hosts, bytes/s
  latency: float  # seconds of one message between two devices
  per_host: int  # devices a host
  host_threads: int  # threads of a host, with a worker process each

  def bandwidth(self, n_devices: int) -> float:
    """Returns the slowest link among n devices, bytes/s."""
    return self.link if n_devices <= self.per_host else min(self.link, self.network)


# Peaks, memory and links as the makers state them; latencies are round guesses.
CHIPS = {
  "tpu_v4": Chip(275e12, 1.2e12, 100e9, 100e9, 5e-6, 4, 120),
  "tpu_v5e": Chip(197e12, 0.82e12, 50e9, 50e9, 5e-6, 4, 56),
  "a100": Chip(312e12, 2.0e12, 300e9, 25e9, 15e-6, 8, 48),
  "h100": Chip(989e12, 3.35e12, 450e9, 50e9, 15e-6, 8, 104),
}


class Layout(NamedTuple):
  """Division of the work among devices."""

  data: int  # devices along the data axis
  class_size: int = 1  # devices along the class axis
  accumulate: int = 1  # draws that a data index computes one after the other

  @property
  def chips(self) -> int:
    """Number of devices."""
    return self.data * self.class_size


class StepTime(NamedTuple):
  """Seconds of a step."""

  images: float  # image tower
  text: float  # text tower
  gather: float  # image and class features over the class axis
  reduce: float  # loss and gradient over all devices
  overhead: float  # constant overhead
  data: float  # image loading on the host, concurrent with the rest

  @property
  def device(self) -> float:
    """Seconds on the devices."""
    return sum(self[:-1])

  @property
  def total(self) -> float:
    """Seconds of the slower of devices and loader, which run concurrently."""
    return max(self.device, self.data)

  @property
  def bound(self) -> str:
    """Name of the largest part."""
    if self.data > self.device:
      return "reading images"
    parts = {
      "image tower": self.images,
      "text tower": self.text,
      "exchange": self.gather + self.reduce,
      "overhead": self.overhead,
    }
    return max(parts, key=parts.__getitem__)


def step_time(
  work: Work,
  chip: Chip,
  layout: Layout,
  *,
  efficiency: float = _EFFICIENCY,
  thread_views: float = _THREAD_VIEWS,
  overhead: float = _OVERHEAD,
) -> StepTime:
  """Predicts the time of a step.

  A tower takes the longer of its arithmetic at the reached rate and one reading of its weights a
  pass. A collective of n devices takes log2(n) messages in each direction (a gather is reversed in
  the backward pass), and its bytes over the slowest link.

  Args:
    work: computation of the step.
    chip: device type.
    layout: division of the work.
    efficiency: share of the chip's peak that the towers reach.
    thread_views: views/s that one worker process decodes and augments.
    overhead: constant seconds a step: program start, optimizer.

  Raises:
    ValueError: the views are not a multiple of the draws.
  """
  draws = layout.data * layout.accumulate
  if work.views % draws:
    raise ValueError(f"{work.views} views do not divide by {draws} draws")
  n_rows, class_size = work.views // draws + work.k - 1, layout.class_size

  def tower(flops: float, weights: float, passes: int) -> float:
    arithmetic = flops / (efficiency * chip.flops)
    return max(arithmetic, passes * weights * _WEIGHT / chip.memory) if flops else 0.0

  own_views = math.ceil(work.views / layout.data / class_size)
  images = tower(own_views * work.image_flops, work.image_weights, 1)
  text = tower(work.draw_flops(math.ceil(n_rows / class_size)), work.text_weights, 2)

  # Each device receives what the others of its class axis have computed.
  received = work.embedding * _FLOAT * (class_size - 1) / class_size / chip.bandwidth(class_size)
  messages = math.ceil(math.log2(class_size)) * chip.latency
  gather = 2 * layout.accumulate * (messages + n_rows * received)
  if work.image_flops:
    gather += messages + work.views / layout.data * received
  # Loss and gradient of every draw, there and back.
  gradient = 2 * work.m * work.text_width * _FLOAT / chip.bandwidth(layout.chips)
  messages = 2 * 2 * math.ceil(math.log2(layout.chips)) * chip.latency
  reduce = layout.accumulate * (messages + gradient * (layout.chips > 1))

  # Hosts that share an index of the data axis all read its images.
  n_parts = min(math.ceil(layout.chips / chip.per_host), layout.data)
  data = 0.0
  if work.image_flops:
    data = work.views / n_parts / (chip.host_threads * thread_views)
  return StepTime(images, layout.accumulate * text, gather, reduce, overhead, data)


def efficiency_of(work: Work, chip: Chip, seconds: float) -> float:
  """Computes the share of its peak that one device reaches from its measured step.

  Raises:
    ValueError: the step took less than the overhead, or less than the peak allows.
  """
  flops = work.views * work.image_flops + work.draw_flops(work.views + work.k - 1)
  busy = seconds - _OVERHEAD
  found = flops / chip.flops / busy if busy > 0 else math.inf
  if found > 1:
    raise ValueError(f"{seconds} s are less than {flops:.3g} FLOP can take at {chip.flops:.3g}/s")
  return found


# Ways to fill a pod: views and layout for a number of chips, 8 or more.
PLANS = {
  "more images": lambda chips: (128 * chips, Layout(chips)),
  "more draws": lambda chips: (1024, Layout(chips)),
  "shared draws": lambda chips: (1024, Layout(min(8, chips), max(1, chips // 8))),
}
_CHIPS = (8, 32, 128, 512, 1024, 4096)
_HEADER = (
  *("chips", "data x class", "views", "images ms", "text ms", "exchange ms", "reading ms"),
  *("step ms", "views/s", "of 8 chips' speed a chip", "bound by"),
)


def table(plan: str, work: Work, chip: Chip, efficiency: float = _EFFICIENCY) -> str:
  """Formats the step times of a plan as Markdown; chips that the plan can't use are skipped."""
  lines, first = [_HEADER, ["---"] * len(_HEADER)], None
  for n in _CHIPS:
    views, layout = PLANS[plan](n)
    if views < layout.data:
      continue
    own = dataclasses.replace(work, views=views)
    time = step_time(own, chip, layout, efficiency=efficiency)
    speed = views / time.total
    first = first or speed / n
    parts = (time.images, time.text, time.gather + time.reduce, time.data, time.total)
    milliseconds = [f"{1000 * seconds:.3g}" for seconds in parts]
    relative = f"{100 * speed / n / first:.0f}%"
    start = [f"{n:,}", f"{layout.data} x {layout.class_size}", f"{views:,}"]
    lines.append([*start, *milliseconds, f"{speed:,.0f}", relative, time.bound])
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reading_table(work: Work) -> str:
  """Formats what reading takes beside a step on one host, as Markdown."""
  header = [f"reading ms, {n} threads" for n in _ONE_PROCESS]
  header = ["devices", "step ms", "views/s", "cores needed", *header, "a worker a host thread"]
  lines = [header, ["---"] * len(header)]
  for name, layout in (("h100", Layout(8)), ("tpu_v4", Layout(4, accumulate=2))):
    chip = CHIPS[name]
    time = step_time(work, chip, layout)
    needed = work.views / time.device
    milliseconds = [1000 * work.views / views for views in _ONE_PROCESS.values()]
    milliseconds.append(1000 * time.data)
    start = [f"{layout.chips} x {name}", f"{1000 * time.device:.3g}", f"{needed:,.0f}"]
    cores = math.ceil(needed / _THREAD_VIEWS)
    lines.append([*start, f"{cores}", *(f"{one:.3g}" for one in milliseconds)])
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
  """Prints the tables of a chip."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--chip", choices=CHIPS, default="tpu_v4")
  parser.add_argument("--efficiency", type=float, default=_EFFICIENCY, help="share of the peak")
  parser.add_argument("--step_seconds", type=float, help="measured on one device with 128 views")
  parser.add_argument("--cached", action="store_true", help="image features come from a cache")
  parser.add_argument("--reading", action="store_true", help="reading on one host instead")
  arguments = parser.parse_args()
  if arguments.reading:
    print(reading_table(Work()))
    return
  chip, efficiency = CHIPS[arguments.chip], arguments.efficiency
  work = Work(image_flops=0.0) if arguments.cached else Work()
  if arguments.step_seconds is not None:
    one = dataclasses.replace(work, views=128)
    efficiency = efficiency_of(one, chip, arguments.step_seconds)
  print(f"{arguments.chip}, {100 * efficiency:.0f}% of its peak")
  for plan in PLANS:
    print(f"\n{plan}:\n\n{table(plan, work, chip, efficiency)}")


if __name__ == "__main__":
  main()
