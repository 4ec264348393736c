"""Paths and their files: keys of files that may change, reading, what a disk can
fail with."""

import errno
import os
import pathlib

import pytest

from pomp_jax.errors import InputError, RunError, TryAgain
from pomp_jax.files import atomic, paths
from pomp_jax.files.atomic import disk_failure, why_unwritable
from pomp_jax.files.run_folder import (
  DamagedFileError,
  RunFolderWriteError,
  noting_failure,
)


def test_the_key_of_files_has_each_ones_path_size_and_time(tmp_path):
  files = [tmp_path / name for name in ("a", "b")]
  for file in files:
    file.write_bytes(b"1234")
    os.utime(file, ns=(10**18, 10**18))
  found = [
    paths.file_stamps(files),
    paths.file_stamps(files[::-1]),
    paths.file_stamps(files[:1]),
  ]
  assert paths.file_stamps(iter(map(str, files))) == found[0]
  files[1].write_bytes(b"12345")
  os.utime(files[1], ns=(10**18, 10**18))
  found.append(paths.file_stamps(files))
  files[1].write_bytes(b"1234")
  os.utime(files[1], ns=(10**18, 10**18 + 1))  # ns
  found.append(paths.file_stamps(files))
  files[1].unlink()
  found.append(paths.file_stamps(files))
  assert len(set(found)) == len(found)
  # A file that is missing has a key too, which is another once it is there.
  files[1].write_bytes(b"1234")
  assert paths.file_stamps(files) != found[-1]
  assert paths.file_stamps([tmp_path / "c"]) != paths.file_stamps([tmp_path / "d"])


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    ("root=/home/me/pictures", "root=pictures"),
    ("gs://bucket/a/pictures is missing", "pictures is missing"),
    ("a '/users/me/x.npz', ~me/y and (~/z)", "a 'x.npz', y and (z)"),
    ("images/s, 1/2 and a/b", "images/s, 1/2 and a/b"),
    ({"a": ["/x/y", ("/x/z", 3)], "b": None}, {"a": ["y", ["z", 3]], "b": None}),
  ],
)
def test_values_without_folders(value, expected):
  assert paths.without_folders(value) == expected


def test_an_absolute_name_or_a_url_replaces_the_folder(tmp_path):
  assert paths.join("runs", "a", "b") == pathlib.Path("runs/a/b")
  assert paths.join("runs", tmp_path / "x") == tmp_path / "x"
  assert os.fspath(paths.join("runs", "gs://bucket/x", "y")) == "gs://bucket/x/y"
  assert os.fspath(paths.join("gs://bucket", "x")) == "gs://bucket/x"


def test_the_cache_is_in_the_users_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
  assert paths.cache_folder() == tmp_path / "own" / "pomp_jax"
  monkeypatch.setenv("XDG_CACHE_HOME", "")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert paths.cache_folder() == tmp_path / ".cache" / "pomp_jax"


def test_text_has_a_byte_order_mark_or_none(tmp_path):
  for mark in (b"", b"\xef\xbb\xbf"):
    (tmp_path / "a.txt").write_bytes(mark + "é".encode())
    assert paths.read_text(tmp_path / "a.txt", InputError) == "é"
  (tmp_path / "a.txt").write_bytes(b"\xe9")
  with pytest.raises(InputError, match=r"a\.txt: not UTF-8"):
    paths.read_text(tmp_path / "a.txt", InputError)
  with pytest.raises(InputError, match=r"b\.txt: can't be read \(No such file"):
    paths.read_text(tmp_path / "b.txt", InputError)


def test_json_of_users_is_read_with_options_or_is_one_line(tmp_path):
  file = tmp_path / "a.json"
  file.write_text('{"a": 0.5}')
  assert paths.read_user_json(file, InputError, parse_float=str) == {"a": "0.5"}
  for content in (b"{", b"\xff", b"9" * 5000, b"[" * 100_000):
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: not JSON[^\n]*$"):
      paths.read_user_json(file, InputError)


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO"])
def test_each_failure_of_a_disk_is_told_with_its_file(code):
  error = OSError(getattr(errno, code), "full", "a/b.npz")
  assert disk_failure(error) == "a/b.npz: the disk fails (full)"
  assert disk_failure(OSError(getattr(errno, code), "full")) == "the disk fails (full)"


def test_a_failure_of_a_disk_is_found_behind_other_errors():
  full = OSError(errno.ENOSPC, "full", "a")
  by_cause, by_context = RuntimeError("x"), RuntimeError("y")
  by_cause.__cause__, by_context.__context__ = by_context, full
  assert disk_failure(by_cause) == "a: the disk fails (full)"
  for message in (
    "No space left on device",
    "Disk quota exceeded",
    "8 requested and 0 written",
  ):
    assert (
      disk_failure(RuntimeError(f"C++: {message}!")) == f"the disk fails ({message})"
    )
  circle = RuntimeError("x")
  circle.__cause__ = by_context
  by_context.__context__ = circle
  assert disk_failure(circle) is None
  assert disk_failure(OSError(errno.EACCES, "denied", "a")) is None


@pytest.mark.parametrize("allowed", [os.W_OK, os.X_OK, os.W_OK | os.X_OK])
def test_a_folder_is_written_to_by_whom_it_lets_in(tmp_path, monkeypatch, allowed):
  monkeypatch.setattr(atomic.os, "access", lambda path, asked: asked & allowed == asked)
  both = allowed == os.W_OK | os.X_OK
  expected = None if both else f"{tmp_path} is not writable"
  assert why_unwritable(tmp_path / "a" / "b") == expected


def failed(folder, error):
  """What the folder has of a start that raises it."""
  with pytest.raises(type(error)), noting_failure(folder):
    raise error
  file = folder / "error.txt"
  return file.read_text() if file.exists() else None


def test_a_run_notes_why_it_failed_but_not_that_its_input_was_bad(tmp_path):
  assert failed(tmp_path, RunError("the loss is bad")) == "the loss is bad"
  assert failed(tmp_path, TryAgain("busy")) == "busy"
  assert failed(tmp_path, KeyError("x")) == "KeyError: 'x'"
  full = RunFolderWriteError("a: can't be written")
  assert failed(tmp_path, full) == "a: can't be written"
  found = failed(tmp_path, OSError(errno.ENOSPC, "full", "a"))
  assert found == "a: the disk fails (full)"
  # The next start removes it, and bad input or a request to stop leaves none.
  assert failed(tmp_path, InputError("no such field")) is None
  assert failed(tmp_path, DamagedFileError("a: not JSON")) is None
  assert failed(tmp_path, KeyboardInterrupt()) is None
  assert (
    failed(tmp_path / "none", RunError("x")) is None
    and not (tmp_path / "none").exists()
  )
