"""Metrics of a training loop, read without making the device wait, and the check for
bad losses.

Metrics of a step are read while a later window of steps runs: the host never waits for
a number that the device has yet to compute, except where the loop must know it (before
a checkpoint).
"""

from collections.abc import Callable, Iterator
import contextlib
import logging
import math
import os
import pathlib
import time
from typing import Any

import jax

from pomp_jax import hosts
from pomp_jax.errors import RunError
from pomp_jax.evaluate.metrics import Accuracy
from pomp_jax.files.metrics_log import MetricsWriter, Tracker
from pomp_jax.files.terminal import Progress
from pomp_jax.hooks import PROFILER, SHARE_OF_PEAK
from pomp_jax.train.training import Run

log = logging.getLogger(__name__)

_STATM = pathlib.Path("/proc/self/statm")

# A run is input bound when it spends more than _WAIT_RATIO of its time waiting for the
# loader, and more than _STARVED_RATIO of its batches find the device idle.
_WAIT_RATIO = 1 / 3
_STARVED_RATIO = 1 / 2
# Steps that the host starts ahead of the device. One step keeps the device busy, and a
# stop waits for all of them.
_AHEAD = 2
# Weight of a step in the running mean of the loss.
_WEIGHT = 0.05
# Number of steps before any loss counts as a spike.
_STEPS_BEFORE = 20


def memory() -> dict[str, float]:
  """Memory in use and its peak in bytes, of the fullest device of this process.

  If the devices have no statistics (CPUs), returns the memory of the process, and
  nothing if the system has no statistics either.
  """
  statistics = [device.memory_stats() or {} for device in hosts.devices(local=True)]
  names = {
    "bytes_in_use": "device_memory_bytes",
    "peak_bytes_in_use": "device_memory_peak_bytes",
  }
  figures = {}
  for jax_name, name in names.items():
    if all(jax_name in of_device for of_device in statistics):
      fullest = max(of_device[jax_name] for of_device in statistics)
      figures[name] = float(fullest)
  if figures or not _STATM.exists():
    return figures

  n_pages = int(_STATM.read_text().split()[1])
  return {"process_memory_bytes": float(n_pages * os.sysconf("SC_PAGE_SIZE"))}


class TrainingError(RunError, RuntimeError):
  """A training that failed; the message is one line."""


class BadLossError(TrainingError):
  """A loss that is not finite, or a spike, at `step`; one line."""

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


class LossMonitor:
  """Checks the metrics of each step for bad losses.

  Checkpoints hold its `statistics`, so a resumed run decides like one that was never
  stopped.
  """

  def __init__(self, spike: float, statistics: dict[str, Any] | None = None):
    """A loss above `spike` times the running mean is bad; with a `spike` of 0, only a
    loss that is not finite."""
    self._spike = spike
    self.statistics = statistics or {"steps": 0, "loss": 0.0}  # as JSON

  def __call__(self, step: int, metrics: dict[str, Any]) -> None:
    """Checks the metrics of the next step.

    Args:
      step: number of the step.
      metrics: scalars of the step, `loss` among them.

    Raises:
      BadLossError: a metric is not finite, or the loss is a spike.
    """
    for name, value in metrics.items():
      if not math.isfinite(value):
        raise BadLossError(f"{name} is {value} at step {step}", step)

    loss = float(metrics["loss"])
    n_steps = self.statistics["steps"]
    mean = self.statistics["loss"]
    detects_spikes = self._spike > 0 and n_steps >= _STEPS_BEFORE
    if detects_spikes and loss > self._spike * mean:
      raise BadLossError(
        f"loss is {loss:.4g} at step {step}, more than {self._spike:g} times its running mean"
        f" {mean:.4g}",
        step,
      )

    # The plain mean of the first 20 steps, then an exponential one.
    weight = max(1 / (n_steps + 1), _WEIGHT)
    mean += weight * (loss - mean)
    self.statistics = {"steps": n_steps + 1, "loss": mean}


class Watch(contextlib.AbstractContextManager):
  """Reads metrics late, checks them, and writes them as scalars, which
  docs/how-to/watching.md lists.

  Metrics are means over the steps of a window; times and `memory` are each process's.
  The host runs ahead of the device, so a wait for the loader may cost nothing. Only a
  batch that finds the device idle shows that the loader is too slow.
  """

  def __init__(
    self,
    run: Run,
    check: Callable[[int, dict[str, Any]], None],
    *,
    first: int = 0,
    tracker: Tracker | None = None,
  ):
    """Opens the scalars, the progress bar and the profiler of a run.

    Args:
      run: training whose steps are watched.
      check: function that gets each step and its metrics, in order, and may raise
        BadLossError.
      first: number of steps that are done already.
      tracker: record in an experiment tracker, if there is one.
    """
    self._run = run
    self._check = check
    self._opened = contextlib.ExitStack()

    # Only process 0 writes.
    self._metrics: MetricsWriter | None = None
    if hosts.is_first():
      metrics = MetricsWriter(run.folder.path, first + 1, tracker)
      self._metrics = self._opened.enter_context(metrics)
    progress = Progress(run.total_steps, first, "step")
    self._progress = self._opened.enter_context(progress)

    self._profile = None
    if PROFILER:
      self._profile = PROFILER.open()(run.loop, run.folder.path / "profile", first)
    if self._profile is not None:
      self._opened.callback(self._profile.close)

    self._share_of_peak: Callable[[float], dict[str, float]] = lambda seconds: {}
    if SHARE_OF_PEAK and self._metrics is not None:
      self._share_of_peak = SHARE_OF_PEAK.open()(run)

    self._pending: list[tuple[int, dict[str, Any]]] = []  # steps that are not read yet
    self._done_step = first  # last step that the device had done at the last timing
    self._warned = False
    self._own: dict[str, float] = {}  # this process's times and memory
    self.restart()

  def restart(self) -> None:
    """Starts to time the steps, and the waits for the loader, anew."""
    self._start = time.monotonic()
    self._waited = 0.0  # s
    self._batches = 0
    self._starved = 0  # batches that found the device idle

  def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
    """Passes the batches through and times the wait for each."""
    start = time.monotonic()
    for batch in batches:
      self._waited += time.monotonic() - start
      self._batches += 1
      # If no step is pending, the device idles because the loop has waited for it.
      if self._pending and _is_done(self._pending[-1][1]):
        self._starved += 1
      yield batch
      start = time.monotonic()

  def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step that was started; reads those of the previous
    window."""
    self._pending.append((step, metrics))
    if len(self._pending) > _AHEAD:
      jax.block_until_ready(self._pending[-1 - _AHEAD][1])
    if self._profile is not None:
      self._profile.after(step, metrics)
    every = self._run.log_every
    if step % every == 0 and len(self._pending) > every:
      self._read(len(self._pending) - every)

  def flush(self) -> None:
    """Reads all pending metrics, which waits for the device."""
    self._read(len(self._pending))

  def validated(self, step: int, accuracy: Accuracy | None) -> None:
    """Writes an accuracy, if any; sends all scalars to the bucket of the run's
    folder, if any."""
    if self._metrics is not None:
      if accuracy is not None:
        names = ("top1", "macro_top1")
        self._metrics.write(
          step, **{f"validation_{name}": accuracy[name] for name in names}
        )
      self._metrics.upload()

  def __exit__(self, *exception: object) -> None:
    self._opened.close()

  def _read(self, count: int) -> None:
    """Reads the metrics of the oldest `count` pending steps, a window; checks and
    writes them.

    Raises:
      BadLossError: a loss of the window is bad.
    """
    window = self._pending[:count]
    self._pending = self._pending[count:]
    if not window:
      return

    # Waits for the device.
    values = jax.device_get([metrics for _, metrics in window])
    for (step, _), metrics in zip(window, values, strict=True):
      self._check(step, metrics)
    last_step = window[-1][0]
    scalars = {}
    for name in values[0]:
      scalars[name] = sum(float(metrics[name]) for metrics in values) / len(values)
    # Step s takes the rate of the schedule's count s - 1, which starts at 0.
    scalars["learning_rate"] = float(self._run.rate(last_step - 1))

    self._time_steps(last_step)  # fills self._own
    images_per_second = self._run.loop.batch_size / self._own["step_seconds"]
    own_rate = images_per_second / jax.process_count()
    hosts.post("watch", self._own | {"images_per_second": own_rate})
    if self._metrics is None:
      return

    scalars["images_per_second"] = images_per_second
    scalars |= self._own
    scalars |= self._share_of_peak(self._own["step_seconds"])
    figures_of_processes = hosts.posted("watch")  # the latest figures of each process
    if len(figures_of_processes) > 1:
      for process, figures in figures_of_processes.items():
        for name, value in figures.items():
          scalars[f"process_{process}/{name}"] = value
    self._metrics.write(last_step, **scalars)

    figures_of_bar = {
      "loss": scalars["loss"],
      "accuracy": f"{100 * scalars['accuracy']:.1f}%",
      "data wait": f"{100 * self._own['data_wait_ratio']:.0f}%",
    }
    self._progress.update(last_step, **figures_of_bar)

  def _time_steps(self, step: int) -> None:
    """Times the steps that the device has done since the last call.

    Args:
      step: last step whose metrics were read; later ones may be done as well.
    """
    n_later = sum(_is_done(metrics) for _, metrics in self._pending)
    done_step = step + n_later
    n_steps = done_step - self._done_step
    if n_steps <= 0:
      return  # keep the latest times

    elapsed = max(time.monotonic() - self._start, 1e-9)
    self._own = {
      "step_seconds": elapsed / n_steps,
      "data_wait_ratio": self._waited / elapsed,
      "starved_ratio": self._starved / max(self._batches, 1),
      **memory(),
    }
    self._done_step = done_step
    self.restart()
    self._warn_if_input_bound(step)

  def _warn_if_input_bound(self, step: int) -> None:
    """Warns if the devices wait for the loader, once for each `Watch`."""
    if self._warned:
      return
    wait = self._own["data_wait_ratio"]
    starved = self._own["starved_ratio"]
    if wait <= _WAIT_RATIO or starved <= _STARVED_RATIO:
      return
    self._warned = True
    threads, workers = self._run.readers
    log.warning(
      "input_bound=true step=%d process=%d data_wait_ratio=%.2f starved_ratio=%.2f: the devices"
      " wait for images; more config.data.threads (now %d) or config.data.workers (now %d) use more"
      " of the %d cores, config.data.features='stored' (now %r) computes features once",
      step,
      jax.process_index(),
      wait,
      starved,
      threads,
      workers,
      hosts.own_cores(),
      self._run.data.features,
    )


def _is_done(metrics: dict[str, Any]) -> bool:
  """Whether the device has computed the metrics of a step."""
  return all(leaf.is_ready() for leaf in metrics.values())
