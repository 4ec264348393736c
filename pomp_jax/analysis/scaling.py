"""How long a training step takes on many devices, by arithmetic: docs/scaling.md.

  python -m pomp_jax.analysis.scaling --chip=tpu_v4
  python -m pomp_jax.analysis.scaling --chip=h100 --step_seconds=0.031   one device, measured

The step is that of `prompt.step`: every draw has its own K-1 negatives, devices of the class
axis share the rows of a draw, and only the context's gradient and a few scalars are averaged.
"""

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import math

_FLOAT = 4  # bytes of what is exchanged
_WEIGHT = 2  # bytes of a weight, bfloat16


@dataclasses.dataclass(frozen=True)
class Work:
  """What a step computes, however it is laid out; ViT-B/16 and the published recipe.

  Attributes:
    views: images a step, their views counted one by one.
    k: K.
    n_tokens: own tokens of a class on average: name, ".", EOT.
    m: M.
    text_width: D of the text tower.
    text_layers: of it.
    embedding: E.
    image_flops: of the image tower, a view; 0 with cached features.
    image_weights: of the image tower.
  """

  views: int = 1024
  k: int = 1000
  n_tokens: float = 4.32
  m: int = 4
  text_width: int = 512
  text_layers: int = 12
  embedding: int = 512
  image_flops: float = 35.2e9
  image_weights: float = 86e6

  @property
  def text_weights(self) -> float:
    """Of the text tower's dense layers, 12 D^2 a layer."""
    return 12.0 * self.text_width**2 * self.text_layers

  def draw_flops(self, n_rows: int) -> float:
    """Of the text tower, forward and back to its inputs: two products a weight and direction."""
    return 4 * self.text_weights * (n_rows * self.n_tokens + self.m + 1)


@dataclasses.dataclass(frozen=True)
class Chip:
  """A device, and its share of what is around it.

  Attributes:
    flops: peak of dense bfloat16 products, a second.
    memory: bytes a second from its memory.
    link: bytes a second to the devices of its host or, on a TPU, of its slice.
    network: bytes a second to other hosts.
    latency: seconds of one message between two devices.
    per_host: devices a host.
    host_threads: of a host, for decoding.
  """

  flops: float
  memory: float
  link: float
  network: float
  latency: float
  per_host: int
  host_threads: int


# Peaks, memory and links as the makers state them; latencies are round guesses.
CHIPS = {
  "tpu_v4": Chip(275e12, 1.2e12, 100e9, 100e9, 5e-6, 4, 120),
  "tpu_v5e": Chip(197e12, 0.82e12, 50e9, 50e9, 5e-6, 4, 56),
  "a100": Chip(312e12, 2.0e12, 300e9, 25e9, 15e-6, 8, 48),
  "h100": Chip(989e12, 3.35e12, 450e9, 50e9, 15e-6, 8, 104),
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """How devices share the work.

  Attributes:
    data: devices along the data axis.
    class_size: devices along the class axis.
    accumulate: draws that a data index computes one after the other.
  """

  data: int
  class_size: int = 1
  accumulate: int = 1

  @property
  def chips(self) -> int:
    """All devices."""
    return self.data * self.class_size


@dataclasses.dataclass(frozen=True)
class Rates:
  """What was measured, or is assumed, of programs.

  Attributes:
    efficiency: the part of a chip's peak that the towers reach.
    thread_views: views a second that one thread decodes and augments; 0: images are not read.
    overhead: seconds a step that depend on nothing here: starting the program, the optimizer.
  """

  efficiency: float = 0.4
  thread_views: float = 1112.0
  overhead: float = 1e-3


@dataclasses.dataclass(frozen=True)
class StepTime:
  """Seconds of a step.

  Attributes:
    images: the image tower.
    text: the text tower.
    gather: image and class features over the class axis.
    reduce: loss and gradient over all devices.
    overhead: see `Rates`.
    data: the loader's; beside the rest, on the host.
  """

  images: float
  text: float
  gather: float
  reduce: float
  overhead: float
  data: float

  @property
  def device(self) -> float:
    """All that the devices wait for one after the other."""
    return self.images + self.text + self.gather + self.reduce + self.overhead

  @property
  def total(self) -> float:
    """The slower of devices and loader: they work at the same time."""
    return max(self.device, self.data)

  @property
  def bound(self) -> str:
    """What takes most of it."""
    if self.data > self.device:
      return "reading images"
    parts = {
      "image tower": self.images,
      "text tower": self.text,
      "exchange": self.gather + self.reduce,
      "overhead": self.overhead,
    }
    return max(parts, key=parts.__getitem__)


def step_time(work: Work, chip: Chip, layout: Layout, rates: Rates) -> StepTime:
  """The model.

  A tower takes the longer of its products at the reached rate and one reading of its weights a
  pass (where few rows are left on a device, that is what stays). A collective of n devices takes
  log2(n) messages there and as many back (a gather goes back in the backward pass), and its bytes
  over the slowest link between them.

  Raises:
    ValueError: the draws do not divide the views.
  """
  draws = layout.data * layout.accumulate
  if work.views % draws:
    raise ValueError(f"{work.views} views do not divide by {draws} draws")
  n_images, rate = work.views // draws, rates.efficiency * chip.flops
  rows = n_images + work.k - 1

  def tower(flops: float, weights: float, passes: int) -> float:
    return max(flops / rate, passes * weights * _WEIGHT / chip.memory) if flops else 0.0

  own_views = math.ceil(work.views / layout.data / layout.class_size)
  images = tower(own_views * work.image_flops, work.image_weights, 1)
  text = tower(work.draw_flops(math.ceil(rows / layout.class_size)), work.text_weights, 2)

  within = _link(chip, layout.class_size)
  # Each device gets what the others have computed.
  share = (layout.class_size - 1) / layout.class_size
  hops = _hops(layout.class_size)
  class_bytes = rows * work.embedding * _FLOAT * share
  gather = 2 * layout.accumulate * (hops * chip.latency + class_bytes / within)
  if work.image_flops:
    image_bytes = work.views / layout.data * work.embedding * _FLOAT * share
    gather += hops * chip.latency + image_bytes / within
  # Of every draw the loss and the gradient.
  gradient_bytes = 2 * work.m * work.text_width * _FLOAT
  reduce = layout.accumulate * (
    2 * 2 * _hops(layout.chips) * chip.latency
    + (gradient_bytes / _link(chip, layout.chips) if layout.chips > 1 else 0)
  )
  # Hosts that share an index of the data axis all read its images.
  n_parts = min(math.ceil(layout.chips / chip.per_host), layout.data)
  data = 0.0
  if rates.thread_views and work.image_flops:
    data = work.views / n_parts / (chip.host_threads * rates.thread_views)
  return StepTime(images, layout.accumulate * text, gather, reduce, rates.overhead, data)


def efficiency_of(
  work: Work, chip: Chip, seconds: float, overhead: float = Rates.overhead
) -> float:
  """The part of its peak that one device reaches, from a step that was measured on it alone.

  Raises:
    ValueError: the step took less than the overhead, or less than the peak allows.
  """
  flops = work.views * work.image_flops + work.draw_flops(work.views + work.k - 1)
  found = flops / chip.flops / (seconds - overhead) if seconds > overhead else math.inf
  if found > 1:
    raise ValueError(f"{seconds} s are less than {flops:.3g} FLOP can take at {chip.flops:.3g}/s")
  return found


def _hops(n_devices: int) -> int:
  return math.ceil(math.log2(n_devices))


def _link(chip: Chip, n_devices: int) -> float:
  return chip.link if n_devices <= chip.per_host else min(chip.link, chip.network)


# How a pod can be filled: with more images, each device with a draw of its own; with the same
# images, in more draws; with the same images and draws, each draw shared by more devices.
PLANS = {
  "more images": lambda chips: (128 * chips, Layout(chips)),
  "more draws": lambda chips: (1024, Layout(chips)),
  "shared draws": lambda chips: (1024, Layout(min(8, chips), max(1, chips // 8))),
}
_CHIPS = (8, 32, 128, 512, 1024, 4096)


def rows_of(
  plan: str, work: Work, chip: Chip, rates: Rates, chips: Sequence[int] = _CHIPS
) -> Iterator[list[str]]:
  """A table's rows: layout, views, milliseconds, views a second, and what binds.

  Args:
    plan: one of PLANS.
    work: the step; its views are the plan's.
    chip: every device.
    rates: of the programs.
    chips: how many devices, a row each, 8 or more; those that the plan can't use are left out.
  """
  first = None
  for n in chips:
    views, layout = PLANS[plan](n)
    if views < layout.data:
      continue
    time = step_time(dataclasses.replace(work, views=views), chip, layout, rates)
    speed = views / time.total
    first = first or speed / n
    milliseconds = (time.images, time.text, time.gather + time.reduce, time.data, time.total)
    yield [
      f"{n:,}",
      f"{layout.data} x {layout.class_size}",
      f"{views:,}",
      *(f"{1000 * seconds:.3g}" for seconds in milliseconds),
      f"{speed:,.0f}",
      f"{100 * speed / n / first:.0f}%",
      time.bound,
    ]


_HEADER = (
  *("chips", "data x class", "views", "images ms", "text ms", "exchange ms", "reading ms"),
  *("step ms", "views/s", "of 8 chips' speed a chip", "bound by"),
)


def table(plan: str, work: Work, chip: Chip, rates: Rates) -> str:
  """`rows_of` as Markdown."""
  lines = [_HEADER, ["---"] * len(_HEADER), *rows_of(plan, work, chip, rates)]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
  """Prints the tables of a chip."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--chip", choices=CHIPS, default="tpu_v4")
  parser.add_argument("--efficiency", type=float, default=Rates.efficiency, help="part of the peak")
  parser.add_argument("--step_seconds", type=float, help="of one device with 128 views, measured")
  parser.add_argument("--cached", action="store_true", help="features of images come from a cache")
  arguments = parser.parse_args()
  chip, work = (
    CHIPS[arguments.chip],
    Work(image_flops=0.0 if arguments.cached else Work.image_flops),
  )
  efficiency = arguments.efficiency
  if arguments.step_seconds is not None:
    one = dataclasses.replace(work, views=128)
    efficiency = efficiency_of(one, chip, arguments.step_seconds)
  rates = Rates(efficiency=efficiency)
  print(f"{arguments.chip}, {100 * efficiency:.0f}% of its peak")
  for plan in PLANS:
    print(f"\n{plan}:\n\n{table(plan, work, chip, rates)}")


if __name__ == "__main__":
  main()
