"""What a benchmark asks for, what it measures, and the yardstick: a large matrix product."""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import multiprocessing
import pathlib
import re
import resource
import signal
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax import hosts
from pomp_jax.clip.precision import precision_of
from pomp_jax.config.fields import Benchmark
from pomp_jax.errors import InputError
from pomp_jax.files.progress import steps_of


class BenchmarkError(InputError, ValueError):
  """A benchmark that cannot be run as asked; the message is one line."""


class ProcessError(RuntimeError):
  """A process that ended without an answer; the message is one line."""


def numbers(field: str, text: str, size: int = 1) -> list[tuple[int, ...]]:
  """Integers separated by "+", or pairs K/N of them.

  Args:
    field: name of the field in `config.benchmark`, for the error.
    text: its value.
    size: integers of a part, 1 or 2.

  Raises:
    BenchmarkError: something else.
  """
  parts = [part.split("/") for part in text.split("+") if part]
  if not all(len(part) == size and all(map(_is_positive, part)) for part in parts):
    expected = (
      "pairs K/N, such as 128/21841+128/1000000" if size == 2 else "integers, such as 128+1000"
    )
    raise BenchmarkError(f"config.benchmark.{field}: got {text!r}, expected positive {expected}")
  return [tuple(map(int, part)) for part in parts]


def _is_positive(text: str) -> bool:
  return text.isdecimal() and int(text) > 0


@dataclasses.dataclass
class Measurement:
  """One implementation at one K; the row of `results.json`.

  Attributes:
    implementation: its name.
    k: rows of a step.
    n_classes: that there are.
    tokens: tokens that a step must compute, padding and slack of the budget not counted for
      `shared`; all 77 positions for the others.
    rows_at_a_time: rows in memory together.
    flops: of a step's dense layers, forward and backward through activations.
    peak_mib: peak temporaries, MiB: of the compiled step, with all rows together; of torch, what
      the process grew by, with `rows_at_a_time` rows together.
    process_peak_mib: peak resident memory of a process that does nothing else (`rows_at_a_time`
      rows together), MiB; None where the step runs on an accelerator.
    times: seconds of each step.
    rates: FLOP/s of the large product beside it.
  """

  implementation: str
  k: int
  n_classes: int
  tokens: int
  rows_at_a_time: int
  flops: float
  peak_mib: float | None
  process_peak_mib: float | None = None
  times: list[float] = dataclasses.field(default_factory=list)
  rates: list[float] = dataclasses.field(default_factory=list)

  def row(self) -> dict[str, Any]:
    """The figures, medians over the rounds."""
    # The ratio of each round: a machine that slows down does so for both.
    shares = [self.flops / t / rate for t, rate in zip(self.times, self.rates, strict=True)]
    return {
      "implementation": self.implementation,
      "k": self.k,
      "n_classes": self.n_classes,
      "seconds": float(np.median(self.times)),
      "tokens": self.tokens,
      "peak_mib": self.peak_mib,
      "process_peak_mib": self.process_peak_mib,
      "share_of_matmul_rate": float(np.median(shares)),
      "matmul_gflops": float(np.median(self.rates)) / 1e9,
      "rows_at_a_time": self.rows_at_a_time,
      "rounds": len(self.times),
    }


# A step; with True, as much of it as compiles everything and fills the caches.
Step = Callable[[bool], Any]


def measure_in_turn(
  steps: list[tuple[Measurement, Step]], settings: Benchmark
) -> list[dict[str, Any]]:
  """Rounds of all steps in turn, each between two large products; returns the rows."""
  product, product_flops = _large_product(settings.dtype)
  for _, step in steps_of(steps, "compiling and warming up", "steps"):
    step(True)
  started = time.monotonic()
  for round_index in steps_of(range(settings.repeats), "measuring", "rounds"):
    if round_index and time.monotonic() - started > settings.seconds:
      break
    for measurement, step in steps:
      before = _seconds(product)
      measurement.times.append(_seconds(lambda step=step: step(False)))
      after = _seconds(product)
      measurement.rates.append(2 * product_flops / (before + after))
  rows = [measurement.row() for measurement, _ in steps]
  for row in rows:
    print(
      f"K = {row['k']}, N = {row['n_classes']}: {row['implementation']} {row['seconds']:.3f} s,"
      f" {row['share_of_matmul_rate']:.1%} of {row['matmul_gflops']:.0f} GFLOP/s",
      flush=True,
    )
  return rows


def _seconds(function: Callable[[], Any]) -> float:
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def _large_product(name: str) -> tuple[Callable[[], Any], float]:
  """A square product, large for the device: a call, and its FLOPs."""
  dtype, products = precision_of(name)
  size, times = (2048, 4) if jax.default_backend() == "cpu" else (8192, 16)
  left = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
  right = (jax.random.normal(jax.random.key(1), (size, size)) * size**-0.5).astype(dtype)

  @jax.jit
  def chain(left, right):
    for _ in range(times):
      left = jnp.matmul(left, right, precision=products)
    return left

  def call():
    return jax.block_until_ready(chain(left, right))

  call()
  return call, 2.0 * size**3 * times


def peak_mib() -> float:
  """The most memory that this process has held, MiB."""
  # `ru_maxrss` is inherited: of a process started by a larger one it tells that one's size.
  status = pathlib.Path("/proc/self/status")
  with contextlib.suppress(OSError):
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
    if found:
      return int(found[1]) / 2**10
  unit = 1 if sys.platform == "darwin" else 2**10
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
  """Calls it in a new process, whose peak memory is nobody else's.

  What ends the wait ends that process too: by SIGTERM, so that a training saves.

  Raises:
    ProcessError: it ended without an answer.
    Preempted: it was asked to stop.
    Exception: whatever the function raises.
  """
  context = multiprocessing.get_context("spawn")
  receiver, sender = context.Pipe(duplex=False)
  process = context.Process(target=_answer, args=(sender, function, arguments))
  process.start()
  sender.close()
  try:
    succeeded, answer = receiver.recv()
  except EOFError:
    process.join()
    if process.exitcode == -signal.SIGTERM:
      raise hosts.Preempted("asked to stop; the same command goes on") from None
    raise ProcessError(f"its process ended with status {process.exitcode}") from None
  except BaseException:
    process.terminate()
    raise
  finally:
    process.join()
  if not succeeded:
    raise answer
  return answer


def _answer(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
  try:
    answer = True, function(*arguments)
  except (Exception, hosts.Preempted) as error:
    answer = False, error
  sender.send(answer)


def write_results(folder: pathlib.Path, settings: Benchmark, rows: list[dict[str, Any]]) -> dict:
  """Writes `results.json`; returns what it holds."""
  results = {
    "job": "benchmark",
    "settings": dataclasses.asdict(settings),
    "device": jax.devices()[0].device_kind,
    "rows": rows,
  }
  (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
  return results
