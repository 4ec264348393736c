"""Watching a training loop without making the device wait.

Metrics of a step are read when a later window of steps is under way: the host never asks for a
number that the device has yet to compute, except where the loop must know (before a checkpoint).
"""

from collections.abc import Callable
import contextlib
import time
from typing import Any

import jax
import optax

from pomp_jax.files.progress import Progress
from pomp_jax.files.run_folder import RunFolder

# Steps that the host starts ahead of the device: one is enough to keep it busy. With more, a run
# that is asked to stop would have them all to wait for.
_AHEAD = 2


class TrainingError(RuntimeError):
  """Training that can't go on; the message is one line."""


class Watch(contextlib.AbstractContextManager):
  """Reads metrics late, has them judged, and writes them as TensorBoard scalars.

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
    judge: Callable[[int, dict[str, Any]], None],
  ):
    """Opens the events and the progress bar.

    Args:
      folder: of the run.
      total: steps of the whole run.
      first: steps done before this start.
      every: steps of a window.
      batch_size: images a step.
      rate: the learning-rate schedule, for the log.
      judge: of the metrics of each step, in order; raises what it finds.
    """
    self._judge = judge
    writes = jax.process_index() == 0
    self._folder, self._every, self._batch_size, self._rate = folder, every, batch_size, rate
    self._events = folder.events(first + 1) if writes else None
    self._progress = Progress(total, first, "pre-training", quiet=not writes)
    self._pending: list[tuple[int, dict]] = []
    self._read_step, self._read_time = first, time.monotonic()

  def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step that was started; reads those of the window before.

    Raises:
      BadLossError: what the judge found.
    """
    self._pending.append((step, metrics))
    if len(self._pending) > _AHEAD:
      jax.block_until_ready(self._pending[-1 - _AHEAD][1])
    if step % self._every == 0 and len(self._pending) > self._every:
      self._read(len(self._pending) - self._every)

  def flush(self) -> None:
    """Reads all that is pending: waits for the device.

    Raises:
      BadLossError: what the judge found.
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
      self._judge(step, found)
    step, now = window[-1][0], time.monotonic()
    means = {name: sum(float(v[name]) for v in values) / len(values) for name in values[0]}
    means["learning_rate"] = float(self._rate(step - 1))
    elapsed = max(now - self._read_time, 1e-9)
    means["images_per_second"] = (step - self._read_step) * self._batch_size / elapsed
    self._read_step, self._read_time = step, now
    if self._events is not None:
      self._events.write(step, **means)
    self._progress.update(step, loss=means["loss"], accuracy=means["accuracy"])
