"""Arrays by what they were computed from, in memory and in a folder."""

import hashlib

import numpy as np
import pytest

from pomp_jax.files.array_cache import ArrayCache, fingerprint

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_fingerprint_is_sha_256_of_types_shapes_and_contents():
  content = b"text 2\nab<f4 (2, 3)\n" + ARRAY.tobytes()
  assert fingerprint(["ab", ARRAY]) == hashlib.sha256(content).hexdigest()
  # Also of what is not contiguous.
  assert fingerprint([np.asfortranarray(ARRAY)]) == fingerprint([ARRAY])
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
  assert [path.name for path in folder.iterdir()] == ["a.npz"]
  found = ArrayCache(folder).find("a")
  assert found.dtype == ARRAY.dtype and not found.flags.writeable
  np.testing.assert_array_equal(found, ARRAY)
  assert ArrayCache(folder).find("b") is None
  (folder / "a.npz").rename(folder / "b.npz")
  assert ArrayCache(folder).find("b") is None
