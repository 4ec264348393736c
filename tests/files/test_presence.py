"""The mark of the process that uses a run's folder."""

import json
import os
import socket
import time

import pytest

from pomp_jax.files.run_folder import Presence


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


def test_it_makes_no_folder_and_waits_for_one(tmp_path):
  folder = tmp_path / "run"
  with Presence(folder):
    assert not folder.exists()
    folder.mkdir()
    end = time.monotonic() + 60
    while not (folder / "alive.json").exists():
      assert time.monotonic() < end
      time.sleep(0.05)
  assert not list(folder.iterdir())


def test_a_folder_that_can_not_be_marked_is_no_reason_to_end(tmp_path, monkeypatch):
  def fail(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(json, "dump", fail)
  with Presence(tmp_path):
    pass
  assert not list(tmp_path.iterdir())
