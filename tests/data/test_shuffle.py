"""The order of an epoch: Grain's permutation, image by image, at a fraction of its work."""

import concurrent.futures
import threading
import time

import grain
import numpy as np
import pytest

from pomp_jax.data import shuffle
from pomp_jax.data.shuffle import epoch_order


@pytest.mark.parametrize("n_images", [1, 2, 3, 20, 40, 1000, 65_535, 65_536, 65_538, 300_000])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (12_345, 2), (2**32 - 1, 7)])
def test_it_is_grains_order(n_images, seed, epoch):
  order_n = epoch_order(n_images, seed, epoch)
  assert np.array_equal(np.sort(order_n), np.arange(n_images))
  oracle = grain.MapDataset.range(n_images).seed(seed).shuffle().repeat()
  places = np.unique(np.random.default_rng(1).integers(0, n_images, 20)).tolist()
  assert order_n[places].tolist() == [oracle[epoch * n_images + place] for place in places]


@pytest.mark.parametrize("n_images", [2**16 + 1, 2**18 + 1])
def test_every_image_comes_once_where_grain_repeats_one(n_images):
  """Grain's block is one bit short of the last index there, and cuts that bit off."""
  order_n = epoch_order(n_images, 0, 0)
  assert np.array_equal(np.sort(order_n), np.arange(n_images))
  oracle = grain.MapDataset.range(n_images).seed(0).shuffle()
  assert oracle[0] == oracle[n_images - 1]


def test_an_order_is_not_to_be_changed():
  with pytest.raises(ValueError, match="read-only"):
    epoch_order(5, 0, 0)[0] = 1


def test_threads_that_reach_an_epoch_together_compute_it_once(monkeypatch):
  """Each would take seconds and hundreds of megabytes for ImageNet-21K."""
  computed, n_threads = [], 8
  together = threading.Barrier(n_threads)
  encrypted = shuffle._encrypt

  def slow(keys, width):
    computed.append(keys)
    time.sleep(0.05)  # the others arrive meanwhile
    return encrypted(keys, width)

  def read(_):
    together.wait()
    return epoch_order(70_000, 3, 11)

  monkeypatch.setattr(shuffle, "_encrypt", slow)
  with concurrent.futures.ThreadPoolExecutor(n_threads) as threads:
    found = list(threads.map(read, range(n_threads)))
  assert len(computed) == 1
  assert all(order_n is found[0] for order_n in found)
  assert found[0].nbytes == 4 * 70_000
