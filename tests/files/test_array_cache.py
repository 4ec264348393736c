"""Arrays by what they were computed from: in memory, in files, and damaged."""

import errno
import hashlib
import logging
import os

import numpy as np
import pytest

from pomp_jax.files.array_cache import ArrayCache, fingerprint
from pomp_jax.files.run_folder import RunFolderWriteError

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_fingerprint_is_sha_256_of_types_shapes_and_contents():
  content = b"text 2\nab<f4 (2, 3)\n" + ARRAY.tobytes()
  assert fingerprint(["ab", ARRAY]) == hashlib.sha256(content).hexdigest()
  # Also of what is not contiguous.
  assert fingerprint([np.asfortranarray(ARRAY)]) == fingerprint([ARRAY])


def test_what_differs_has_another_fingerprint():
  parts = [
    ["ab", "c"], ["a", "bc"], ["abc"], [ARRAY], [ARRAY.T], [ARRAY.ravel()], [ARRAY + 1],
    [ARRAY.astype(np.float64)], [ARRAY.view(np.int32)], ["ab", ARRAY], [ARRAY, "ab"], [],
  ]  # fmt: skip
  assert len({fingerprint(part) for part in parts}) == len(parts)


def test_memory_holds_the_latest_used_and_gives_them_read_only():
  cache = ArrayCache(in_memory=2)
  for key in ("a", "b"):
    cache.keep(key, ARRAY.copy())
  assert cache.find("a") is not None
  cache.keep("c", ARRAY.copy())
  assert cache.find("b") is None
  np.testing.assert_array_equal(cache.find("a"), ARRAY)
  with pytest.raises(ValueError, match="read-only"):
    cache.find("a")[0, 0] = 7


def test_a_folder_keeps_what_memory_does_not(tmp_path):
  folder = tmp_path / "new" / "cache"
  ArrayCache(folder).keep("a", ARRAY)
  ArrayCache(folder).keep("b", ARRAY, write=False)
  assert [path.name for path in folder.iterdir()] == ["a.npy"]
  np.testing.assert_array_equal(ArrayCache(folder).find("a"), ARRAY)
  assert ArrayCache(folder).find("b") is None


def test_no_flipped_bit_comes_back_as_an_array(tmp_path, caplog):
  """One bit of each byte, NumPy's header included, which has the type and the shape."""
  array = np.arange(5)
  ArrayCache(tmp_path).keep("a", array)
  path, content = tmp_path / "a.npy", (tmp_path / "a.npy").read_bytes()
  np.testing.assert_array_equal(np.load(path), array)
  with caplog.at_level(logging.WARNING):
    for byte in range(len(content)):
      flipped = bytearray(content)
      flipped[byte] ^= 1 << byte % 8
      path.write_bytes(flipped)
      assert ArrayCache(tmp_path).find("a") is None, byte
  assert len(caplog.records) == len(content)
  path.write_bytes(content)
  np.testing.assert_array_equal(ArrayCache(tmp_path).find("a"), array)


def test_a_file_of_before_there_were_checksums_is_replaced(tmp_path, caplog):
  np.save(tmp_path / "a.npy", ARRAY)
  cache = ArrayCache(tmp_path)
  assert cache.find("a") is None
  assert "a.npy: " in caplog.text
  cache.keep("a", ARRAY)
  np.testing.assert_array_equal(ArrayCache(tmp_path).find("a"), ARRAY)


def test_a_file_that_can_not_be_written_is_named(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(RunFolderWriteError, match=r"a.npy: can't be written \(No space left"):
    ArrayCache(tmp_path).keep("a", ARRAY)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "pickle", "text"])
def test_a_damaged_file_is_as_if_it_were_not_there(damage, tmp_path, caplog):
  ArrayCache(tmp_path).keep("a", ARRAY)
  path = tmp_path / "a.npy"
  match damage:
    case "cut":
      path.write_bytes(path.read_bytes()[:-4])
    case "empty":
      path.write_bytes(b"")
    case "header":  # which NumPy reads as Python
      path.write_bytes(path.read_bytes().replace(b"'shape': (", b"'shape':(("))
    case "pickle":
      np.save(path, np.array([{}]), allow_pickle=True)
    case "text":
      path.write_text("not an array")
  with caplog.at_level(logging.WARNING):
    assert ArrayCache(tmp_path).find("a") is None
  assert "a.npy: " in caplog.text
  cache = ArrayCache(tmp_path)
  cache.keep("a", ARRAY)
  np.testing.assert_array_equal(ArrayCache(tmp_path).find("a"), ARRAY)
