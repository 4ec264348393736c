"""Metrics of a training loop, read without making the device wait.

Metrics of a step are read while a later window of steps runs: the host never waits for a number
that the device has yet to compute, except where the loop must know it (before a checkpoint).
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import logging
from typing import Any, SupportsFloat

import jax
import optax
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily

from pomp_jax import hosts
from pomp_jax.errors import RunError
from pomp_jax.files.metrics_log import MetricsWriter
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.files.terminal import Progress
from pomp_jax.train.meter import Meter, Trace, memory

log = logging.getLogger(__name__)

# A run is input bound when it spends more than this fraction of its time waiting for the loader,
# and more than that fraction of its batches find the device idle.
_WAIT_RATIO, _STARVED_RATIO = 1 / 3, 1 / 2
# Steps that the host starts ahead of the device. One keeps it busy; a run that is asked to stop
# waits for all of them.
_AHEAD = 2
# Timeout of a Prometheus client that sends no request.
_CLIENT_SECONDS = 5.0


class TrainingError(RunError, RuntimeError):
  """A training that failed; the message is one line."""


class Watch(contextlib.AbstractContextManager):
  """Reads metrics late, checks them, and writes them as scalars.

  Scalars: `loss`, `accuracy`, `grad_norm`, `param_norm`, `learning_rate`, `images_per_second`,
  means over the steps of a window, and the figures of `Meter` and `memory` of this process. With
  several processes also `process_2/images_per_second` and so on, as each posted them last.
  docs/watching.md lists them all.
  """

  def __init__(
    self,
    folder: RunFolder,
    total: int,
    first: int,
    every: int,
    batch_size: int,
    rate: optax.Schedule,
    check: Callable[[int, dict[str, Any]], None],
    *,
    profiled: tuple[int, int] | None = None,
    port: int = 0,
    host: str = "127.0.0.1",
    remedy: str = "",
  ):
    """Opens the scalars, the progress bar and the endpoint.

    Args:
      folder: folder of the run.
      total: steps of the whole run.
      first: steps done before this start.
      every: steps of a window.
      batch_size: images per step.
      rate: learning-rate schedule, for the log.
      check: function of each step and its metrics, called in order; may raise.
      profiled: first and last step of the profile.
      port: port of process 0 for Prometheus; 0: none.
      host: address to listen on.
      remedy: advice for a run that is input bound; see `batches.input_remedy`.
    """
    self._check = check
    writes = hosts.is_first()
    self._folder, self._every, self._batch_size, self._rate = folder, every, batch_size, rate
    self._total = total
    self._metrics = MetricsWriter(folder.path, first + 1) if writes else None
    self._progress = Progress(total, first, "step")
    self._endpoint = _endpoint(host, port) if writes and port else None
    self._trace = Trace(folder.path / "profile", profiled, first)
    self._pending: list[tuple[int, dict]] = []
    self._done_step = first
    self._meter, self._own = Meter(), {}
    self._warned, self._remedy = False, remedy

  def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
    """Passes the batches through and measures the time that the loop waits for them."""
    return self._meter.timed(batches, self._device_is_idle)

  def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step that was started; reads those of the previous window.

    Raises:
      BadLossError: raised by `check`.
    """
    self._pending.append((step, metrics))
    if len(self._pending) > _AHEAD:
      jax.block_until_ready(self._pending[-1 - _AHEAD][1])
    self._trace.after(step, metrics)
    if step % self._every == 0 and len(self._pending) > self._every:
      self._read(len(self._pending) - self._every)

  def flush(self) -> None:
    """Reads all pending metrics, which waits for the device.

    Raises:
      BadLossError: raised by `check`.
    """
    self._read(len(self._pending))

  def restart_clock(self) -> None:
    """Excludes the time since the last step (a validation, a save) from the step time."""
    self._meter.restart()

  def scalar(self, name: str, value: float, step: int) -> None:
    """Writes one more scalar."""
    if self._metrics is not None:
      self._metrics.write(step, **{name: value})

  def __exit__(self, *exception: object) -> None:
    self._trace.__exit__(*exception)
    self._progress.close()
    if self._endpoint is not None:
      self._endpoint.__exit__(*exception)
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
    means["images_per_second"] = self._batch_size / self._own["step_seconds"]
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
    """Writes scalars, progress and the endpoint, with the latest posts of the other processes."""
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
    shown = {"loss": means["loss"], "accuracy": means["accuracy"]}
    self._progress.update(step, means | own, **shown)
    if self._endpoint is not None:
      # The throughputs of the processes add up to that of the run.
      of_run = {"step": step, "steps_planned": self._total} | means
      of_run.pop("images_per_second")
      self._endpoint.publish(of_run, processes)

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


class Endpoint(contextlib.AbstractContextManager):
  """Serves gauges `pomp_NAME` to Prometheus, with a label `process` for those of a process.

  Attributes:
    port: port it listens on.
  """

  def __init__(self, host: str, port: int):
    """Listens from now on; each open connection has a thread.

    Args:
      host: address or name of this machine.
      port: port; 0: any free one.

    Raises:
      OSError: it can't listen there.
      UnicodeError: the host is not a name.
    """
    self._of_run: Mapping[str, SupportsFloat] = {}
    self._of_processes: Mapping[int, Mapping[str, SupportsFloat]] = {}
    registry = CollectorRegistry()
    registry.register(self)
    self._server, self._thread = start_http_server(port, host, registry)
    # Clients that send no request are dropped silently.
    handler = self._server.RequestHandlerClass
    self._server.RequestHandlerClass = type("Handler", (handler,), {"timeout": _CLIENT_SECONDS})
    self._server.handle_error = lambda *_: None
    self.port = self._server.server_port

  def publish(
    self,
    of_run: Mapping[str, SupportsFloat],
    of_processes: Mapping[int, Mapping[str, SupportsFloat]],
  ) -> None:
    """Replaces the served figures.

    Args:
      of_run: figures of the whole run by name.
      of_processes: figures of each process by name; no name is in both.
    """
    self._of_run, self._of_processes = of_run, of_processes

  def collect(self) -> Iterator[GaugeMetricFamily]:
    """Yields the gauges; called by the registry for each request."""
    for name, value in self._of_run.items():
      yield GaugeMetricFamily(f"pomp_{name}", name, value=value)
    for name in dict.fromkeys(name for of_one in self._of_processes.values() for name in of_one):
      gauge = GaugeMetricFamily(f"pomp_{name}", name, labels=["process"])
      for process, of_one in self._of_processes.items():
        if name in of_one:
          gauge.add_metric([str(process)], of_one[name])
      yield gauge

  def __exit__(self, *exception: object) -> None:
    self._server.shutdown()
    self._server.server_close()
    self._thread.join()


def _endpoint(host: str, port: int) -> Endpoint | None:
  try:
    endpoint = Endpoint(host, port)
  except (OSError, UnicodeError) as error:
    # Only a warning: the port may belong to an earlier run that is about to end.
    log.warning(
      "prometheus.port=%d: can't listen on %s (%s); no metrics are served", port, host, error
    )
    return None
  log.info("metrics for Prometheus: http://%s:%d/metrics", host, endpoint.port)
  return endpoint
