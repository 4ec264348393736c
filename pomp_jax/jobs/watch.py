"""Watching a training loop without making the device wait.

Metrics of a step are read when a later window of steps is under way: the host never asks for a
number that the device has yet to compute, except where the loop must know (before a checkpoint).
"""

import contextlib
import math
import time

import jax
import optax

from pomp_jax.files.progress import Progress
from pomp_jax.files.run_folder import RunFolder


class TrainingError(RuntimeError):
  """Training that can't go on; the message is one line."""


class Watch(contextlib.AbstractContextManager):
  """Reads metrics late, writes them as TensorBoard scalars, and stops at a loss that is not finite.

  Scalars: `loss`, `accuracy`, `grad_norm`, `context_norm`, `learning_rate`, `images_per_second`,
  means over the steps of a window.
  """

  def __init__(
    self,
    folder: RunFolder,
    total: int,
    first: int,
    every: int,
    batch_size: int,
    rate: optax.Schedule,
  ):
    """Opens the events and the progress bar.

    Args:
      folder: of the run.
      total: steps of the whole run.
      first: steps done before this start.
      every: steps of a window.
      batch_size: images a step.
      rate: the learning-rate schedule, for the log.
    """
    writes = jax.process_index() == 0
    self._folder, self._every, self._batch_size, self._rate = folder, every, batch_size, rate
    self._events = folder.events(first + 1) if writes else None
    self._progress = Progress(total, first, "pre-training", quiet=not writes)
    self._pending: list[tuple[int, dict]] = []
    self._read_step, self._read_time = first, time.monotonic()

  def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step that was started; reads those of the window before.

    Raises:
      TrainingError: a metric is not finite; the line names the step.
    """
    self._pending.append((step, metrics))
    if step % self._every == 0 and len(self._pending) > self._every:
      self._read(len(self._pending) - self._every)

  def flush(self) -> None:
    """Reads all that is pending: waits for the device.

    Raises:
      TrainingError: a metric is not finite.
    """
    self._read(len(self._pending))

  def scalar(self, name: str, value: float, step: int) -> None:
    """Writes one more scalar."""
    if self._events is not None:
      self._events.write(step, **{name: value})

  def __exit__(self, *exception: object) -> None:
    self._progress.close()
    if self._events is not None:
      self._events.close()

  def _read(self, count: int) -> None:
    window, self._pending = self._pending[:count], self._pending[count:]
    if not window:
      return
    values = jax.device_get([metrics for _, metrics in window])
    for (step, _), found in zip(window, values, strict=True):
      for name, value in found.items():
        if not math.isfinite(value):
          raise TrainingError(
            f"{name} is {value} at step {step}: training stops. The last good checkpoint stays in"
            f" {self._folder.checkpoints}; a lower config.optim.lr is the usual remedy"
          )
    step, now = window[-1][0], time.monotonic()
    means = {name: sum(float(v[name]) for v in values) / len(values) for name in values[0]}
    means["learning_rate"] = float(self._rate(step - 1))
    elapsed = max(now - self._read_time, 1e-9)
    means["images_per_second"] = (step - self._read_step) * self._batch_size / elapsed
    self._read_step, self._read_time = step, now
    if self._events is not None:
      self._events.write(step, **means)
    self._progress.update(step, loss=means["loss"], accuracy=means["accuracy"])
