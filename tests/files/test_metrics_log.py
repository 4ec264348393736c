"""Metrics: written at once, read back over restarts, and what TensorBoard shows of them."""

import json
import math
import resource
import time

import jax.numpy as jnp
import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog

from pomp_jax.files.metrics_log import MetricsWriter
from pomp_jax.files.run_folder import RunFolder


def _tensorboard(folder):
  """The scalars that TensorBoard shows: files by name, what a later start replaces dropped."""
  points = {}
  for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: int(path.suffix[1:])):
    data, start = path.read_bytes(), 0
    while start < len(data):  # TFRecord: length (8 bytes), CRC (4), event, CRC (4)
      length = int.from_bytes(data[start : start + 8], "little")
      event = Event.FromString(data[start + 12 : start + 12 + length])
      start += 16 + length
      if event.session_log.status == SessionLog.START:
        points = {key: value for key, value in points.items() if key[1] < event.step}
      points |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
  return points


def test_scalars_come_back(tmp_path):
  with MetricsWriter(tmp_path / "new") as metrics:
    metrics.write(1, loss=1.5, accuracy=np.float32(0.25))
    metrics.write(2, loss=jnp.float32(1.25), **{"eval/top1": 1})
    metrics.write(3, loss=math.inf)
  lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
  assert list(map(json.loads, lines)) == [
    {"step": 1, "loss": 1.5, "accuracy": 0.25},
    {"step": 2, "loss": 1.25, "eval/top1": 1.0},
    {"step": 3, "loss": None},
  ]
  found = RunFolder(tmp_path / "new").scalars()
  assert found.pop("accuracy") == ([1], [0.25]) and found.pop("eval/top1") == ([2], [1.0])
  assert found["loss"][0] == [1, 2, 3]
  np.testing.assert_array_equal(found["loss"][1], [1.5, 1.25, np.nan])
  assert RunFolder(tmp_path).scalars() == {}


def test_a_resumed_run_replaces_later_steps(tmp_path, monkeypatch):
  """Three starts within a second, with a clock that jumps."""
  real = time.time
  for start, (shift, first) in enumerate([(0, 1), (-3600, 5), (10**8, 7)]):
    monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
    with MetricsWriter(tmp_path, first) as metrics:
      for step in range(first, 9 - start):
        metrics.write(step, loss=10**start * step, **({"rate": 0.5} if start == 0 else {}))
  loss = [1, 2, 3, 4, 50, 60]
  expected = {"loss": (list(range(1, 7)), loss), "rate": ([1, 2, 3, 4], [0.5] * 4)}
  assert RunFolder(tmp_path).scalars() == expected
  assert _tensorboard(tmp_path) == {
    (name, step): value
    for name, series in expected.items()
    for step, value in zip(*series, strict=True)
  }
  MetricsWriter(tmp_path, first_step=0).close()
  assert RunFolder(tmp_path).scalars() == {} == _tensorboard(tmp_path)


def test_damaged_lines_are_skipped(tmp_path):
  with MetricsWriter(tmp_path) as metrics:
    for step in range(3):
      metrics.write(step, loss=step)
  file = tmp_path / "metrics.jsonl"
  whole = file.read_bytes()
  for bad in (b"", b"\xff", b"[1]", b'{"step": "3"}', b'{"step": 3, "loss": []}', b"[" * 10**5):
    file.write_bytes(whole + bad + b"\n" + whole[:-2])
    assert RunFolder(tmp_path).scalars() == {"loss": ([0, 1, 2], [0.0, 1.0, 2.0])}


def test_a_full_disk_drops_metrics(tmp_path, caplog):
  """A limit on the size of files stands in for the disk's."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with MetricsWriter(tmp_path) as metrics:
    metrics.write(1, loss=1)
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (30, hard))
      metrics.write(2, loss=2)
      metrics.write(3, loss=3)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    metrics.write(4, loss=4)
  assert RunFolder(tmp_path).scalars()["loss"][0] == [1, 4]
  (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("pomp_jax")]
  assert line.startswith(f"{tmp_path}: ") and "step 2" in line


def test_a_killed_process_loses_nothing(tmp_path):
  """Every step is in the files when `write` returns, without `close`."""
  metrics = MetricsWriter(tmp_path)
  for step in range(20):
    metrics.write(step, loss=step)
    expected = list(range(step + 1))
    assert RunFolder(tmp_path).scalars() == {"loss": (expected, expected)}
    assert len(_tensorboard(tmp_path)) == step + 1
