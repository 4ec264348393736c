"""Fewer classes of a source: names, labels and images stay together."""

import numpy as np
import pytest

from pomp_jax.data.source import ClassSubset, spread_evenly


class Numbers:
  """Images that hold their own label."""

  names = tuple("abcdefgh")
  labels = np.array([7, 0, 3, 3, 5, 1, 2, 7, 6, 4], np.int32)

  def __len__(self):
    return 10

  def images(self, indices):
    return np.broadcast_to(
      self.labels[indices].astype(np.uint8)[:, None, None, None], (len(indices), 2, 2, 3)
    )


def test_labels_names_and_images_agree():
  source = Numbers()
  for count in range(1, 9):
    subset = ClassSubset(source, count)
    pixels = subset.images(np.arange(len(subset)))[:, 0, 0, 0]
    assert len(subset.names) == count
    assert [subset.names[label] for label in subset.labels] == [source.names[p] for p in pixels]
    assert set(subset.labels.tolist()) == set(range(count))


def test_spread_evenly():
  assert spread_evenly(4, 8).tolist() == [0, 2, 4, 6]
  for count in (0, 9):
    with pytest.raises(ValueError, match="between 1 and the 8"):
      spread_evenly(count, 8)
