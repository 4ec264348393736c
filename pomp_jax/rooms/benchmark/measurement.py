"""Interleaved measurements of steps, relative to a large matrix product; their table
and plot."""

from collections.abc import Callable
import dataclasses
import functools
import time
import timeit
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.clip.precision import precision_of
from pomp_jax.files.paths import Path
from pomp_jax.files.terminal import steps_of
from pomp_jax.report import drawing


@dataclasses.dataclass
class Measurement:
  """One implementation at one K: a row of `results.json`.

  `tokens` are those that a step must compute: for `shared` without padding and slack of
  the budget, for the others all 77 positions. `peak_mib` are the peak temporaries of
  the compiled step with all rows together.
  """

  implementation: str
  k: int  # rows of a step
  n_classes: int
  tokens: int
  rows_at_a_time: int  # rows in memory together
  flops: float  # of a step's dense layers, forward and backward through activations
  peak_mib: float | None
  renew: int | None = None  # rows of the bank that a step renews; None without a bank
  bank_mib: float = 0.0  # size of the bank, an argument of the step
  times: list[float] = dataclasses.field(default_factory=list)  # seconds of each step
  # FLOP/s of the products next to it
  rates: list[float] = dataclasses.field(default_factory=list)

  def row(self) -> dict[str, Any]:
    """Returns the figures, medians over the rounds."""
    # Ratios of each round: a machine that slows down does so for both.
    shares = [
      self.flops / t / rate for t, rate in zip(self.times, self.rates, strict=True)
    ]
    others = ("flops", "times", "rates")
    row = {
      name: one for name, one in dataclasses.asdict(self).items() if name not in others
    }
    return row | {
      "seconds": float(np.median(self.times)),
      "share_of_matmul_rate": float(np.median(shares)),
      "matmul_gflops": float(np.median(self.rates)) / 1e9,
      "rounds": len(self.times),
    }


# A step. Called with True, it runs only the part that compiles everything and fills the
# caches.
Step = Callable[[bool], Any]


def measure_in_turn(
  steps: list[tuple[Measurement, Step]], dtype: str, repeats: int, seconds: int
) -> list[dict[str, Any]]:
  """Measures rounds of all steps in turn, each between two large products; prints their
  table.

  After `seconds` no round starts. Returns the rows.
  """
  product, product_flops = _large_product(dtype)
  for _, step in steps_of(steps, "compiling and warming up", "steps"):
    step(True)
  started = time.monotonic()
  for round_index in steps_of(range(repeats), "measuring", "rounds"):
    if round_index and time.monotonic() - started > seconds:
      break
    for measurement, step in steps:
      before = timeit.timeit(product, number=1)
      measurement.times.append(timeit.timeit(functools.partial(step, False), number=1))
      after = timeit.timeit(product, number=1)
      measurement.rates.append(2 * product_flops / (before + after))
  rows = [measurement.row() for measurement, _ in steps]
  print(table(rows), flush=True)
  return rows


def _large_product(name: str) -> tuple[Callable[[], Any], float]:
  """Returns a call of square products that are large for the device, and its FLOPs."""
  dtype, products = precision_of(name)
  size, times = (2048, 4) if jax.default_backend() == "cpu" else (8192, 16)
  left = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
  right = (jax.random.normal(jax.random.key(1), (size, size)) * size**-0.5).astype(
    dtype
  )

  @jax.jit
  def chain(left, right):
    for _ in range(times):
      left = jnp.matmul(left, right, precision=products)
    return left

  call = lambda: jax.block_until_ready(chain(left, right))
  call()
  return call, 2.0 * size**3 * times


_COLUMNS = [
  "implementation",
  "K",
  "N",
  "tokens",
  "seconds",
  "ms / class",
  "of matmul rate",
]
_COLUMNS += ("peak MiB", "time / ours", "peak / ours", "renew", "bank MiB")


def table(rows: list[dict[str, Any]]) -> str:
  """Formats the rows; time and peak relative to `shared`, or to the step without a
  bank."""
  group = lambda row: (
    row["implementation"] == "train_step",
    row["k"],
    row["n_classes"],
  )
  ours = {
    group(row): row
    for row in rows
    if row["implementation"] in ("shared", "train_step") and row["renew"] is None
  }
  shown = lambda value, form: "-" if value is None else format(value, form)
  lines = [_COLUMNS]
  for row in rows:
    mine = ours.get(group(row), {})
    ratios = (
      row[name] / mine[name] if row[name] and mine.get(name) else None
      for name in ("seconds", "peak_mib")
    )
    cells = [str(row[name]) for name in ("implementation", "k", "n_classes", "tokens")]
    cells += [f"{row['seconds']:.3f}", f"{1000 * row['seconds'] / row['k']:.2f}"]
    cells.append(f"{row['share_of_matmul_rate']:.1%}")
    cells.append(shown(row["peak_mib"], ".0f"))
    cells += [*(shown(ratio, ".2f") for ratio in ratios), shown(row["renew"], "d")]
    lines.append([*cells, f"{row['bank_mib']:.0f}"])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = ["  ".join(map(str.rjust, line, widths)) for line in lines]
  rates = np.median([row["matmul_gflops"] for row in rows])
  return "\n".join([*text, f"large matrix product: {rates:.0f} GFLOP/s"])


# Names of implementations in the plot; `config.benchmark.implementations` has the short
# ones.
_LABELS = {
  "shared": "shared prefix, packed names",
  "reference": "HuggingFace Flax, 77 tokens",
}


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
  """Plots seconds and peak temporaries against K."""
  rows = [row for row in rows if row["implementation"] != "train_step"]
  names = dict.fromkeys(row["implementation"] for row in rows)
  n_classes = sorted({row["n_classes"] for row in rows})
  title = "Text tower, forward and backward to the context"
  if n_classes:
    title += f": K of {' or '.join(f'{n:,}' for n in n_classes)} classes"
  figure, both = drawing.panels(2, 3.7, 3.4, title)
  labels = {"seconds": "seconds a step", "peak_mib": "peak temporaries, MiB"}
  for axes, (field, label) in zip(both, labels.items(), strict=True):
    for number, name in enumerate(names):
      mine = [row for row in rows if row["implementation"] == name and row[field]]
      points = sorted((row["k"], row[field]) for row in mine)
      if points:
        style = drawing.style(number)
        axes.plot(*zip(*points, strict=True), label=_LABELS.get(name, name), **style)
    drawing.log_axis(axes, "x", sorted({row["k"] for row in rows}))
    drawing.log_axis(axes, "y")
    drawing.label_panel(axes, "", "K, classes a step", label, grid="both")
    if names:
      axes.legend(frameon=False, fontsize=drawing.TEXT)
  drawing.save(path, figure)
