"""The mark of the process that uses a run's folder."""

import json
import os
import socket
import time

import pytest

from pomp_jax.files import run_folder
from pomp_jax.files.run_folder import Presence


def test_two_starts_warn_and_the_later_owns_the_folder(tmp_path, caplog):
  """Locks belong to open files, so that two objects in one process conflict as two processes do."""
  first = Presence(tmp_path)
  first.__enter__()
  assert not caplog.messages
  with Presence(tmp_path):
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}: ") and f"process {os.getpid()} on " in line
    assert f"{socket.gethostname()}, since 20" in line
    assert not first._renew()
    assert len(caplog.messages) == 2
    first.__exit__(None, None, None)
    # The later one's mark stays.
    assert json.loads((tmp_path / "alive.json").read_text())["process"] == os.getpid()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_a_start_that_is_over_is_not_alive(tmp_path, caplog, how):
  first = Presence(tmp_path)
  first.__enter__()
  first._ended.set()
  if how == "killed":  # the kernel closes its files
    first._file.close()
  else:
    first.__exit__(None, None, None)
  assert (tmp_path / "alive.json").exists() == (how == "killed")
  with Presence(tmp_path):
    assert not caplog.messages
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("host", "age", "alive"),
  [("elsewhere", 10, True), ("elsewhere", 60, False), (socket.gethostname(), 0, False)],
)
def test_of_another_host_a_fresh_time_stamp_tells(tmp_path, caplog, host, age, alive):
  file = tmp_path / "alive.json"
  file.write_text(json.dumps({"host": host, "process": 7, "since": "today\x1b[2J"}))
  os.utime(file, (time.time() - age, time.time() - age))
  with Presence(tmp_path):
    assert [f"process 7 on {host}, since today" in line for line in caplog.messages] == [
      True
    ] * alive
    assert all(line.isprintable() for line in caplog.messages)


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


def test_the_time_stamp_is_renewed(tmp_path, monkeypatch):
  monkeypatch.setattr(run_folder, "_BEAT_SECONDS", 0.05)
  with Presence(tmp_path):
    file = tmp_path / "alive.json"
    os.utime(file, (0, 0))
    end = time.monotonic() + 60
    while file.stat().st_mtime < 1:
      assert time.monotonic() < end
      time.sleep(0.05)


def test_a_folder_that_can_not_be_marked_is_no_reason_to_end(tmp_path, monkeypatch):
  def fail(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(run_folder.tempfile, "mkstemp", fail)
  with Presence(tmp_path):
    pass
  assert not list(tmp_path.iterdir())
