"""Metrics of a running training: what is measured, the input-bound run, bad losses,
roll-backs."""

import dataclasses
import json
import os
import re
import types
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax import hosts
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.train import setup
from pomp_jax.train import watch as watch_module
from pomp_jax.train.resume import Checkpoint
from pomp_jax.train.watch import BadLossError, LossMonitor, Watch, memory
from tests.support.small_run import small_config


def slow(clock, seconds, n):
  """Batches that take `seconds` each."""
  for index in range(n):
    clock.now += seconds
    yield index


def test_memory_of_devices_is_that_of_the_fullest(monkeypatch):
  stats = (
    {"bytes_in_use": 3, "peak_bytes_in_use": 5, "other": 9},
    {"bytes_in_use": 4, "peak_bytes_in_use": 4},
  )
  devices = [types.SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
  monkeypatch.setattr(hosts, "devices", lambda *, local: devices)
  assert memory() == {"device_memory_bytes": 4.0, "device_memory_peak_bytes": 5.0}


def test_memory_of_a_process_is_its_resident_pages(tmp_path, monkeypatch):
  """The second number of /proc/self/statm; the first counts what is only mapped."""
  file = tmp_path / "statm"
  file.write_text("9000 70 30 1 0 40 0\n")
  monkeypatch.setattr(watch_module, "_STATM", file)
  assert memory() == {"process_memory_bytes": 70.0 * os.sysconf("SC_PAGE_SIZE")}


@pytest.fixture
def watch(tmp_path, monkeypatch):
  """A watch of 100 steps whose clock the test moves; the clock."""
  clock = types.SimpleNamespace(now=100.0)
  monkeypatch.setattr(
    watch_module, "time", types.SimpleNamespace(monotonic=lambda: clock.now)
  )
  with opened(tmp_path) as watch:
    yield watch, clock


def opened(folder, **changes):
  """A watch of 100 steps, in windows of 5, that accepts all metrics; rates of 1,
  1/2, 1/3, .."""
  config = small_config(**{"log.every": 5, "batch_size": 8, "steps": 100} | changes)
  run = setup.prepare(config, RunFolder(folder))
  run = dataclasses.replace(run, rate=lambda step: 1 / (1 + step))
  return Watch(run, lambda step, metrics: None)


METRICS = [
  {"loss": jnp.float32(step), "accuracy": jnp.float32(0.5)} for step in range(31)
]


def walk(watch, clock, wait, work, steps):
  """Takes steps of `work` seconds and a loss of their number, whose batches take
  `wait` seconds."""
  for _, step in zip(watch.timed(slow(clock, wait, len(steps))), steps, strict=False):
    clock.now += work
    watch.step(step, METRICS[step])


def test_waiting_is_told_from_working(watch, tmp_path, monkeypatch):
  own, clock = watch
  # Nothing is pending at the first batch; the device is busy at the second.
  idle = iter([False, True, True])
  monkeypatch.setattr(watch_module, "_is_done", lambda metrics: next(idle))
  walk(*watch, 1.0, 4.0, range(1, 5))
  own.flush()
  clock.now += 50.0
  own.restart()
  clock.now += 6.0
  own.step(5, METRICS[5])
  own.flush()
  scalars = RunFolder(tmp_path).scalars()
  assert scalars["step_seconds"] == ([4, 5], [5.0, 6.0])
  assert scalars["data_wait_ratio"] == ([4, 5], [0.2, 0.0])
  assert scalars["starved_ratio"] == ([4, 5], [0.5, 0.0])


def test_an_input_bound_run_warns_once(watch, caplog):
  jax.block_until_ready(METRICS)
  walk(*watch, 1.0, 1.0, range(1, 31))
  (line,) = caplog.messages
  found = dict(re.findall(r"(\w+)=([\w.]+)", line))
  assert found["input_bound"] == "true"
  assert float(found["data_wait_ratio"]) == pytest.approx(0.5, abs=0.06)
  assert set(re.findall(r"config\.data\.(\w+)", line)) == {
    "threads",
    "workers",
    "features",
  }


@pytest.mark.parametrize(("wait", "idle"), [(1.0, False), (0.4, True)])
def test_a_busy_device_and_short_waits_are_no_problem(
  watch, caplog, monkeypatch, wait, idle
):
  monkeypatch.setattr(watch_module, "_is_done", lambda metrics: idle)
  walk(*watch, wait, 1.0, range(1, 31))
  assert caplog.messages == []


def test_scalars_of_a_window(watch, tmp_path):
  walk(*watch, 0.03125, 0.09375, range(1, 21))
  scalars = RunFolder(tmp_path).scalars()
  for name, value in {
    "step_seconds": 0.125,
    "images_per_second": 64.0,
    "data_wait_ratio": 0.25,
  }.items():
    assert scalars[name] == ([5, 10, 15], [value] * 3)
  assert scalars["loss"] == ([5, 10, 15], [3.0, 8.0, 13.0])
  # The rate of the window's last step: the schedule counts from 0.
  assert scalars["learning_rate"] == (
    [5, 10, 15],
    pytest.approx([1 / 5, 1 / 10, 1 / 15]),
  )
  assert scalars.keys() == {
    *("loss", "accuracy", "learning_rate", "images_per_second", "step_seconds"),
    *("data_wait_ratio", "starved_ratio", "process_memory_bytes"),
  }
  assert 2**27 < scalars["process_memory_bytes"][1][0] < 2**40  # of a process with JAX
  # none on CPUs
  assert not [name for name in scalars if name.startswith("device_memory")]


def test_of_several_processes_each_has_its_own_times(watch, tmp_path, monkeypatch):
  """And its share of the images."""
  posted = []
  monkeypatch.setattr(hosts, "post", lambda name, value: posted.append((name, value)))
  monkeypatch.setattr(
    hosts, "posted", lambda name: {0: {"a": 1.0}, 1: {"a": 2.0, "b": 3.0}}
  )
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  walk(*watch, 0.03125, 0.09375, range(1, 11))
  scalars = RunFolder(tmp_path).scalars()
  found = {name: of for name, of in scalars.items() if name.startswith("process_")}
  del found["process_memory_bytes"]
  assert found == {
    "process_0/a": ([5], [1.0]),
    "process_1/a": ([5], [2.0]),
    "process_1/b": ([5], [3.0]),
  }
  [(name, value)] = posted
  assert name == "watch" and value["step_seconds"] == 0.125
  assert (
    scalars["images_per_second"] == ([5], [64.0]) and value["images_per_second"] == 32.0
  )


def test_a_validation_writes_both_accuracies(watch, tmp_path):
  own, _ = watch
  own.validated(7, {"top1": 0.5, "macro_top1": 0.25, "top5": 0.75, "images": 3})
  own.validated(8, None)
  assert RunFolder(tmp_path).scalars() == {
    "validation_top1": ([7], [0.5]),
    "validation_macro_top1": ([7], [0.25]),
  }


def test_the_share_of_the_peak_is_written_where_it_is_known(tmp_path, monkeypatch):
  asked = []

  def share_of_peak(run):
    asked.append(run)
    return lambda seconds: {"mfu": 0.5 / seconds}

  clock = types.SimpleNamespace(now=100.0)
  monkeypatch.setattr(
    watch_module, "time", types.SimpleNamespace(monotonic=lambda: clock.now)
  )
  hook = mock.Mock(open=lambda: share_of_peak)
  monkeypatch.setattr(watch_module, "SHARE_OF_PEAK", hook)
  with opened(tmp_path) as watch:
    walk(watch, clock, 0.5, 1.5, range(1, 11))
  assert len(asked) == 1
  assert RunFolder(tmp_path).scalars()["mfu"] == ([5], [0.25])


def losses(monitor, values, first=1):
  for step, loss in enumerate(values, first):
    monitor(step, {"loss": np.float32(loss), "accuracy": 0.5})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_values_that_are_not_finite_are_bad(name, value):
  with pytest.raises(
    BadLossError, match=rf"^{name} is -?(nan|inf) at step 7$"
  ) as caught:
    LossMonitor(0.0)(7, {"loss": 1.0, "grad_norm": 1.0} | {name: np.float32(value)})
  assert caught.value.step == 7


def test_a_spike_is_a_multiple_of_the_running_mean():
  monitor = LossMonitor(3.0)
  losses(monitor, [2.0, 1.0] * 15)
  mean = monitor.statistics["loss"]
  assert 1.3 < mean < 1.7
  losses(monitor, [2.9 * mean], first=31)
  with pytest.raises(BadLossError, match="^loss is 9 at step 32, more than 3 times "):
    losses(monitor, [9.0], first=32)


def test_the_first_steps_are_no_spikes():
  losses(LossMonitor(1.5), [1.0] * 19 + [100.0])
  # nor any loss, unless they are asked for
  losses(LossMonitor(0.0), [1.0] * 30 + [1e30])
  with pytest.raises(BadLossError):
    losses(LossMonitor(1.5), [1.0] * 20 + [100.0])


def test_the_loss_has_a_plain_and_then_a_running_mean():
  values = np.random.default_rng(0).uniform(1, 2, 60)
  monitor = LossMonitor(10.0)
  losses(monitor, values[:20])
  mean = pytest.approx(values[:20].mean(), rel=1e-6)
  assert monitor.statistics == {"steps": 20, "loss": mean}
  losses(monitor, values[20:], first=21)
  # A loss from d steps ago weighs 0.05 * 0.95^d.
  weights = 0.05 * 0.95 ** np.arange(40)[::-1]
  expected = weights @ values[20:] + 0.95**40 * values[:20].mean()
  assert monitor.statistics["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_resumed_monitor_has_the_same_statistics():
  values = np.random.default_rng(1).uniform(1, 2, 50)
  whole, first = LossMonitor(2.0), LossMonitor(2.0)
  losses(whole, values)
  losses(first, values[:23])
  second = LossMonitor(2.0, json.loads(json.dumps(first.statistics)))
  losses(second, values[23:], first=24)
  assert second.statistics == whole.statistics


def test_each_roll_back_skips_batches_and_has_other_draws():
  class State(NamedTuple):
    seed_key: np.ndarray | None = None

    def replace(self, **changes):
      return self._replace(**changes)

  mesh, start = make_mesh(), Checkpoint(0, State())
  once = start._replace(step=8).rolled_back(start, 11, 5, mesh)
  assert (once.roll_backs, once.skipped_batches) == (1, 3)
  # From the same checkpoint again, and then from a later one.
  twice = start._replace(step=8).rolled_back(once, 9, 5, mesh)
  thrice = start._replace(step=12).rolled_back(twice, 14, 5, mesh)
  assert (thrice.roll_backs, thrice.skipped_batches) == (3, 6)
  counts = (start._replace(roll_backs=n) for n in range(19))
  keys = [
    np.asarray(start.rolled_back(before, 1, 5, mesh).state.seed_key)
    for before in counts
  ]
  keys.append(jax.random.key_data(jax.random.key(5)))
  assert len({key.tobytes() for key in keys}) == 20
  np.testing.assert_array_equal(thrice.state.seed_key, keys[2])
