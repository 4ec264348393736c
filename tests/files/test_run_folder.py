"""The run's folder, its JSON, and the mark of the process that uses it."""

import json
import os
from pathlib import Path
import socket
import time

import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax import hosts
from pomp_jax.files.run_folder import (
  Presence,
  RunFolder,
  RunFolderError,
  RunFolderWriteError,
  read_json,
  write_json,
  writing,
)


def no_space(*_, **__):
  raise OSError(28, "No space left on device")


def test_the_names_of_a_run_and_nothing_is_made_before_create(tmp_path, monkeypatch):
  folder = RunFolder(tmp_path / "runs" / "a")
  names = [folder.config, folder.checkpoints, folder.prompt, folder.results, folder.plots]
  assert [path.relative_to(folder.path).as_posix() for path in names] == [
    *("config.json", "checkpoints", "prompt.npz", "results.json", "plots")
  ]
  folder.check()
  assert not list(tmp_path.iterdir())
  folder.create()
  folder.create()
  assert folder.path.is_dir() and not list(folder.path.iterdir())
  monkeypatch.chdir(tmp_path)
  RunFolder("runs/b").create()
  assert (tmp_path / "runs" / "b").is_dir()


@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize("content", [{"job": "pretrain"}, {}, []])
def test_another_jobs_run(tmp_path, name, content):
  write_json(tmp_path / name, {"job": "export", "k": 1})
  RunFolder(tmp_path).check("export")
  write_json(tmp_path / name, content)
  line = f"{name} is of job=('pretrain'|None); job='export'"
  with pytest.raises(RunFolderError, match=line):
    RunFolder(tmp_path).check("export")


@pytest.mark.parametrize("place", ["file", "file/a", "file/a/b"])
def test_a_file_in_the_way(tmp_path, place, monkeypatch):
  (tmp_path / "file").write_text("")
  for method in (RunFolder(tmp_path / place).check, RunFolder(tmp_path / place).create):
    with pytest.raises(RunFolderError, match=f"{tmp_path}/file is a file; a folder is needed"):
      method()
  # Processes other than the first need no folder.
  monkeypatch.setattr(hosts, "is_first", lambda: False)
  RunFolder(tmp_path / place).check()


def test_a_folder_that_is_not_writable(tmp_path, monkeypatch):
  """The answer of `os.access` is replaced: tests may run as a user who may write everywhere."""
  monkeypatch.setattr(os, "access", lambda *_: False)
  with pytest.raises(RunFolderError, match=f"{tmp_path} is not writable"):
    RunFolder(tmp_path / "a").check()


def test_json_keeps_order_and_takes_numbers_of_all_kinds(tmp_path):
  value = {
    "z": [True, None, "é", {"x": 0.1}],
    "numpy": [np.float32(0.5), np.int64(2**40), np.bool_(True), np.array([1, 2])],
    "jax": [jnp.float32(0.5), jnp.arange(2)],
    "tuple": (1, 2),
    "path": Path("a/b"),
    "no numbers": [float("nan"), np.float64("inf"), np.array([1.0, np.nan])],
  }
  write_json(tmp_path / "a.json", value)
  text = (tmp_path / "a.json").read_text()
  assert text.endswith("}\n") and json.loads(text) == read_json(tmp_path / "a.json")
  assert list(json.loads(text).items()) == [
    ("z", [True, None, "é", {"x": 0.1}]),
    ("numpy", [0.5, 2**40, True, [1, 2]]),
    ("jax", [0.5, [0, 1]]),
    ("tuple", [1, 2]),
    ("path", "a/b"),
    ("no numbers", [None, None, [1.0, None]]),
  ]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  write_json(tmp_path / "a.json", {"old": 1})
  with pytest.raises(TypeError, match="object"):
    write_json(tmp_path / "a.json", {"eval": {"base": [1, object()]}})
  monkeypatch.setattr(os, "fsync", no_space)
  with pytest.raises(RunFolderWriteError, match=r"a\.json: can't be written \(No space"):
    write_json(tmp_path / "a.json", {"new": 2})
  assert read_json(tmp_path / "a.json") == {"old": 1}
  assert len(list(tmp_path.iterdir())) == 1


def test_a_reason_without_a_number_is_told():
  with (
    pytest.raises(RunFolderWriteError, match=r"a\.npz: can't be written \(8 requested and 0 wri"),
    writing("a.npz"),
  ):
    raise OSError("8 requested and 0 written")  # NumPy's, on a full disk


@pytest.mark.parametrize("data", [b"", b'{"eval": ', b"\xff\xfe", b"[" * 100_000, None])
def test_json_that_is_damaged_or_missing(tmp_path, data):
  line = r"results\.json: can't be read \(No such file"
  if data is not None:
    (tmp_path / "results.json").write_bytes(data)
    line = r"results\.json: not JSON \(.*repair it"
  with pytest.raises(RunFolderError, match=line):
    read_json(tmp_path / "results.json")


def test_two_starts_warn_and_the_later_owns_the_folder(tmp_path, caplog):
  """Locks belong to open files, so that two objects in one process conflict as two processes do."""
  first = Presence(tmp_path)
  first.__enter__()
  assert not caplog.messages
  with Presence(tmp_path):
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}: ") and f'"process": {os.getpid()}' in line
    assert f'"{socket.gethostname()}"' in line and '"since": "20' in line
    first.__exit__(None, None, None)
    # The later one's mark stays.
    assert json.loads((tmp_path / "alive.json").read_text())["process"] == os.getpid()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_a_start_that_is_over_is_not_alive(tmp_path, caplog, how):
  first = Presence(tmp_path)
  first.__enter__()
  if how == "killed":  # the kernel closes its files
    first._file.close()
  else:
    first.__exit__(None, None, None)
  assert (tmp_path / "alive.json").exists() == (how == "killed")
  with Presence(tmp_path):
    assert not caplog.messages
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 3}', "\xff"])
def test_a_damaged_sign_is_none(tmp_path, caplog, content):
  (tmp_path / "alive.json").write_bytes(content.encode("latin-1"))
  with Presence(tmp_path):
    assert json.loads((tmp_path / "alive.json").read_text())["process"] == os.getpid()
  assert not caplog.messages


def test_it_makes_no_folder_and_waits_for_one(tmp_path, monkeypatch):
  folder = tmp_path / "run"
  with Presence(folder):
    assert not folder.exists()
    folder.mkdir()
    end = time.monotonic() + 60
    while not (folder / "alive.json").exists():
      assert time.monotonic() < end
      time.sleep(0.05)
  assert not list(folder.iterdir())
  # One that can't be marked is no reason to end.
  monkeypatch.setattr(json, "dump", no_space)
  with Presence(folder):
    pass
  assert not list(folder.iterdir())
