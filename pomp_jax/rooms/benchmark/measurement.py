"""Measures steps in turn, beside a large matrix product, and draws table and plot."""

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

  `tokens` is the number of tokens that a step must compute, without padding and the
  slack of the token budget. For `reference` and for bidirectional towers it counts all
  positions of each row. `peak_mib` is the size of the peak temporaries of a step
  compiled for all rows together.
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
  # FLOP/s of the large products before and after each step
  rates: list[float] = dataclasses.field(default_factory=list)

  def row(self) -> dict[str, Any]:
    """Returns the figures, medians over the rounds."""
    # Divide within each round: the step and the matrix product that it is compared with
    # are then equally slow if the machine slows down.
    rounds = zip(self.times, self.rates, strict=True)
    shares = [self.flops / seconds / rate for seconds, rate in rounds]
    row = dataclasses.asdict(self)
    for name in ("flops", "times", "rates"):
      del row[name]
    return row | {
      "seconds": float(np.median(self.times)),
      "share_of_matmul_rate": float(np.median(shares)),
      "matmul_gflops": float(np.median(self.rates)) / 1e9,
      "rounds": len(self.times),
    }


_LONGEST = 300  # seconds after which no round starts
# A step. Called with True it warms up: it runs only the part that compiles everything
# and fills the caches.
Step = Callable[[bool], Any]


def measure_in_turn(
  steps: list[tuple[Measurement, Step]], dtype: str, repeats: int
) -> list[dict[str, Any]]:
  """Measures all steps in turn, each between two large products, and prints a table.

  The products show how fast the machine is at that moment. A step's share of the
  products' rate is comparable even if the speed of the machine varies.

  Args:
    steps: steps with the measurements to fill in.
    dtype: compute type of the products, `config.benchmark.dtype`.
    repeats: number of rounds; every step runs once in a round. The first round always
      runs; no round starts after _LONGEST seconds.

  Returns:
    Rows of `results.json`, in the order of `steps`.
  """
  product, product_flops = _large_product(dtype)
  for _, step in steps_of(steps, "compiling and warming up", "steps"):
    step(True)

  start = time.monotonic()
  for round_index in steps_of(range(repeats), "measuring", "rounds"):
    if round_index > 0 and time.monotonic() - start > _LONGEST:
      break
    for measurement, step in steps:
      seconds_before = timeit.timeit(product, number=1)
      seconds_of_step = timeit.timeit(functools.partial(step, False), number=1)
      seconds_after = timeit.timeit(product, number=1)
      rate = 2 * product_flops / (seconds_before + seconds_after)
      measurement.times.append(seconds_of_step)
      measurement.rates.append(rate)

  rows = [measurement.row() for measurement, _ in steps]
  print(table(rows), flush=True)
  return rows


def _large_product(name: str) -> tuple[Callable[[], Any], float]:
  """Returns a call of square products that are large for the device, and its FLOP."""
  dtype, precision = precision_of(name)
  if jax.default_backend() == "cpu":
    size = 2048
    n_products = 4
  else:
    size = 8192
    n_products = 16
  left = jax.random.normal(jax.random.key(0), (size, size))
  # Products with this matrix preserve the variance, so that the chain stays finite.
  right = jax.random.normal(jax.random.key(1), (size, size)) * size**-0.5
  factors = left.astype(dtype), right.astype(dtype)

  @jax.jit
  def chain(left: jax.Array, right: jax.Array) -> jax.Array:
    for _ in range(n_products):
      left = jnp.matmul(left, right, precision=precision)
    return left

  call = lambda: jax.block_until_ready(chain(*factors))
  call()
  return call, 2.0 * size**3 * n_products


_COLUMNS = [
  "implementation",
  "K",
  "N",
  "tokens",
  "seconds",
  "ms / class",
  "of matmul rate",
  "peak MiB",
  "time / ours",
  "peak / ours",
  "renew",
  "bank MiB",
]


def table(rows: list[dict[str, Any]]) -> str:
  """Formats the rows beside the rate of the large product.

  Time and peak are relative to the row of `shared`, or of the step without a bank, that
  has the same K and number of classes.
  """
  yardsticks = {}
  for row in rows:
    is_ours = row["implementation"] in ("shared", "train_step")
    if is_ours and row["renew"] is None:
      yardsticks[_group(row)] = row
  lines = [_COLUMNS]
  for row in rows:
    ours = yardsticks.get(_group(row), {})
    lines.append(
      [
        row["implementation"],
        str(row["k"]),
        str(row["n_classes"]),
        str(row["tokens"]),
        f"{row['seconds']:.3f}",
        f"{1000 * row['seconds'] / row['k']:.2f}",
        f"{row['share_of_matmul_rate']:.1%}",
        _cell(row["peak_mib"], ".0f"),
        _cell(_ratio(row, ours, "seconds"), ".2f"),
        _cell(_ratio(row, ours, "peak_mib"), ".2f"),
        _cell(row["renew"], "d"),
        f"{row['bank_mib']:.0f}",
      ]
    )
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = ["  ".join(map(str.rjust, line, widths)) for line in lines]
  rate = np.median([row["matmul_gflops"] for row in rows])
  return "\n".join([*text, f"large matrix product: {rate:.0f} GFLOP/s"])


def _group(row: dict[str, Any]) -> tuple[bool, int, int]:
  """What two rows must share for their times to be compared."""
  return row["implementation"] == "train_step", row["k"], row["n_classes"]


def _ratio(row: dict[str, Any], ours: dict[str, Any], figure: str) -> float | None:
  """A row's figure divided by the figure of `ours`; None if either is missing."""
  if not row[figure] or not ours.get(figure):
    return None
  return row[figure] / ours[figure]


def _cell(value: float | int | None, form: str) -> str:
  return "-" if value is None else format(value, form)


# Names in the plot, by the names in `config.benchmark.implementations`.
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
    numbers = " or ".join(f"{n:,}" for n in n_classes)
    title += f": K of {numbers} classes"
  figure, panels = drawing.panels(2, 3.7, 3.4, title)
  labels = {"seconds": "seconds a step", "peak_mib": "peak temporaries, MiB"}
  for axes, (field, label) in zip(panels, labels.items(), strict=True):
    for number, name in enumerate(names):
      points = sorted(
        (row["k"], row[field])
        for row in rows
        if row["implementation"] == name and row[field]
      )
      if points:
        ks, values = zip(*points, strict=True)
        style = drawing.style(number)
        axes.plot(ks, values, label=_LABELS.get(name, name), **style)
    drawing.log_axis(axes, "x", sorted({row["k"] for row in rows}))
    drawing.log_axis(axes, "y")
    drawing.label_panel(axes, "", "K, classes a step", label, grid="both")
    if names:
      axes.legend(frameon=False, fontsize=drawing.TEXT)
  drawing.save(path, figure)
