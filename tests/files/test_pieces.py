"""Finished pieces: what is missing, stored and damaged; cache keys, and arrays in
memory."""

from collections.abc import Callable
import hashlib
import logging
import pathlib
from unittest import mock

import numpy as np
import pytest

from pomp_jax.errors import InputError
from pomp_jax.files.pieces import ArrayCache, Pieces, fingerprint
from pomp_jax.files.run_folder import (
  RunFolderError,
  RunFolderWriteError,
  read_json,
  write_json,
)

FACTS = {"top1": 0.5, "name": "Äpfel", "steps": [1, 2]}
ARRAYS = {"counts": np.arange(12).reshape(3, 4), "empty": np.zeros((0, 2), np.float32)}


def test_what_is_missing_is_what_was_not_saved_under_this_key(tmp_path, caplog):
  pieces = Pieces(tmp_path / "pieces", "key")
  assert pieces.missing(["a", "b"]) == ["a", "b"] and not pieces.folder.exists()
  pieces.save("a", FACTS)
  pieces.save("b", FACTS, ARRAYS)
  assert pieces.missing(["a", "b", "c"]) == ["c"]
  assert pieces.missing(["a", "b"], fits=lambda facts: facts["top1"] > 0.5) == [
    "a",
    "b",
  ]
  assert Pieces(pieces.folder, "other").missing(["a", "b"]) == ["a", "b"]
  assert Pieces(pieces.folder, {"a": "key", "b": "other"}).missing(["a", "b"]) == ["b"]
  np.savez(pieces.path("d", "npz"), context=np.zeros(3))  # no piece
  assert pieces.missing(["d"]) == ["d"] and not caplog.messages
  pieces.remove()
  assert pieces.load("a") is None
  with pytest.raises(RunFolderError, match=r"a\.json"):
    pieces.read("a")


@pytest.mark.parametrize("arrays", [None, ARRAYS, {}])
def test_a_piece_is_read_as_it_was_saved(tmp_path, arrays):
  pieces = Pieces(tmp_path, "key")
  saved = pieces.save("a", FACTS, arrays)
  for piece in (saved, pieces.load("a"), pieces.read("a")):
    assert piece.facts == {"key": "key", **FACTS}
    assert piece.arrays.keys() == (arrays or {}).keys()
    for name, array in piece.arrays.items():
      assert array.dtype == ARRAYS[name].dtype and np.array_equal(array, ARRAYS[name])
  if arrays is None:
    assert read_json(pieces.path("a")) == saved.facts | {"piece": "a"}


def config(path):
  write_json(path, FACTS)
  return lambda: read_json(path)


def piece(path):
  pieces = Pieces(path.parent, "key")
  pieces.save(path.stem, FACTS, ARRAYS if path.suffix == ".npz" else None)

  def find():
    facts, arrays = pieces.read(path.stem)
    return facts, {name: array.tolist() for name, array in arrays.items()}

  return find


@pytest.mark.parametrize(
  ("name", "write"),
  [("config.json", config), ("a.json", piece), ("a.npz", piece)],
)
def test_no_flipped_bit_becomes_another_figure(tmp_path, caplog, name, write):
  caplog.set_level(logging.ERROR)
  check_flipped_bits(tmp_path / name, write(tmp_path / name))


def check_flipped_bits(path: pathlib.Path, find: Callable[[], object]) -> None:
  """Asserts that what `find` reads of a file with a flipped bit is the same, or an
  error."""
  whole, content, noticed = find(), path.read_bytes(), 0
  bits = np.random.default_rng(0).permutation(8 * len(content))[:1300].tolist()
  for bit in bits:
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    try:
      assert find() == whole, bit
    except InputError:
      noticed += 1
  assert noticed > len(bits) / 2


@pytest.mark.parametrize(
  "change", [np.ravel, lambda one: one.view(np.uint64), np.zeros_like]
)
def test_an_array_of_another_type_or_shape_is_not_what_was_saved(
  tmp_path, caplog, change
):
  """Of the same bytes too, and in an archive whose own checksums are right."""
  pieces = Pieces(tmp_path, "key")
  pieces.save("a", FACTS, ARRAYS)
  path = pieces.path("a", "npz")
  with np.load(path) as archive:
    arrays = {name: archive[name] for name in archive.files}
  np.savez(path, **arrays | {"counts": change(arrays["counts"])})
  assert (
    pieces.missing(["a"]) == ["a"] and "changed after it was written" in caplog.text
  )
  np.savez(path, **{name: array for name, array in arrays.items() if name != "empty"})
  assert pieces.missing(["a"]) == ["a"]


def test_a_cut_piece_is_a_warning_and_a_folder_that_is_a_file_an_error(
  tmp_path, caplog
):
  pieces = Pieces(tmp_path / "pieces", "key")
  pieces.save("a", FACTS, ARRAYS)
  path = pieces.path("a", "npz")
  path.write_bytes(path.read_bytes()[:100])
  assert pieces.missing(["a"]) == ["a"]
  assert f"{path}: can't be read" in caplog.text
  (tmp_path / "file").write_text("")
  with pytest.raises(RunFolderWriteError, match="file"):
    Pieces(tmp_path / "file", "key").save("a", FACTS)


@pytest.mark.parametrize("arrays", [None, ARRAYS])
def test_swapped_pieces_of_one_key_are_computed_again(tmp_path, caplog, arrays):
  """Of an earlier version, without its name, a piece is taken by its key alone."""
  pieces = Pieces(tmp_path, "key")
  a, b, c = (pieces.path(name, "json" if arrays is None else "npz") for name in "abc")
  for name in "abc":
    pieces.save(name, FACTS, arrays)
  assert pieces.missing("abc") == []
  b.replace(tmp_path / "b")
  a.replace(b)
  (tmp_path / "b").replace(a)
  assert pieces.missing("abc") == ["a", "b"]
  assert [
    str(path) in text for path, text in zip((a, b), caplog.messages, strict=True)
  ] == [1, 1]
  if arrays is None:
    write_json(c, {"key": "key", **FACTS})
    assert pieces.read("c").facts == {"key": "key", **FACTS}


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
  # Computed once; what is kept is read-only.
  compute = mock.Mock(return_value=ARRAY + 1)
  cache = ArrayCache(folder)
  for _ in range(2):
    np.testing.assert_array_equal(cache.get("c", compute), ARRAY + 1)
  np.testing.assert_array_equal(ArrayCache(folder).get("c", compute), ARRAY + 1)
  assert compute.call_count == 1
  (folder / "a.npz").rename(folder / "b.npz")
  assert ArrayCache(folder).find("b") is None
