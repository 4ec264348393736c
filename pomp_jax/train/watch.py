"""Watching a training loop without making the device wait.

Metrics of a step are read when a later window of steps is under way: the host never asks for a
number that the device has yet to compute, except where the loop must know (before a checkpoint).
"""

from collections.abc import Callable, Iterator
import contextlib
import logging
from typing import Any

import jax
import optax

from pomp_jax import hosts
from pomp_jax.errors import RunError
from pomp_jax.files.progress import Progress
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train.meter import Meter, memory
from pomp_jax.train.profile import Trace
from pomp_jax.train.prometheus import Endpoint, exposition

log = logging.getLogger(__name__)

# A run is bound by its input when so much of its time goes to waiting for the loader, and so many
# of the batches come after the device has run dry.
_WAIT_RATIO, _STARVED_RATIO = 1 / 3, 1 / 2

# Steps that the host starts ahead of the device: one is enough to keep it busy. With more, a run
# that is asked to stop would have them all to wait for.
_AHEAD = 2


class TrainingError(RunError, RuntimeError):
  """Training that can't go on; the message is one line."""


class Watch(contextlib.AbstractContextManager):
  """Reads metrics late, has them judged, and writes them as TensorBoard scalars.

  Scalars: `loss`, `accuracy`, `grad_norm`, `context_norm`, `learning_rate`, `images_per_second`,
  means over the steps of a window, and what `Meter` and `memory` say of this process; with several
  processes `process_2/images_per_second` and so on for each, as it said last: none waits for
  another. docs/watching.md has them all.
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
    *,
    profiled: tuple[int, int] | None = None,
    port: int = 0,
    host: str = "127.0.0.1",
    remedy: str = "",
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
      profiled: the first and the last step of a profile, which goes to the run's folder.
      port: where process 0 answers Prometheus; 0: nowhere.
      host: the address there.
      remedy: what a run that is bound by its input can do; see `batches.input_remedy`.
    """
    self._judge = judge
    writes = hosts.is_first()
    self._folder, self._every, self._batch_size, self._rate = folder, every, batch_size, rate
    self._total = total
    self._events = folder.events(first + 1) if writes else None
    self._progress = Progress(total, first, "pre-training", quiet=not writes)
    self._endpoint = _endpoint(host, port) if writes and port else None
    self._trace = Trace(folder, profiled, first)
    self._pending: list[tuple[int, dict]] = []
    self._done_step = first
    self._meter, self._own = Meter(), {}
    self._warned, self._remedy = False, remedy

  def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; the time that the loop waits for them is counted."""
    return self._meter.timed(batches, self._device_is_dry)

  def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step that was started; reads those of the window before.

    Raises:
      BadLossError: what the judge found.
    """
    self._pending.append((step, metrics))
    if len(self._pending) > _AHEAD:
      jax.block_until_ready(self._pending[-1 - _AHEAD][1])
    self._trace.after(step, metrics)
    if step % self._every == 0 and len(self._pending) > self._every:
      self._read(len(self._pending) - self._every)

  def flush(self) -> None:
    """Reads all that is pending: waits for the device.

    Raises:
      BadLossError: what the judge found.
    """
    self._read(len(self._pending))

  def resume(self) -> None:
    """Tells that steps go on after something else, which is not to count as their time."""
    self._meter.restart()

  def scalar(self, name: str, value: float, step: int) -> None:
    """Writes one more scalar."""
    if self._events is not None:
      self._events.write(step, **{name: value})

  def __exit__(self, *exception: object) -> None:
    self._trace.__exit__(*exception)
    self._progress.close()
    if self._endpoint is not None:
      self._endpoint.__exit__(*exception)
    if self._events is not None:
      self._events.close()

  def _device_is_dry(self) -> bool:
    # With nothing pending the loop itself has waited for the device.
    return bool(self._pending) and _is_done(self._pending[-1][1])

  def _read(self, count: int) -> None:
    window, self._pending = self._pending[:count], self._pending[count:]
    if not window:
      return
    values = jax.device_get([metrics for _, metrics in window])
    for (step, _), found in zip(window, values, strict=True):
      self._judge(step, found)
    step = window[-1][0]
    means = {name: sum(float(v[name]) for v in values) / len(values) for name in values[0]}
    means["learning_rate"] = float(self._rate(step - 1))
    self._measure(step)
    means["images_per_second"] = self._batch_size / self._own["step_seconds"]
    self._tell(step, means, self._own)

  def _measure(self, step: int) -> None:
    """Figures of the time since the last look; `step` and those before it are done."""
    # Of those behind it some are done as well, and some of them were at the last look.
    done = step + sum(_is_done(metrics) for _, metrics in self._pending)
    if done > self._done_step:
      self._own = self._meter.look(done - self._done_step) | memory()
      self._done_step = done
      self._warn_if_input_bound(self._own, step)

  def _tell(self, step: int, means: dict[str, float], own: dict[str, float]) -> None:
    """Events, progress and the endpoint; of the other processes what they said last."""
    figures = own | {"images_per_second": means["images_per_second"] / jax.process_count()}
    hosts.post("watch", figures)
    if self._events is None:
      return
    processes = hosts.posted("watch")
    scalars = means | own
    if len(processes) > 1:
      for process, found in processes.items():
        scalars |= {f"process_{process}/{name}": value for name, value in found.items()}
    self._events.write(step, **scalars)
    shown = {"loss": means["loss"], "accuracy": means["accuracy"]}
    self._progress.update(step, means | own, **shown)
    if self._endpoint is not None:
      # The processes' throughputs add up to that of the run.
      of_run = {"step": step, "steps_planned": self._total} | means
      of_run.pop("images_per_second")
      self._endpoint.publish(exposition(of_run, processes))

  def _warn_if_input_bound(self, own: dict[str, float], step: int) -> None:
    wait, starved = own["data_wait_ratio"], own["starved_ratio"]
    if self._warned or wait <= _WAIT_RATIO or starved <= _STARVED_RATIO:
      return
    self._warned = True
    log.warning(
      "input_bound=true step=%d process=%d data_wait_ratio=%.2f starved_ratio=%.2f: the devices"
      " wait for images; %s",
      *(step, jax.process_index(), wait, starved, self._remedy),
    )


def _is_done(metrics: dict[str, jax.Array]) -> bool:
  return all(leaf.is_ready() for leaf in metrics.values())


def _endpoint(host: str, port: int) -> Endpoint | None:
  try:
    endpoint = Endpoint(host, port)
  except (OSError, UnicodeError) as error:  # the latter: no name of a host at all
    # A training goes on without: the port may be that of a run before, which is about to end.
    log.warning("watch.port=%d: can't listen on %s (%s); no metrics are served", port, host, error)
    return None
  log.info("metrics for Prometheus: http://%s:%d/metrics", host, endpoint.port)
  return endpoint
