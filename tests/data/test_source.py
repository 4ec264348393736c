"""Stored images, and fewer classes of a source: names, labels and images stay together."""

import pickle

import numpy as np
from PIL import Image
import pytest

from pomp_jax.data.images import ImageError, read_image
from pomp_jax.data.source import Files, Source, StoredImages, spread_evenly


def test_spread_evenly():
  assert spread_evenly(4, 8).tolist() == [0, 2, 4, 6]
  for count in (0, 9):
    with pytest.raises(ValueError, match="between 1 and the 8"):
      spread_evenly(count, 8)


@pytest.fixture
def stored(tmp_path):
  """Six pictures, grey of level 40 i in file i, of three classes."""
  keys = [f"{i % 3}/{i}.png" for i in range(6)]
  for i, key in enumerate(keys):
    (tmp_path / key).parent.mkdir(exist_ok=True)
    Image.new("L", (30 + i, 20), 40 * i).save(tmp_path / key)
  return StoredImages("abc", np.arange(6) % 3, keys, Files(tmp_path), image_size=16)


def test_stored_images_are_a_source(stored, tmp_path):
  assert isinstance(stored, Source)
  assert stored.labels.dtype == np.int32
  assert len(stored) == 6
  images = stored.images(np.array([4, 1]))
  assert images.shape == (2, 16, 16, 3)
  assert images[:, 0, 0, 0].tolist() == [160, 40]
  np.testing.assert_array_equal(images[0], read_image(tmp_path / "1/4.png", 16))
  assert stored.encoded(5) == (tmp_path / "2/5.png").read_bytes()


def test_subset_and_relabelled_keep_images_and_labels_together(stored):
  # Pickled on the way to a worker process.
  part = pickle.loads(pickle.dumps(stored.subset(np.array([5, 0, 3]))))
  assert part.keys.tolist() == ["2/5.png", "0/0.png", "0/3.png"]
  assert part.labels.tolist() == [2, 0, 0]
  assert part.images(np.arange(3))[:, 0, 0, 0].tolist() == [200, 0, 120]
  other = part.relabelled("xy", np.array([1, -1, 0]))
  assert (other.names, other.labels.tolist()) == (("x", "y"), [1, 0])
  assert other.images(np.arange(2))[:, 0, 0, 0].tolist() == [200, 120]
  assert stored.labels.tolist() == [0, 1, 2, 0, 1, 2]
  for labels, message in (([0, 1], "2 labels for 3"), ([0, 1, 2], "outside 0..1")):
    with pytest.raises(ValueError, match=message):
      part.relabelled("xy", np.array(labels))


def test_unreadable_images_are_named(stored, tmp_path):
  (tmp_path / "1/4.png").write_bytes(b"no picture")
  (tmp_path / "2/5.png").unlink()
  with pytest.raises(ImageError, match=r"1/4\.png: not a readable image"):
    stored.images(np.arange(6))
  with pytest.raises(ImageError, match=r"2/5\.png: can't be read \(No such file"):
    stored.encoded(5)
