"""Blocks of features: filled in any order, read by index, refused where they are of others."""

import concurrent.futures
import errno
import json
import os
import threading
import zlib

import numpy as np
import pytest

from pomp_jax.files import array_cache
from pomp_jax.files.array_cache import DamagedBlockError, FeatureBlocks, FeatureCacheError
from pomp_jax.files.run_folder import RunFolderWriteError

MADE_FROM = {"clip": "x", "seed": 3, "augmentation": {"kind": "recipe", "views": 2}}
FEATURES = np.random.default_rng(0).standard_normal((10, 3, 4)).astype(np.float32)


def _open(folder, made_from=MADE_FROM, **changes):
  sizes = {"n_images": 10, "n_versions": 3, "width": 4, "block_size": 4} | changes
  return FeatureBlocks(folder, made_from=made_from, **sizes)


def _filled(folder):
  blocks = _open(folder)
  blocks.create()
  for block in (2, 0, 1):
    blocks.write(block, FEATURES[blocks.indices(block)])
  return blocks


def test_rows_come_back_by_image_and_version(tmp_path):
  _filled(tmp_path / "cache")
  blocks = _open(tmp_path / "cache")
  assert blocks.missing() == []
  indices, versions = np.array([9, 0, 5, 0]), np.array([[0, 2], [1, 1], [2, 0], [0, 1]])
  np.testing.assert_array_equal(
    blocks.read(indices, versions), FEATURES[indices[:, None], versions]
  )


def test_what_is_missing_is_known_and_a_new_start_keeps_the_blocks_as_they_are_cut(tmp_path):
  blocks = _open(tmp_path / "cache")
  assert blocks.missing() == [0, 1, 2]
  assert not (tmp_path / "cache").exists()
  blocks.create()
  blocks.write(1, FEATURES[4:8])
  again = _open(tmp_path / "cache", block_size=100)
  assert (again.block_size, again.n_blocks, again.missing()) == (4, 3, [0, 2])
  assert [again.indices(block).tolist() for block in (0, 2)] == [[0, 1, 2, 3], [8, 9]]


def test_each_block_is_checked_once(tmp_path, monkeypatch):
  _filled(tmp_path)
  checked, is_intact = [], array_cache._is_intact
  monkeypatch.setattr(
    array_cache, "_is_intact", lambda content: checked.append(1) or is_intact(content)
  )
  blocks = _open(tmp_path)
  assert blocks.to_compute() == []
  assert blocks.unreadable().tolist() == []
  assert len(checked) == 3
  # A block that is written later is read again.
  blocks.write(1, np.full((4, 3, 4), np.nan, np.float32))
  assert blocks.unreadable().tolist() == [4, 5, 6, 7]


def test_a_block_of_the_wrong_shape_is_not_written(tmp_path):
  blocks = _open(tmp_path)
  blocks.create()
  with pytest.raises(ValueError, match="block 2 takes float32"):
    blocks.write(2, FEATURES[:4])
  assert blocks.missing() == [0, 1, 2]


@pytest.mark.parametrize(
  "made_from, changes, message",
  [
    (MADE_FROM | {"clip": "y"}, {}, "made_from.clip is 'x', this run needs 'y'"),
    (
      MADE_FROM | {"augmentation": {"kind": "crop", "views": 2}},
      {},
      "made_from.augmentation.kind is 'recipe', this run needs 'crop'",
    ),
    (MADE_FROM | {"more": 1}, {}, "made_from.more is None, this run needs 1"),
    (MADE_FROM, {"n_images": 11}, "n_images is 10, this run needs 11"),
    (MADE_FROM, {"width": 5}, "width is 4, this run needs 5"),
  ],
)
def test_a_cache_of_something_else_is_refused_by_field(tmp_path, made_from, changes, message):
  _filled(tmp_path)
  with pytest.raises(FeatureCacheError, match=message):
    _open(tmp_path, made_from, **changes)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
  (tmp_path / "thesis.txt").write_text("mine")
  with pytest.raises(FeatureCacheError, match="cache.json"):
    _open(tmp_path)
  (tmp_path / "cache.json").write_text("{")
  with pytest.raises(FeatureCacheError, match="cache.json: "):
    _open(tmp_path)
  for content in ([], {}, {"block_size": 0, "made_from": {}}, {"block_size": 4, "made_from": 7}):
    (tmp_path / "cache.json").write_text(json.dumps(content))
    with pytest.raises(FeatureCacheError, match="cache.json: "):
      _open(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "bit", "pickle", "shape", "type", "gone"])
def test_a_damaged_block_is_named(tmp_path, damage):
  _filled(tmp_path)
  path = tmp_path / "block-00001.npy"
  match damage:
    case "cut":
      path.write_bytes(path.read_bytes()[:-9])
    case "bit":
      content = bytearray(path.read_bytes())
      content[-30] ^= 1
      path.write_bytes(content)
    case "pickle":
      np.save(path, np.array([{}]), allow_pickle=True)
    case "shape":
      np.save(path, FEATURES[:3])
    case "type":
      np.save(path, FEATURES[4:8].astype(np.float64))
    case "gone":
      path.unlink()
  blocks = _open(tmp_path)
  with pytest.raises(DamagedBlockError, match="block-00001.npy: "):
    blocks.read(np.array([0, 5]), np.zeros((2, 1), np.int64))
  assert blocks.read(np.array([0, 9]), np.zeros((2, 1), np.int64)).shape == (2, 1, 4)


def test_damaged_blocks_are_computed_again_and_whole_ones_are_not(tmp_path, caplog):
  """Those of earlier versions had a checksum of the array alone; the earliest had none."""
  _filled(tmp_path)
  path = tmp_path / "block-00000.npy"
  np.save(path, FEATURES[:4])
  with path.open("ab") as file:
    file.write(zlib.crc32(FEATURES[:4].tobytes()).to_bytes(4, "little"))
  np.save(tmp_path / "block-00001.npy", FEATURES[4:8])
  (tmp_path / "block-00002.npy").unlink()
  blocks = _open(tmp_path)
  assert (blocks.missing(), blocks.to_compute()) == ([2], [1, 2])
  (line,) = caplog.messages
  assert "block-00001.npy: " in line
  for block in (1, 2):
    blocks.write(block, FEATURES[blocks.indices(block)])
  assert _open(tmp_path).to_compute() == []
  every = np.arange(10)
  np.testing.assert_array_equal(
    _open(tmp_path).read(every, np.tile([0, 1, 2], (10, 1))), FEATURES[every]
  )


def test_three_writers_at_once_fill_one_cache(tmp_path):
  """Threads with files of their own meet the file system as processes do."""
  meet = threading.Barrier(3, timeout=60)

  def fill(number):
    meet.wait()
    blocks = _open(tmp_path / str(number))
    blocks.create()
    for block in blocks.to_compute():
      blocks.write(block, FEATURES[blocks.indices(block)])
    return _open(tmp_path / str(number)).to_compute()

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    for number in range(40):
      assert list(pool.map(fill, [number] * 3)) == [[], [], []]
  assert not list(tmp_path.rglob("*.tmp"))
  every = np.arange(10)
  found = _open(tmp_path / "0").read(every, np.tile([0, 1, 2], (10, 1)))
  np.testing.assert_array_equal(found, FEATURES)


def test_what_a_killed_writer_left_does_not_block_the_folder(tmp_path):
  for name in (".cache.json.abc123.tmp", ".block-00000.npy.abc123.tmp"):
    (tmp_path / name).write_text("half")
  blocks = _filled(tmp_path)
  assert blocks.to_compute() == []


def test_of_two_starts_at_once_the_later_takes_over_or_is_refused(tmp_path):
  """Both have found an empty folder; one has described it before the other does."""
  first, same, other = (_open(tmp_path, MADE_FROM | {"seed": seed}) for seed in (3, 3, 4))
  same.block_size = 5
  first.create()
  same.create()
  assert same.block_size == 4
  with pytest.raises(FeatureCacheError, match="made_from.seed is 3, this run needs 4"):
    other.create()
  assert _open(tmp_path).block_size == 4


def test_a_disk_that_fails_names_the_file(tmp_path, monkeypatch):
  blocks = _filled(tmp_path / "cache")

  def fail(*_, **__):
    raise OSError(errno.EIO, "Input/output error")

  with monkeypatch.context() as patch:
    patch.setattr(np, "memmap", fail)
    with pytest.raises(DamagedBlockError, match=r"block-00001.npy: can't be read \(.*output error"):
      blocks.read(np.array([5]), np.array([[1]]))
  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(RunFolderWriteError, match=r"block-00001.npy: can't be written \(Input/"):
    blocks.write(1, FEATURES[4:8])
  (tmp_path / "file").touch()
  with pytest.raises(RunFolderWriteError, match=r"cache.json: can't be written \(Not a directory"):
    _open(tmp_path / "file" / "cache").create()
