"""Metrics of a training loop, read without making the device wait, and the losses that are bad.

Metrics of a step are read while a later window of steps runs: the host never waits for a number
that the device has yet to compute, except where the loop must know it (before a checkpoint).
"""

from collections.abc import Callable, Iterator
import contextlib
import logging
import math
from typing import Any

import jax
import optax

from pomp_jax import hosts
from pomp_jax.config import Settings
from pomp_jax.errors import RunError
from pomp_jax.files.metrics_log import MetricsWriter
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.files.terminal import Progress
from pomp_jax.files.tracker import Tracker
from pomp_jax.train.batches import input_remedy
from pomp_jax.train.meter import Meter, Trace, memory

log = logging.getLogger(__name__)

# A run is input bound when it spends more than this fraction of its time waiting for the loader,
# and more than that fraction of its batches find the device idle.
_WAIT_RATIO, _STARVED_RATIO = 1 / 3, 1 / 2
# Steps that the host starts ahead of the device. One keeps it busy; a run that is asked to stop
# waits for all of them.
_AHEAD = 2
# Weight of a step in the running mean loss, and the steps before which no loss counts as a spike.
_WEIGHT, _STEPS_BEFORE = 0.05, 20


class TrainingError(RunError, RuntimeError):
  """A training that failed; the message is one line."""


class BadLossError(TrainingError):
  """A loss that is not finite, or a spike, at `step`; one line."""

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


class LossMonitor:
  """Checks the metrics of each step for bad losses.

  Checkpoints hold its `statistics`, so a resumed run decides like one that was never stopped.
  """

  def __init__(self, spike: float, statistics: dict[str, Any] | None = None):
    """Starts from nothing, or from the statistics of a previous monitor.

    A loss is a spike from `spike` times the running mean on (a step weighs 1/20); with 0, only
    losses that are not finite are bad.
    """
    self._spike = spike
    self._statistics = statistics or {"steps": 0, "loss": 0.0}

  @property
  def statistics(self) -> dict[str, Any]:
    """State of the monitor, as JSON."""
    return dict(self._statistics)

  def __call__(self, step: int, metrics: dict[str, Any]) -> None:
    """Checks the scalars of the next step, `loss` among them; BadLossError if one is bad."""
    for name, value in metrics.items():
      if not math.isfinite(value):
        raise BadLossError(f"{name} is {value} at step {step}", step)
    loss = float(metrics["loss"])
    steps, mean = self._statistics["steps"], self._statistics["loss"]
    if self._spike and steps >= _STEPS_BEFORE and loss > self._spike * mean:
      raise BadLossError(
        f"loss is {loss:.4g} at step {step}, more than {self._spike:g} times its running mean"
        f" {mean:.4g}",
        step,
      )
    # A plain mean of the first steps, until the weight of a step would be below 1/20.
    mean += max(1 / (steps + 1), _WEIGHT) * (loss - mean)
    self._statistics = {"steps": steps + 1, "loss": mean}


class Watch(contextlib.AbstractContextManager):
  """Reads metrics late, checks them, and writes them as scalars.

  Scalars: `loss`, `accuracy`, `grad_norm`, `param_norm`, `learning_rate`, `images_per_second`,
  means over the steps of a window, and the figures of `Meter` and `memory` of this process. With
  several processes also `process_2/images_per_second` and so on, as each posted them last.
  docs/watching.md lists them all.
  """

  def __init__(
    self,
    config: Settings,
    folder: RunFolder,
    check: Callable[[int, dict[str, Any]], None],
    *,
    first: int,
    total: int,
    rate: optax.Schedule,
    tracker: Tracker | None = None,
  ):
    """Opens the scalars and the progress bar.

    Args:
      config: settings of the run.
      folder: folder of the run.
      check: function of each step and its metrics, called in order; may raise BadLossError.
      first: steps done before this start.
      total: steps of the whole run.
      rate: learning-rate schedule.
      tracker: tracker that gets the scalars too.
    """
    self._config, self._check, self._rate = config, check, rate
    self._metrics = MetricsWriter(folder.path, first + 1, tracker) if hosts.is_first() else None
    self._progress = Progress(total, first, "step")
    self._trace = Trace(folder.path / "profile", config.profile_steps or None, first)
    self._pending: list[tuple[int, dict]] = []
    self._done_step = first
    self._meter, self._own, self._warned = Meter(), {}, False

  def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
    """Passes the batches through and measures the time that the loop waits for them."""
    return self._meter.timed(batches, self._device_is_idle)

  def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step that was started; reads those of the previous window."""
    self._pending.append((step, metrics))
    if len(self._pending) > _AHEAD:
      jax.block_until_ready(self._pending[-1 - _AHEAD][1])
    self._trace.after(step, metrics)
    every = self._config.log.every
    if step % every == 0 and len(self._pending) > every:
      self._read(len(self._pending) - every)

  def flush(self) -> None:
    """Reads all pending metrics, which waits for the device."""
    self._read(len(self._pending))

  def restart_clock(self) -> None:
    """Excludes the time since the last step (a validation, a save) from the step time."""
    self._meter.restart()

  def upload(self) -> None:
    """Sends what is written so far to the bucket, if the run's folder is in one."""
    if self._metrics is not None:
      self._metrics.upload()

  def scalar(self, name: str, value: float, step: int) -> None:
    """Writes one more scalar."""
    if self._metrics is not None:
      self._metrics.write(step, **{name: value})

  def __exit__(self, *exception: object) -> None:
    self._trace.__exit__(*exception)
    self._progress.close()
    if self._metrics is not None:
      self._metrics.close()

  def _device_is_idle(self) -> bool:
    # With nothing pending, the loop itself has waited for the device.
    return bool(self._pending) and _is_done(self._pending[-1][1])

  def _read(self, count: int) -> None:
    window, self._pending = self._pending[:count], self._pending[count:]
    if not window:
      return
    values = jax.device_get([metrics for _, metrics in window])
    for (step, _), found in zip(window, values, strict=True):
      self._check(step, found)
    step = window[-1][0]
    means = {name: sum(float(v[name]) for v in values) / len(values) for name in values[0]}
    means["learning_rate"] = float(self._rate(step - 1))
    self._measure(step)
    means["images_per_second"] = self._config.batch_size / self._own["step_seconds"]
    self._write(step, means, self._own)

  def _measure(self, step: int) -> None:
    """Measures the time since the last call; all steps up to `step` are done."""
    # Some later steps are done as well.
    done = step + sum(_is_done(metrics) for _, metrics in self._pending)
    if done > self._done_step:
      self._own = self._meter.measure(done - self._done_step) | memory()
      self._done_step = done
      self._warn_if_input_bound(self._own, step)

  def _write(self, step: int, means: dict[str, float], own: dict[str, float]) -> None:
    """Writes scalars and progress, with the latest posts of the other processes."""
    figures = own | {"images_per_second": means["images_per_second"] / jax.process_count()}
    hosts.post("watch", figures)
    if self._metrics is None:
      return
    processes = hosts.posted("watch")
    scalars = means | own
    if len(processes) > 1:
      for process, found in processes.items():
        scalars |= {f"process_{process}/{name}": value for name, value in found.items()}
    self._metrics.write(step, **scalars)
    self._progress.update(
      step,
      {"data wait": f"{100 * own['data_wait_ratio']:.0f}%"},
      loss=means["loss"],
      accuracy=f"{100 * means['accuracy']:.1f}%",
    )

  def _warn_if_input_bound(self, own: dict[str, float], step: int) -> None:
    wait, starved = own["data_wait_ratio"], own["starved_ratio"]
    if self._warned or wait <= _WAIT_RATIO or starved <= _STARVED_RATIO:
      return
    self._warned = True
    log.warning(
      "input_bound=true step=%d process=%d data_wait_ratio=%.2f starved_ratio=%.2f: the devices"
      " wait for images; %s",
      *(step, jax.process_index(), wait, starved, input_remedy(self._config)),
    )


def _is_done(metrics: dict[str, jax.Array]) -> bool:
  return all(leaf.is_ready() for leaf in metrics.values())
