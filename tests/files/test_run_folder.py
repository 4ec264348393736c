"""The run's folder, its JSON, its metrics, the mark of its process, and where
results come from."""

import datetime
import importlib.metadata
import json
import math
import os
from pathlib import Path
import platform
import shlex
import shutil
import subprocess
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

import pomp_jax
from pomp_jax import hosts
from pomp_jax.files import provenance, run_folder
from pomp_jax.files.metrics_log import MetricsWriter
from pomp_jax.files.run_folder import (
  RunFolder,
  RunFolderError,
  RunFolderWriteError,
  prompt_path,
  read_json,
  write_json,
  writing,
)
from tests.support.data_files import small_files_only


def test_the_prompt_of_a_folder_is_its_own_before_a_trainers(tmp_path, monkeypatch):
  """A run beside a trainer's checkpoints; such ones alone; and where no room reads
  them."""
  own, asked = tmp_path / "prompt.npz", []
  trainers = {}
  find = lambda path: asked.append(path) or trainers.get("model")
  monkeypatch.setattr(run_folder, "DASSL_PROMPT", mock.Mock(open=lambda: find))
  assert prompt_path(tmp_path) == own and asked == [tmp_path]
  trainers["model"] = tmp_path / "prompt_learner" / "model.pth.tar-5"
  assert prompt_path(tmp_path) == trainers["model"]
  own.touch()
  asked.clear()
  assert prompt_path(tmp_path) == own and prompt_path(own) == own and not asked
  monkeypatch.setattr(run_folder, "DASSL_PROMPT", None)
  assert prompt_path(tmp_path) == own
  own.unlink()
  assert prompt_path(tmp_path) == own


@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize("content", [{"job": "pretrain"}, {}, []])
def test_another_jobs_run(tmp_path, name, content):
  write_json(tmp_path / name, {"job": "export", "k": 1})
  RunFolder(tmp_path).check("export")
  write_json(tmp_path / name, content)
  line = f"{name} is of job=('pretrain'|None); job='export'"
  with pytest.raises(RunFolderError, match=line):
    RunFolder(tmp_path).check("export")


def test_a_run_has_finished_if_its_results_hold_the_facts(tmp_path, monkeypatch):
  folder, results = RunFolder(tmp_path), {"key": "a", "top1": 0.5}
  assert folder.finished() is None
  folder.write_results(results)
  assert folder.finished() == folder.finished(key="a") == results
  assert folder.finished(key="b") is None and folder.finished(key="a", steps=3) is None
  # What process 0 reads is asked for once.
  monkeypatch.setattr(hosts, "is_first", lambda: False)
  assert folder.finished() is None


@pytest.mark.parametrize("place", ["file", "file/a/b"])
def test_a_file_in_the_way(tmp_path, place, monkeypatch):
  (tmp_path / "file").write_text("")
  for method in (RunFolder(tmp_path / place).check, RunFolder(tmp_path / place).create):
    with pytest.raises(
      RunFolderError, match=f"{tmp_path}/file is a file; a folder is needed"
    ):
      method()
  # Processes other than the first need no folder.
  monkeypatch.setattr(hosts, "is_first", lambda: False)
  RunFolder(tmp_path / place).check()


def test_a_folder_that_is_not_writable(tmp_path, monkeypatch):
  """The answer of `os.access` is replaced: tests may run as a user who may write
  everywhere."""
  monkeypatch.setattr(os, "access", lambda *_: False)
  with pytest.raises(RunFolderError, match=f"{tmp_path} is not writable"):
    RunFolder(tmp_path / "a").check()


def test_json_keeps_order_and_takes_numbers_of_all_kinds(tmp_path):
  numbers = [
    np.float32(0.5),
    np.int64(2**40),
    np.bool_(True),
    np.array([1, 2]),
    jnp.arange(2),
  ]
  missing = [float("nan"), np.float64("inf"), np.array([1.0, np.nan])]
  write_json(
    tmp_path / "a.json",
    {"z": (True, None, "é", Path("a/b")), "b": numbers, "a": missing},
  )
  text = (tmp_path / "a.json").read_text()
  assert text.endswith("}\n") and list(json.loads(text)) == ["z", "b", "a", "checksum"]
  assert list(read_json(tmp_path / "a.json").items()) == [
    ("z", [True, None, "é", "a/b"]),
    ("b", [0.5, 2**40, True, [1, 2], [0, 1]]),
    ("a", [None, None, [1.0, None]]),
  ]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  write_json(tmp_path / "a.json", {"old": 1})
  with pytest.raises(TypeError, match="object"):
    write_json(tmp_path / "a.json", {"eval": {"base": [1, object()]}})
  full = OSError(28, "No space left on device")
  monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=full))
  with pytest.raises(
    RunFolderWriteError, match=r"a\.json: can't be written \(No space"
  ):
    write_json(tmp_path / "a.json", {"new": 2})
  assert read_json(tmp_path / "a.json") == {"old": 1}
  assert len(list(tmp_path.iterdir())) == 1
  # NumPy's reason on a full disk has no number.
  with (
    pytest.raises(RunFolderWriteError, match=r"a\.npz: can't be written \(8 req"),
    writing("a.npz"),
  ):
    raise OSError("8 requested and 0 written")


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[" * 100_000, None])
def test_json_that_is_damaged_or_missing(tmp_path, data):
  line = r"results\.json: can't be read \(No such file"
  if data is not None:
    (tmp_path / "results.json").write_bytes(data)
    line = r"results\.json: not JSON \(.*repair it"
  with pytest.raises(RunFolderError, match=line):
    read_json(tmp_path / "results.json")


def _tensorboard(folder):
  """The scalars that TensorBoard shows: files by name, what a later start replaces
  dropped."""
  points = {}
  for path in sorted(
    folder.glob("events.out.tfevents.*"), key=lambda path: int(path.suffix[1:])
  ):
    data, start = path.read_bytes(), 0
    while start < len(data):  # TFRecord: length (8 bytes), CRC (4), event, CRC (4)
      length = int.from_bytes(data[start : start + 8], "little")
      event = Event.FromString(data[start + 12 : start + 12 + length])
      start += 16 + length
      if event.session_log.status == SessionLog.START:
        points = {key: value for key, value in points.items() if key[1] < event.step}
      points |= {
        (value.tag, event.step): value.simple_value for value in event.summary.value
      }
  return points


def test_scalars_come_back_also_of_a_killed_process(tmp_path):
  metrics = MetricsWriter(tmp_path / "new")  # which nobody closes
  metrics.write(1, loss=1.5, accuracy=np.float32(0.25))
  metrics.write(2, loss=jnp.float32(1.25), **{"eval/top1": 1})
  metrics.write(3, loss=math.inf)
  assert len(_tensorboard(tmp_path / "new")) == 5
  *_, last = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
  last = json.loads(last)
  assert abs(last.pop("time") - time.time()) < 60 and last == {"step": 3, "loss": None}
  found = RunFolder(tmp_path / "new").scalars()
  assert found.pop("accuracy") == ([1], [0.25]) and found.pop("eval/top1") == (
    [2],
    [1.0],
  )
  assert found["loss"][0] == [1, 2, 3]
  np.testing.assert_array_equal(found["loss"][1], [1.5, 1.25, np.nan])
  assert RunFolder(tmp_path).scalars() == {}


def test_the_productive_share_is_of_the_steps_that_count(tmp_path):
  """Steps of 2 s: validation after the second window, a start of 50 s that does two
  steps again."""
  records = [
    {"step": 5, "time": 1000.0, "step_seconds": 2.0},
    {"step": 5, "time": 1000.5, "validation_top1": 0.5},
    {"step": 10, "time": 1014.0, "step_seconds": 2.0},
    {"step": 15, "time": 1080.0, "step_seconds": 2.0},
  ]
  folder = RunFolder(tmp_path)
  assert folder.productive_share() is None
  folder.metrics.write_text(
    "".join(f"{json.dumps(record)}\n" for record in records[:1])
  )
  assert folder.productive_share() is None
  folder.metrics.write_text("".join(f"{json.dumps(record)}\n" for record in records))
  assert folder.productive_share() == pytest.approx(20 / 80)
  assert "time" not in folder.scalars()
  # A window's steps take its own time, not that of the window before.
  for record, seconds in zip(records, (9.0, 9.0, 2.0, 3.0), strict=True):
    record["step_seconds"] = seconds
  folder.metrics.write_text("".join(f"{json.dumps(record)}\n" for record in records))
  assert folder.productive_share() == pytest.approx((5 * 2 + 5 * 3) / 80)
  for record in records:
    record["step_seconds"] = 2.0
  # Clocks of two machines may overlap.
  records[-1]["time"] = 1015.0
  folder.metrics.write_text("".join(f"{json.dumps(record)}\n" for record in records))
  assert folder.productive_share() == 1.0


def test_of_a_step_that_is_taken_again_the_last_values_count(tmp_path):
  with MetricsWriter(tmp_path) as metrics:
    for step, loss in ((1, 5.0), (2, 9.0), (1, 4.0), (2, 3.0)):
      metrics.write(step, loss=loss)
  assert RunFolder(tmp_path).scalars() == {"loss": ([1, 2], [4.0, 3.0])}


@pytest.mark.parametrize("value", [{}, [], [1, "a"], "text", "", 3, None, {"a": [{}]}])
def test_json_of_others_is_taken_as_it_is(tmp_path, value):
  """Without a checksum, whatever it holds."""
  (tmp_path / "others.json").write_text(json.dumps(value))
  assert read_json(tmp_path / "others.json") == value


def test_a_resumed_run_replaces_later_steps(tmp_path, monkeypatch):
  """Three starts within a second, with a clock that jumps."""
  real = time.time
  for start, (shift, first) in enumerate([(0, 1), (-3600, 5), (10**8, 7)]):
    monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
    with MetricsWriter(tmp_path, first) as metrics:
      for step in range(first, 9 - start):
        metrics.write(
          step, loss=10**start * step, **({"rate": 0.5} if start == 0 else {})
        )
  loss = [1, 2, 3, 4, 50, 60]
  expected = {"loss": (list(range(1, 7)), loss), "rate": ([1, 2, 3, 4], [0.5] * 4)}
  assert RunFolder(tmp_path).scalars() == expected
  assert _tensorboard(tmp_path) == {
    (name, step): value
    for name, series in expected.items()
    for step, value in zip(*series, strict=True)
  }
  with MetricsWriter(tmp_path, first_step=0):
    pass
  assert RunFolder(tmp_path).scalars() == {} == _tensorboard(tmp_path)


def test_damaged_lines_are_skipped(tmp_path):
  with MetricsWriter(tmp_path) as metrics:
    for step in range(3):
      metrics.write(step, loss=step)
  file = tmp_path / "metrics.jsonl"
  whole = file.read_bytes()
  for bad in (
    b"",
    b"\xff",
    b"[1]",
    b'{"step": "3"}',
    b'{"step": 3, "loss": []}',
    b"[" * 10**5,
  ):
    file.write_bytes(whole + bad + b"\n" + whole[:-2])
    assert RunFolder(tmp_path).scalars() == {"loss": ([0, 1, 2], [0.0, 1.0, 2.0])}


def test_a_full_disk_drops_metrics(tmp_path, caplog):
  with MetricsWriter(tmp_path) as metrics:
    metrics.write(1, loss=1)
    with small_files_only(30):
      metrics.write(2, loss=2)
      metrics.write(3, loss=3)
    metrics.write(4, loss=4)
  assert RunFolder(tmp_path).scalars()["loss"][0] == [1, 4]
  (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("pomp_jax")]
  assert line.startswith(f"{tmp_path}: ") and "step 2" in line


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A repository of three files, the package one of its folders."""
  if shutil.which("git") is None:
    pytest.skip("git is not installed")
  for name in ("pomp_jax/__init__.py", "pomp_jax/main.py", "README.md"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
  git(tmp_path, "init", "--quiet")
  commit_all(tmp_path)
  monkeypatch.setattr(provenance, "_PACKAGE", tmp_path / "pomp_jax")
  provenance.commit.cache_clear()
  yield tmp_path
  provenance.commit.cache_clear()


def git(folder, *arguments):
  options = (
    "-c",
    "user.name=a",
    "-c",
    "user.email=a@example.org",
    "-c",
    "commit.gpgsign=false",
  )
  command = ["git", "-C", str(folder), *options, *arguments]
  return subprocess.check_output(command, text=True).strip()


def commit_all(folder):
  git(folder, "add", "--all")
  git(folder, "commit", "--quiet", "--message", "files")


@pytest.mark.parametrize(
  ("file", "differs"),
  [("pomp_jax/main.py", True), ("README.md", False), ("pomp_jax/untracked.py", False)],
)
def test_the_commit_is_that_of_the_checkout(checkout, file, differs):
  (checkout / file).write_text("changed = 1\n")
  head = git(checkout, "rev-parse", "HEAD")
  assert len(head) == 40 and provenance.commit() == head + "+" * differs
  (checkout / "pomp_jax/main.py").write_text("changed = 2\n")
  commit_all(checkout)
  assert git(checkout, "rev-parse", "HEAD") != head
  assert provenance.commit() == head + "+" * differs


def test_a_repository_around_an_installed_package_is_not_its_own(checkout, monkeypatch):
  (checkout / ".gitignore").write_text("venv\n")
  commit_all(checkout)
  installed = checkout / "venv" / "pomp_jax"
  shutil.copytree(checkout / "pomp_jax", installed)
  monkeypatch.setattr(provenance, "_PACKAGE", installed)
  assert provenance.commit() is None
  # pip install git+URL, and of a wheel or a folder.
  record = checkout / "venv" / "pomp_jax-1.0.dist-info" / "direct_url.json"
  record.parent.mkdir()
  for content, expected in (
    ('{"vcs_info": {"commit_id": "abc"}}', "abc"),
    ("{}", None),
  ):
    record.write_text(content)
    provenance.commit.cache_clear()
    assert provenance.commit() == expected


def test_a_result_names_the_devices_of_all_processes(monkeypatch):
  devices = [
    mock.Mock(platform="tpu", device_kind=kind, process_index=process, id=index)
    for index, (process, kind) in enumerate([(0, "v5e"), (1, "v5e"), (1, "v4")])
  ]
  monkeypatch.setattr(
    hosts, "devices", lambda *, local=False: devices[:1] if local else devices
  )
  monkeypatch.setattr(jax, "process_count", lambda *of: 2)
  assert provenance.provenance()["devices"] == {
    "platform": "tpu",
    "kind": "v4, v5e",
    "number": 3,
    "processes": 2,
  }


@pytest.mark.parametrize(
  "error", [FileNotFoundError(), subprocess.TimeoutExpired("git", 10)]
)
def test_without_git(checkout, monkeypatch, error):
  monkeypatch.setattr(subprocess, "run", mock.Mock(side_effect=error))
  assert provenance.commit() is None


def test_a_command_is_one_that_a_shell_runs():
  main = str(Path(pomp_jax.__file__).parent / "main.py")
  text = provenance.command(
    [main, "--workdir=a b", "--config.eval.template=a {}'s $photo."]
  )
  words = ["python", "-m", "pomp_jax.main", "--workdir=a b"]
  assert shlex.split(text) == [*words, "--config.eval.template=a {}'s $photo."]
  assert (
    provenance.command(["/usr/bin/pomp", "--workdir=a"]) == "/usr/bin/pomp --workdir=a"
  )


def test_a_result_says_where_it_comes_from(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["/usr/bin/pomp", "--workdir=a b"])
  libraries = ("jax", "jaxlib", "flax", "numpy", "no-such-library")
  monkeypatch.setattr(provenance, "_LIBRARIES", libraries)
  before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
  folder = RunFolder(tmp_path)
  assert folder.read_results() is None
  results = {"job": "predict", "top1": 0.5}
  folder.write_results(results)
  stored = read_json(folder.results)
  found = stored.pop("provenance")
  assert stored == results == folder.read_results()
  assert found["command"] == "/usr/bin/pomp '--workdir=a b'"
  versions = {name: importlib.metadata.version(name) for name in libraries[:-1]}
  versions |= {"no-such-library": None, "python": platform.python_version()}
  assert found["versions"].items() >= versions.items()
  assert found["devices"] == {
    "platform": "cpu",
    "kind": "cpu",
    "number": 1,
    "processes": 1,
  }
  date = datetime.datetime.fromisoformat(found["date"])
  assert before <= date <= datetime.datetime.now(datetime.UTC)
  folder.results.write_text("[]")
  with pytest.raises(RunFolderError, match=r"results\.json: not a JSON object"):
    folder.read_results()
