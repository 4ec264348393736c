"""Blocks of features: filled in any order, read by index, refused where they are of others."""

import errno
import json
import os
import pathlib

import numpy as np
import pytest

from pomp_jax.files.feature_blocks import DamagedBlockError, FeatureBlocks, FeatureCacheError
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
  with pytest.raises(FeatureCacheError, match="not empty, and no cache.json"):
    _open(tmp_path)
  (tmp_path / "cache.json").write_text("{")
  with pytest.raises(FeatureCacheError, match="not JSON"):
    _open(tmp_path)
  for content in ([], {}, {"block_size": 0, "made_from": {}}, {"block_size": 4, "made_from": 7}):
    (tmp_path / "cache.json").write_text(json.dumps(content))
    with pytest.raises(FeatureCacheError, match="not the description of a cache"):
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


def test_blocks_of_before_there_were_checksums_are_read(tmp_path):
  _filled(tmp_path)
  np.save(tmp_path / "block-00001.npy", FEATURES[4:8])
  found = _open(tmp_path).read(np.array([5]), np.array([[1]]))
  np.testing.assert_array_equal(found[0, 0], FEATURES[5, 1])


def test_a_disk_that_fails_names_the_file(tmp_path, monkeypatch):
  blocks = _filled(tmp_path / "cache")

  def fail(*_, **__):
    raise OSError(errno.EIO, "Input/output error")

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "open", fail)
    with pytest.raises(DamagedBlockError, match=r"block-00001.npy: can't be read \(.*output error"):
      blocks.read(np.array([5]), np.array([[1]]))
  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(RunFolderWriteError, match=r"block-00001.npy: can't be written \(Input/"):
    blocks.write(1, FEATURES[4:8])
  (tmp_path / "file").touch()
  with pytest.raises(RunFolderWriteError, match=r"file/cache: can't be written \(Not a directory"):
    _open(tmp_path / "file" / "cache").create()
