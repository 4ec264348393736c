"""Watching a run: what is measured, what Prometheus reads, profiles."""

import contextlib
import http.client
import json
import logging
import re
import socket
import threading
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax.config import ConfigError, base, validate
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.jobs import pretrain
from pomp_jax.train import meter as meter_module
from pomp_jax.train import prometheus
from pomp_jax.train import watch as watch_module
from pomp_jax.train.batches import input_remedy
from pomp_jax.train.meter import Meter, memory
from pomp_jax.train.prometheus import Endpoint, exposition
from pomp_jax.train.watch import Watch
from tests.support.processes import reserved_port
from tests.support.small_run import small_config


class Clock:
  """A clock that the test moves."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def slow(clock, seconds, n):
  """Batches that take some seconds each to come."""
  for index in range(n):
    clock.now += seconds
    yield index


def test_a_meter_tells_waiting_from_working():
  clock = Clock()
  meter = Meter(clock)
  dry = iter([False, True, True, True])
  for _ in meter.timed(slow(clock, 1.0, 4), lambda: next(dry)):
    clock.now += 4.0
  assert meter.look(2) == {"step_seconds": 10.0, "data_wait_ratio": 0.2, "starved_ratio": 0.75}
  clock.now += 6.0
  assert meter.look(3) == {"step_seconds": 2.0, "data_wait_ratio": 0.0, "starved_ratio": 0.0}
  clock.now += 50.0
  meter.restart()
  clock.now += 1.0
  assert meter.look(1)["step_seconds"] == 1.0


def test_memory_of_a_process_without_device_statistics():
  """More than a large array that is held, and that much more with it."""
  before = memory()
  held = np.ones(2**28, np.uint8)
  after = memory()
  assert set(before) == {"process_memory_bytes"}
  grown = after["process_memory_bytes"] - before["process_memory_bytes"]
  # Other threads take and give back some as well.
  assert 0.7 * held.nbytes < grown < 1.5 * held.nbytes


def test_memory_of_devices_is_that_of_the_fullest(monkeypatch):
  class Device:
    def __init__(self, **stats):
      self.memory_stats = lambda: stats

  devices = [
    Device(bytes_in_use=3, peak_bytes_in_use=5, other=9),
    Device(bytes_in_use=4, peak_bytes_in_use=4),
  ]
  monkeypatch.setattr(meter_module.jax, "local_devices", lambda: devices)
  assert memory() == {"device_memory_bytes": 4.0, "device_memory_peak_bytes": 5.0}


@pytest.fixture
def watch(tmp_path, monkeypatch):
  """A watch of 100 steps whose clock the test moves; the clock."""
  clock = Clock()
  monkeypatch.setattr(watch_module, "Meter", lambda: Meter(clock))
  with Watch(RunFolder(tmp_path), 100, 0, 5, 8, lambda step: 0.1, judge) as watch:
    yield watch, clock


def judge(step, metrics):
  """All is well."""


METRICS = {"loss": jnp.float32(2), "accuracy": jnp.float32(0.5)}


def walk(watch, clock, wait, work, steps):
  """Steps whose batch takes `wait` seconds to come, and which take `work` seconds each."""
  for _, step in zip(watch.timed(slow(clock, wait, len(steps))), steps, strict=False):
    clock.now += work
    watch.step(step, METRICS)


@pytest.fixture
def warnings():
  """What was warned of so far."""
  records = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = records.append
  logging.getLogger("pomp_jax").addHandler(handler)
  yield lambda: [record.getMessage() for record in records]
  logging.getLogger("pomp_jax").removeHandler(handler)


def test_a_run_that_waits_for_images_says_so_once(watch, warnings):
  jax.block_until_ready(METRICS)
  walk(*watch, 1.0, 1.0, range(1, 31))
  (line,) = warnings()
  found = dict(re.findall(r"(\w+)=([\w.]+)", line))
  assert found["input_bound"] == "true"
  assert float(found["data_wait_ratio"]) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
  ("changes", "n_cores", "named"),
  [
    ({}, 8, {"data.threads", "data.workers", "job"}),
    ({"data.threads": 8}, 8, {"job"}),
    ({"data.workers": 4}, 8, {"job"}),
    ({"data.augment": "recipe"}, 2, {"job", "data.fresh_epochs"}),
    ({"data.augment": "recipe", "data.fresh_epochs": 2}, 2, {"job"}),
    ({"data.features": "cached"}, 8, {"data.threads", "data.workers"}),
    ({"method": "vpt_deep"}, 8, {"data.threads", "data.workers"}),
    ({"method": "maple"}, 2, set()),
  ],
)
def test_the_remedy_is_one_that_this_run_has_not_taken(changes, n_cores, named):
  config = base()
  config.update_from_flattened_dict(changes)
  assert set(re.findall(r"config\.([\w.]+)", input_remedy(config, n_cores))) == named


def test_waiting_while_the_device_works_is_no_fault_of_the_loader(watch, warnings, monkeypatch):
  monkeypatch.setattr(Watch, "_device_is_dry", lambda self: False)
  walk(*watch, 1.0, 1.0, range(1, 31))
  assert warnings() == []


def test_a_short_wait_is_no_fault_either(watch, warnings):
  walk(*watch, 0.4, 1.0, range(1, 31))
  assert warnings() == []


def test_scalars_of_a_window(watch, tmp_path):
  walk(*watch, 0.5, 1.5, range(1, 21))
  scalars = RunFolder(tmp_path).scalars()
  assert scalars["step_seconds"][0] == [5, 10, 15]
  assert scalars["step_seconds"][1] == [2.0, 2.0, 2.0]
  assert scalars["images_per_second"][1] == [4.0, 4.0, 4.0]
  assert scalars["data_wait_ratio"][1] == [0.25, 0.25, 0.25]
  assert scalars["process_memory_bytes"][1][0] > 0


# The text format 0.0.4: comments, or samples of a name, labels, a number, and perhaps a time.
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_NUMBER = r"(?:[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|NaN|[+-]Inf)"
_SAMPLE = re.compile(rf"({_NAME})(?:{{({_LABEL}(?:,{_LABEL})*)?,?}})? ({_NUMBER})(?: -?\d+)?")
_TYPE = re.compile(rf"# TYPE ({_NAME}) (counter|gauge|histogram|summary|untyped)")


def parse_exposition(text):
  """(name, labels) -> value. Each name has one type, before its samples, which stand together."""
  assert text.endswith("\n")
  samples, types = {}, []
  for line in text.splitlines():
    if line.startswith("#"):
      types.append(_TYPE.fullmatch(line)[1])
      continue
    name, labels, value = _SAMPLE.fullmatch(line).groups()
    assert name == types[-1]
    assert (name, labels) not in samples
    samples[name, labels] = float(value.replace("Inf", "inf"))
  assert len(set(types)) == len(types)
  return samples


def test_the_text_is_prometheus():
  run = {"step": 7, "loss": 1.5e-7, "big": 2.0**70, "a": float("nan"), "b": float("-inf")}
  processes = {0: {"step_seconds": 0.5, "memory": 3}, 1: {"step_seconds": 0.25}}
  found = parse_exposition(exposition(run, processes))
  for name, value in run.items():
    np.testing.assert_equal(found.pop((f"pomp_{name}", None)), value)
  assert found == {
    ("pomp_step_seconds", 'process="0"'): 0.5,
    ("pomp_step_seconds", 'process="1"'): 0.25,
    ("pomp_memory", 'process="0"'): 3,
  }


def ask(port, method, path):
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  connection.request(method, path)
  response = connection.getresponse()
  return response.status, response.getheader("Content-Type"), response.read().decode()


def test_only_get_metrics_is_answered():
  with Endpoint("127.0.0.1", 0) as endpoint:
    endpoint.publish("pomp_step 1\n")
    content = "text/plain; version=0.0.4; charset=utf-8"
    assert ask(endpoint.port, "GET", "/metrics") == (200, content, "pomp_step 1\n")
    for path in ("/", "/metrics/", "/../etc/passwd", "/metrics/../x"):
      assert ask(endpoint.port, "GET", path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"):
      assert ask(endpoint.port, method, "/metrics")[0] == 501
    # A client that says nothing keeps nobody else waiting.
    with socket.create_connection(("127.0.0.1", endpoint.port)):
      assert ask(endpoint.port, "GET", "/metrics")[0] == 200
  with pytest.raises(OSError):
    socket.create_connection(("127.0.0.1", endpoint.port), timeout=1)


def test_slow_clients_hold_neither_threads_nor_the_endpoint(monkeypatch):
  """200 connections of which each says a part of a request and then nothing."""
  monkeypatch.setattr(prometheus, "SECONDS", 60.0)
  with contextlib.ExitStack() as stack:
    endpoint = stack.enter_context(Endpoint("127.0.0.1", 0))
    endpoint.publish("pomp_step 1\n")
    threads = threading.active_count()
    slow = []
    for _ in range(200):
      slow.append(stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port))))
      slow[-1].sendall(b"GET /metr")
    assert ask(endpoint.port, "GET", "/metrics")[2] == "pomp_step 1\n"
    assert threading.active_count() == threads
    # All but the newest are closed.
    for connection in slow[: 200 - prometheus.MAX_CONNECTIONS]:
      connection.settimeout(30)
      with contextlib.suppress(ConnectionError):
        assert connection.recv(1) == b""


def test_a_slow_client_is_closed_in_time(monkeypatch):
  monkeypatch.setattr(prometheus, "SECONDS", 0.2)
  with Endpoint("127.0.0.1", 0) as endpoint:
    for said in (b"", b"GET /metrics HTTP/1.1\r\n", b"x" * 100_000):
      connection = socket.create_connection(("127.0.0.1", endpoint.port), timeout=60)
      with connection, contextlib.suppress(ConnectionError):
        connection.sendall(said)
        assert connection.recv(1) == b""


def test_a_run_with_all_of_it(tmp_path, monkeypatch):
  """Metrics are served while it runs, and a profile of the steps is left."""
  seen = []
  step = Watch.step

  def asked(self, number, metrics):
    step(self, number, metrics)
    if number == 7:
      with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        seen.append(answer.read().decode())

  monkeypatch.setattr(Watch, "step", asked)
  with reserved_port() as port:
    config = small_config(steps=8, profile_steps="3+4", **{"watch.port": port})
    pretrain.run(config, str(tmp_path))
  samples = parse_exposition(seen[0])
  scalars = RunFolder(tmp_path).scalars()
  loss = dict(zip(*scalars["loss"], strict=True))
  assert samples["pomp_loss", None] == pytest.approx(loss[samples["pomp_step", None]], rel=1e-6)
  assert samples["pomp_steps_planned", None] == 8
  assert samples["pomp_step_seconds", 'process="0"'] > 0
  assert samples["pomp_images_per_second", 'process="0"'] > 0
  traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
  assert len(traces) == 1 and traces[0].stat().st_size > 1000
  assert json.loads((tmp_path / "config.json").read_text())["profile_steps"] == "3+4"


def test_a_port_that_is_taken_ends_no_training(tmp_path, warnings):
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    with Watch(RunFolder(tmp_path), 10, 0, 5, 8, lambda step: 0.1, judge, port=port):
      pass
  (line,) = warnings()
  assert f"watch.port={port}" in line


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("watch.port", -1),
    ("watch.port", 65536),
    *(("profile_steps", text) for text in ("20", "30+20", "0+1", "a+b", "1+2+3", "20-30", "+3")),
  ],
)
def test_fields_that_cant_be(field, value):
  with pytest.raises(ConfigError, match=rf"config\.{field}: got"):
    validate(small_config(**{field: value}))


def test_a_profile_that_cant_be_recorded_ends_no_training(tmp_path, warnings):
  """Another one is being recorded."""
  jax.profiler.start_trace(tmp_path / "other")
  try:
    with Watch(RunFolder(tmp_path), 10, 0, 5, 8, lambda step: 0.1, judge, profiled=(1, 2)) as watch:
      for step in (1, 2, 3):
        watch.step(step, METRICS)
  finally:
    jax.profiler.stop_trace()
  (line,) = warnings()
  assert line.startswith("no profile: ")
