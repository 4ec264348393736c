"""Arrays by what they were computed from, in memory and in files; blocks of image features."""

import errno
import hashlib
import io
import logging
import os
import zlib

import numpy as np
import pytest

from pomp_jax.files import array_cache
from pomp_jax.files.array_cache import (
  ArrayCache,
  DamagedBlockError,
  FeatureBlocks,
  FeatureCacheError,
  fingerprint,
)
from pomp_jax.files.run_folder import RunFolderWriteError

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


def test_a_folder_keeps_what_memory_does_not(tmp_path, monkeypatch):
  folder = tmp_path / "new" / "cache"
  ArrayCache(folder).keep("a", ARRAY)
  ArrayCache(folder).keep("b", ARRAY, write=False)
  monkeypatch.setattr(os, "fsync", no_space)
  with pytest.raises(RunFolderWriteError, match=r"c.npy: can't be written \(No space left"):
    ArrayCache(folder).keep("c", ARRAY)
  assert [path.name for path in folder.iterdir()] == ["a.npy"]
  np.testing.assert_array_equal(ArrayCache(folder).find("a"), ARRAY)
  assert ArrayCache(folder).find("b") is None


def no_space(*_):
  raise OSError(errno.ENOSPC, "No space left on device")


def with_checksum(content: bytes) -> bytes:
  return content + zlib.crc32(content).to_bytes(4, "little")


@pytest.mark.parametrize("array", [np.arange(5), ARRAY])
def test_no_damage_comes_back_as_an_array(tmp_path, caplog, array):
  """One bit of each byte, NumPy's header included, which has the type and the shape; others."""
  ArrayCache(tmp_path).keep("a", array)
  path = tmp_path / "a.npy"
  content = path.read_bytes()
  np.testing.assert_array_equal(np.load(path), array)
  body, pickled = content[:-4], io.BytesIO()
  np.save(pickled, np.array([{}]), allow_pickle=True)
  bad = [
    *(body, content[:9], b"", b"not an array"),
    # With a right checksum: a header, which NumPy reads as Python, and pickled objects.
    *map(with_checksum, (body.replace(b"'shape': (", b"'shape':(("), pickled.getvalue(), b"")),
    *(content[:start] + b"\xff" * 8 + content[start + 8 :] for start in (8, 60, len(content) - 8)),
  ]
  for byte in range(len(content)):
    flipped = bytearray(content)
    flipped[byte] ^= 1 << byte % 8
    bad.append(bytes(flipped))
  with caplog.at_level(logging.WARNING):
    for damaged in bad:
      path.write_bytes(damaged)
      assert ArrayCache(tmp_path).find("a") is None, damaged
    np.save(path, array)  # as before there were checksums
    assert ArrayCache(tmp_path).find("a") is None
  assert len(caplog.records) == len(bad) + 1
  assert all("a.npy: " in line for line in caplog.messages)


MADE_FROM = {"clip": "x", "seed": 3, "augmentation": {"kind": "recipe", "views": 2}}
FEATURES = np.random.default_rng(0).standard_normal((10, 3, 4)).astype(np.float32)
EVERY = np.arange(10), np.tile([0, 1, 2], (10, 1))


def blocks_in(folder, made_from=MADE_FROM, **changes):
  sizes = {"n_images": 10, "n_versions": 3, "width": 4, "block_size": 4} | changes
  return FeatureBlocks(folder, made_from=made_from, **sizes)


def filled(folder):
  blocks = blocks_in(folder)
  blocks.create()
  for block in (2, 0, 1):
    blocks.write(block, FEATURES[blocks.indices(block)])
  return blocks


def test_rows_come_back_by_image_and_version(tmp_path):
  filled(tmp_path / "cache")
  blocks = blocks_in(tmp_path / "cache")
  assert blocks.missing() == []
  indices, versions = np.array([9, 0, 5, 0]), np.array([[0, 2], [1, 1], [2, 0], [0, 1]])
  np.testing.assert_array_equal(
    blocks.read(indices, versions), FEATURES[indices[:, None], versions]
  )


def test_what_is_missing_is_known_and_a_new_start_keeps_the_blocks_as_they_are_cut(tmp_path):
  blocks = blocks_in(tmp_path / "cache")
  assert blocks.missing() == [0, 1, 2]
  assert not (tmp_path / "cache").exists()
  blocks.create()
  with pytest.raises(ValueError, match="block 2 takes float32"):
    blocks.write(2, FEATURES[:4])
  blocks.write(1, FEATURES[4:8])
  again = blocks_in(tmp_path / "cache", block_size=100)
  assert (again.block_size, again.n_blocks, again.missing()) == (4, 3, [0, 2])
  assert [again.indices(block).tolist() for block in (0, 2)] == [[0, 1, 2, 3], [8, 9]]


OTHER_KIND = MADE_FROM | {"augmentation": {"kind": "crop", "views": 2}}


@pytest.mark.parametrize(
  "made_from, changes, message",
  [
    (MADE_FROM | {"clip": "y"}, {}, "made_from.clip is 'x', this run needs 'y'"),
    (OTHER_KIND, {}, "made_from.augmentation.kind is 'recipe', this run needs 'crop'"),
    (MADE_FROM, {"width": 5}, "width is 4, this run needs 5"),
  ],
)
def test_a_cache_of_something_else_is_refused_by_field(tmp_path, made_from, changes, message):
  filled(tmp_path)
  with pytest.raises(FeatureCacheError, match=message):
    blocks_in(tmp_path, made_from, **changes)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
  (tmp_path / "thesis.txt").write_text("mine")
  with pytest.raises(FeatureCacheError, match="cache.json"):
    blocks_in(tmp_path)
  for content in (
    "{",
    "[]",
    '{"block_size": 0, "made_from": {}}',
    '{"block_size": 4, "made_from": 7}',
  ):
    (tmp_path / "cache.json").write_text(content)
    with pytest.raises(FeatureCacheError, match="cache.json: "):
      blocks_in(tmp_path)


def test_damaged_blocks_are_computed_again_and_whole_ones_are_not(tmp_path, caplog):
  """Those of earlier versions had a checksum of the array alone; the earliest had none."""
  filled(tmp_path)
  path = tmp_path / "block-00000.npy"
  np.save(path, FEATURES[:4])
  with path.open("ab") as file:
    file.write(with_checksum(FEATURES[:4].tobytes())[-4:])
  np.save(tmp_path / "block-00001.npy", FEATURES[4:8])
  (tmp_path / "block-00002.npy").unlink()
  blocks = blocks_in(tmp_path)
  assert (blocks.missing(), blocks.to_compute()) == ([2], [1, 2])
  (line,) = caplog.messages
  assert "block-00001.npy: " in line
  for index in (5, 9):
    with pytest.raises(DamagedBlockError, match=f"block-0000{index // 4}.npy: "):
      blocks.read(np.array([0, index]), np.zeros((2, 1), np.int64))
  assert blocks.read(np.array([0, 3]), np.zeros((2, 1), np.int64)).shape == (2, 1, 4)
  for block in (1, 2):
    blocks.write(block, FEATURES[blocks.indices(block)])
  assert blocks_in(tmp_path).to_compute() == []
  np.testing.assert_array_equal(blocks_in(tmp_path).read(*EVERY), FEATURES)


def test_what_a_killed_writer_left_does_not_block_the_folder(tmp_path):
  for name in (".cache.json.abc123.tmp", ".block-00000.npy.abc123.tmp"):
    (tmp_path / name).write_text("half")
  assert filled(tmp_path).to_compute() == []


def test_of_two_starts_at_once_the_later_takes_over_or_is_refused(tmp_path):
  """Both have found an empty folder; one has described it before the other does."""
  first, same, other = (blocks_in(tmp_path, MADE_FROM | {"seed": seed}) for seed in (3, 3, 4))
  same.block_size = 5
  first.create()
  same.create()
  assert same.block_size == 4
  with pytest.raises(FeatureCacheError, match="made_from.seed is 3, this run needs 4"):
    other.create()
  assert blocks_in(tmp_path).block_size == 4


def test_a_start_between_two_looks_at_the_folder_is_no_other_use(tmp_path, monkeypatch):
  first, exists = blocks_in(tmp_path), array_cache.exists

  def look_and_create(path):
    found = exists(path)
    monkeypatch.undo()
    first.create()
    return found

  monkeypatch.setattr(array_cache, "exists", look_and_create)
  assert blocks_in(tmp_path).missing() == [0, 1, 2]


def test_a_disk_that_fails_names_the_file(tmp_path, monkeypatch):
  blocks = filled(tmp_path / "cache")

  def fail(*_, **__):
    raise OSError(errno.EIO, "Input/output error")

  with monkeypatch.context() as patch:
    patch.setattr(np, "memmap", fail)
    with pytest.raises(DamagedBlockError, match=r"block-00001.npy: can't be read \(.*output error"):
      blocks.read(np.array([5]), np.array([[1]]))
  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(RunFolderWriteError, match=r"block-00001.npy: can't be written \(Input/"):
    blocks.write(1, FEATURES[4:8])
