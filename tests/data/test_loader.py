"""The order of training images: a function of the seed and the position, whatever reads it."""

import itertools

import numpy as np
import pytest

from pomp_jax.data.loader import train_batches


class Numbers:
  """Images that hold their own index."""

  names = tuple("abcde")
  labels = np.arange(20, dtype=np.int32) % 5

  def __len__(self):
    return 20

  def images(self, indices):
    return np.broadcast_to(
      np.asarray(indices, np.uint8)[:, None, None, None], (len(indices), 2, 2, 3)
    )


def indices(count, **arguments):
  batches = train_batches(Numbers(), **({"batch_size": 4, "seed": 0} | arguments))
  return [batch["image"][:, 0, 0, 0].tolist() for batch in itertools.islice(batches, count)]


def test_every_epoch_shows_every_image_once_in_another_order():
  rows = indices(10)
  first, second = np.ravel(rows[:5]), np.ravel(rows[5:])
  assert sorted(first) == sorted(second) == list(range(20))
  assert first.tolist() != second.tolist()
  assert first.tolist() != list(range(20))


def test_labels_belong_to_the_images():
  for batch in itertools.islice(train_batches(Numbers(), batch_size=4, seed=1), 5):
    np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0, 0] % 5)
    assert batch["label"].dtype == np.int32


def test_a_later_start_reads_on():
  assert indices(3, start=4) == indices(7)[4:]


def test_the_seed_decides():
  assert indices(5) == indices(5, threads=1, prefetch=1)
  assert indices(5) != indices(5, seed=1)


def test_processes_share_the_same_batches():
  halves = [indices(6, shard=(index, 2)) for index in range(2)]
  assert [a + b for a, b in zip(*halves, strict=True)] == indices(6)


def test_processes_must_divide_the_batch():
  with pytest.raises(ValueError, match="batch of 4 does not divide by 3"):
    train_batches(Numbers(), batch_size=4, seed=0, shard=(0, 3))
