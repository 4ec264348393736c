"""Stored features of images: what comes back is what was written, or an error that
names it."""

import logging
import pickle
import random
import tracemalloc

import numpy as np
import pytest

from pomp_jax.files import features as module
from pomp_jax.files.features import DamagedFeaturesError, Features
from pomp_jax.files.run_folder import RunFolderWriteError
from tests.support import stores

# Of ten images, in blocks of four, one is unreadable, and one has no feature but zero.
FEATURES = np.random.default_rng(0).standard_normal((10, 6, 8)).astype(np.float32)
FEATURES[5], FEATURES[0] = np.nan, 0
MADE_FROM = {"clip": "x", "seed": 3}
ALL = np.arange(10), np.tile(np.arange(6), (10, 1))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(module, "_BLOCK", 4)


def features_in(folder, made_from=MADE_FROM):
  return Features(folder, FEATURES.shape, made_from, together=(1, 2))


def filled(folder):
  features = features_in(folder)
  features.create()
  for block in (2, 0, 1):
    features.write(block, FEATURES[features.rows(block)])
  return features


@pytest.mark.parametrize("where", ["disk", *stores.SCHEMES])
def test_rows_come_back_by_image_and_version(where, tmp_path):
  with stores.running(*(() if where == "disk" else (where,))) as found:
    folder = (
      tmp_path / "new" / "features"
      if where == "disk"
      else found[where].url("new/features")
    )
    assert features_in(folder).stored() == []
    features = features_in(folder)
    features.create()
    assert features.to_compute() == [0, 1, 2] and features.size(2) == 2
    features.write(1, FEATURES[4:8])
    # Another start, and another process, at the same time.
    assert features_in(folder).to_compute() == [0, 2]
    assert filled(folder).complete() == [5]
    assert features_in(folder).to_compute() == []
    again = pickle.loads(pickle.dumps(features_in(folder)))
    np.testing.assert_array_equal(again.read(*ALL), FEATURES)
    indices, versions = (
      np.array([9, 0, 5, 0]),
      np.array([[0, 1], [2, 3], [4, 5], [5, 0]]),
    )
    expected = FEATURES[indices[:, None], versions]
    np.testing.assert_array_equal(again.read(indices, versions), expected)
    # Others' features in this folder are not taken for them.
    others = features_in(folder, MADE_FROM | {"seed": 4})
    others.create()
    assert others.to_compute() == [0, 1, 2]


@pytest.mark.parametrize("n_together", [1, 3, 4, 8, 10])
def test_blocks_have_whole_chunks(tmp_path, monkeypatch, n_together):
  for block, n_images in ((1024, 10), (7, 10), (4, 3)):
    monkeypatch.setattr(module, "_BLOCK", block)
    expected = FEATURES[:n_images]
    folder = tmp_path / f"{block} {n_images}"
    features = Features(folder, expected.shape, {}, together=(n_together, 2))
    features.create()
    for number in features.to_compute():
      features.write(number, expected[features.rows(number)])
    found = features.read(np.arange(n_images), ALL[1][:n_images])
    np.testing.assert_array_equal(found, expected)


def test_no_flipped_bit_comes_back_as_a_feature(tmp_path):
  filled(tmp_path)
  random_bits = random.Random(0)
  for path in 20 * sorted(tmp_path.glob("c.*")):
    content = path.read_bytes()
    damaged, byte = bytearray(content), random_bits.randrange(len(content))
    damaged[byte] ^= 1 << random_bits.randrange(8)
    path.write_bytes(damaged)
    with pytest.raises(DamagedFeaturesError, match=f"{tmp_path}.*{path.name}"):
      features_in(tmp_path).read(*ALL)
    path.write_bytes(content)


def swap(one, other):
  first = one.read_bytes()
  one.write_bytes(other.read_bytes())
  other.write_bytes(first)


def test_blocks_in_the_place_of_others_are_computed_again(tmp_path, caplog):
  filled(tmp_path / "one").complete()
  other = features_in(tmp_path / "other", MADE_FROM | {"seed": 4})
  other.create()
  for block in range(3):
    other.write(block, FEATURES[other.rows(block)])
  swap(*(tmp_path / "one" / f"c.{block}.0.0" for block in (0, 1)))
  swap(*(tmp_path / folder / "c.2.0.0" for folder in ("one", "other")))
  for image, block in ((0, 0), (7, 1), (9, 2)):
    with pytest.raises(DamagedFeaturesError, match=rf"{tmp_path}.*c\.{block}\.0\.0"):
      features_in(tmp_path / "one").read(np.array([image]), ALL[1][:1])
  features = features_in(tmp_path / "one")
  features.create()
  assert features.to_compute() == [0, 1, 2] and len(caplog.messages) == 3
  assert features_in(tmp_path / "other", other.made_from).to_compute() == [2]


def test_a_damaged_description_is_written_again_and_the_blocks_stay(tmp_path, caplog):
  filled(tmp_path).complete()
  path = tmp_path / "zarr.json"
  content, random_bits = path.read_bytes(), random.Random(0)
  damaged = [b"", b"{}", b"\xff", content[:-40], content.replace(b"6", b"7")]
  for _ in range(31):
    flipped = bytearray(content)
    flipped[random_bits.randrange(len(content))] ^= 1 << random_bits.randrange(8)
    damaged.append(bytes(flipped))
  for one in damaged:
    path.write_bytes(one)
    features = features_in(tmp_path)
    features.create()
    assert features.to_compute() == [] and features.complete() == [5]
    np.testing.assert_array_equal(features.read(*ALL), FEATURES)
    features_in(tmp_path).create()
    assert path.read_bytes() == content
  assert len(caplog.messages) == len(damaged)
  assert all(str(path) in line and "\n" not in line for line in caplog.messages)


def test_features_of_version_1_get_places(tmp_path, monkeypatch):
  """Also after an interruption, and without the blocks that are damaged."""
  features = features_in(tmp_path)
  old = features._open(create=True, width=FEATURES.shape[2])
  for block in range(3):
    old[features.rows(block)].write(FEATURES[features.rows(block)]).result()
  path = tmp_path / "c.1.0.0"
  path.write_bytes(path.read_bytes()[:-1] + b"?")
  write = Features.write

  def interrupted(self, block, features):
    if block > 0:
      raise KeyboardInterrupt
    write(self, block, features)

  monkeypatch.setattr(Features, "write", interrupted)
  with pytest.raises(KeyboardInterrupt):
    features_in(tmp_path).create()
  monkeypatch.setattr(Features, "write", write)
  features.create()
  assert features.to_compute() == [1]
  features.write(1, FEATURES[4:8])
  np.testing.assert_array_equal(features_in(tmp_path).read(*ALL), FEATURES)


def test_damaged_and_missing_blocks_are_computed_again_and_whole_ones_are_not(
  tmp_path, caplog
):
  filled(tmp_path).complete()
  content = (tmp_path / "c.1.0.0").read_bytes()
  (tmp_path / "c.1.0.0").write_bytes(content[:-9])
  (tmp_path / "c.2.0.0").unlink()
  for index, block in ((9, 2), (7, 1)):
    with pytest.raises(
      DamagedFeaturesError, match=rf"c\.{block}\.0\.0.*; a restart computes"
    ):
      features_in(tmp_path).read(np.array([0, index]), ALL[1][:2])
  features = features_in(tmp_path)
  assert features.read(np.array([0, 3]), np.zeros((2, 1), int)).shape == (2, 1, 8)
  with caplog.at_level(logging.WARNING):
    assert features.to_compute() == [1, 2]
  (line,) = caplog.messages
  assert "c.1.0.0" in line and "\n" not in line
  for block in (1, 2):
    features.write(block, FEATURES[features.rows(block)])
  assert (tmp_path / "c.1.0.0").read_bytes() == content
  assert features.complete() == [5] and features_in(tmp_path).to_compute() == []


def test_a_block_that_is_gone_is_computed_again_also_of_what_was_complete(tmp_path):
  """Before anything is read."""
  filled(tmp_path).complete()
  (tmp_path / "c.1.0.0").unlink()
  assert features_in(tmp_path).to_compute() == [1]


def test_what_is_complete_is_not_read_again_until_something_is_amiss(
  tmp_path, monkeypatch
):
  filled(tmp_path).complete()
  path = tmp_path / "c.0.0.0"
  path.write_bytes(path.read_bytes()[:-1] + b"?")
  with monkeypatch.context() as patch:
    patch.setattr(Features, "find", lambda *_: pytest.fail("read"))
    assert features_in(tmp_path).to_compute() == []
  with pytest.raises(DamagedFeaturesError, match="Digest mismatch"):
    features_in(tmp_path).read(*ALL)
  assert features_in(tmp_path).to_compute() == [0]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(
    RunFolderWriteError, match=f"{tmp_path}/file/features: can't be written"
  ):
    features_in(tmp_path / "file" / "features").create()
  features = filled(tmp_path / "features")
  (tmp_path / "features" / "c.1.0.0").unlink()
  (tmp_path / "features" / "c.1.0.0").mkdir()
  with pytest.raises(RunFolderWriteError, match="features: can't be written"):
    features.write(1, FEATURES[4:8])


def test_memory_holds_the_rows_that_are_read(tmp_path, monkeypatch):
  monkeypatch.setattr(module, "_BLOCK", 1024)
  features = Features(tmp_path, (20_000, 1, 512), {})
  features.create()
  for block in range(features.n_blocks):
    features.write(block, np.full((features.size(block), 1, 512), 0.5, np.float32))
  rng = np.random.default_rng(0)
  tracemalloc.start()
  try:
    features.to_compute()
    for _ in range(20):
      assert (
        features.read(rng.integers(0, 20_000, 32), np.zeros((32, 1), int)) == 0.5
      ).all()
    _, most = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert most < 4 * 20_000 * 512 / 3
