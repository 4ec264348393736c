"""The order of training images, whatever reads them, and how many threads and
workers do."""

import functools
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import grain
import numpy as np
import pytest

from pomp_jax import hosts
from pomp_jax.data import loader as module
from pomp_jax.data.loader import Loader, Readers, Shard, _close_together, choose_readers
from pomp_jax.data.skipped_images import CorruptDataError
from pomp_jax.data.source import Files, StoredImages
from pomp_jax.data.views import Augmentation, views
from tests.support.pictures import encode, natural_image


class Numbers:
  """Twenty images of five classes."""

  names = tuple("abcde")
  labels = np.arange(20, dtype=np.int32) % 5

  def __len__(self):
    return 20

  def images(self, indices):
    raise AssertionError("a loader shows what `fetch` gives")


def show(indices, epochs, *, n_views=1, damaged=()):
  """Views that hold index, epoch and number of the view."""
  rows = np.stack(
    [
      np.stack([indices, epochs, np.full_like(indices, view)], -1)
      for view in range(n_views)
    ],
    1,
  )
  return rows, ~np.isin(indices, damaged)


def shown(count, n_views=1, damaged=(), **arguments):
  """The first batches, [count,G,3]."""
  fetch = functools.partial(show, n_views=n_views, damaged=damaged)
  arguments = {"batch_size": 4, "seed": 0, "n_views": n_views} | arguments
  batches = list(itertools.islice(Loader(Numbers(), fetch, **arguments), count))
  for batch in batches:
    np.testing.assert_array_equal(batch["label"], batch["image"][:, 0] % 5)
    assert batch["label"].dtype == np.int32
  return np.stack([batch["image"] for batch in batches])


def indices(count, **arguments):
  return shown(count, **arguments)[:, :, 0].tolist()


def records(indices, epochs):
  """One record of each image."""
  rows = np.zeros(
    (len(indices), 1), [("place", np.int32, (2,)), ("mask", np.uint8, (3, 3))]
  )
  rows["place"][:, 0] = np.stack([indices, epochs], -1)
  rows["mask"][:, 0] = indices[:, None, None]
  return rows, ~np.isin(indices, (3, 8))


def test_fields_of_records_are_arrays_of_the_batch():
  loader = Loader(Numbers(), records, batch_size=4, seed=0, max_corrupt=0.1)
  expected = shown(5, damaged=(3, 8), max_corrupt=0.1)[:, :, :2]
  for places, batch in zip(expected, loader, strict=False):
    assert batch.keys() == {"place", "mask", "label"}
    np.testing.assert_array_equal(batch["place"], places)
    np.testing.assert_array_equal(
      batch["mask"], places[:, :1, None].repeat(3, 1).repeat(3, 2)
    )


@pytest.mark.parametrize(
  ("batch_size", "seed", "start"), [(4, 0, 0), (8, 0, 1), (64, 7, 3)]
)
def test_the_order_is_that_of_earlier_versions(batch_size, seed, start):
  """Grain's own pipeline, which they had: checkpoints and published figures rest on
  it."""
  order = grain.MapDataset.range(20).seed(seed).shuffle().repeat().batch(batch_size)
  expected = [np.asarray(order[batch]) for batch in range(start, start + 6)]
  options = {"batch_size": batch_size, "seed": seed, "start": start}
  for ahead in ({}, {"readers": Readers(1, 0)}):
    rows = shown(6, **options, **ahead)
    np.testing.assert_array_equal(rows[..., 0], expected)
    # Epochs end within batches.
    epochs = (np.arange(rows[..., 0].size) + start * batch_size) // 20
    np.testing.assert_array_equal(rows[..., 1].ravel(), epochs)


def test_views_of_an_image_lie_side_by_side():
  rows = shown(10, n_views=2)
  assert sorted(rows[..., 0].ravel()) == sorted(2 * list(range(20)))
  np.testing.assert_array_equal(rows[:, 0::2, 0], rows[:, 1::2, 0])
  np.testing.assert_array_equal(rows[:, :, 2], np.tile([0, 1], (10, 2)))
  # The same images, two by two, as without views.
  assert rows[:, ::2, 0].ravel().tolist() == np.ravel(indices(5)).tolist()


def test_sizes_must_divide_the_batch():
  with pytest.raises(
    ValueError, match="batch of 4 does not divide by 1 views x 3 processes"
  ):
    Loader(Numbers(), show, batch_size=4, seed=0, shard=Shard(0, 3))
  with pytest.raises(
    ValueError, match="batch of 4 does not divide by 3 views x 1 processes"
  ):
    Loader(Numbers(), show, batch_size=4, seed=0, n_views=3)


def test_the_next_image_stands_in_for_one_that_cant_be_read():
  stand_in = {3: 5, 4: 5, 19: 0}
  options = {"damaged": (3, 4, 19), "max_corrupt": 0.15}
  expected = [[stand_in.get(index, index) for index in row] for row in indices(10)]
  assert indices(10, **options) == expected
  halves = [indices(10, **options, shard=Shard(index, 2)) for index in range(2)]
  assert [a + b for a, b in zip(*halves, strict=True)] == expected


def test_unreadable_images_are_counted_once_and_stop_when_there_are_too_many():
  fetch = functools.partial(show, damaged=(3, 4, 19))
  loader = Loader(Numbers(), fetch, batch_size=4, seed=0, max_corrupt=0.15)
  list(itertools.islice(loader, 15))
  assert set(loader.skipped.reasons) == {3, 4, 19}
  few = {"batch_size": 4, "seed": 0, "max_corrupt": 0.1}
  with pytest.raises(
    CorruptDataError, match=r"^3 of 20 images .*, 2 are allowed .*: image \d+$"
  ):
    list(itertools.islice(Loader(Numbers(), fetch, **few), 15))
  with pytest.raises(CorruptDataError, match="3 of 20"):
    next(Loader(Numbers(), show, **few, unreadable=frozenset({1, 2, 3})))
  with pytest.raises(CorruptDataError, match="100"):
    every = functools.partial(show, damaged=range(20))
    next(Loader(Numbers(), every, batch_size=4, seed=0, max_corrupt=1.0))
  # What other processes could not read counts as well.
  loader = Loader(Numbers(), show, **few)
  loader.skipped.note([1, 2])
  loader.skipped.note([2])
  assert set(loader.skipped.reasons) == {1, 2}
  with pytest.raises(CorruptDataError, match=r"^3 of 20 .*: image 1$"):
    loader.skipped.note([5])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """Ten JPEGs, the fourth of them damaged."""
  folder = tmp_path_factory.mktemp("images")
  for number in range(10):
    content = encode(natural_image(number, 60, 80))
    (folder / f"{number}.jpg").write_bytes(content[:200] if number == 3 else content)
  keys = [f"{number}.jpg" for number in range(10)]
  return StoredImages(("a", "b"), np.arange(10) % 2, keys, Files(folder), image_size=32)


def test_workers_end_side_by_side():
  """Each takes until its batch is read; here until all of them are asked."""
  asked, ended = threading.Barrier(3), []
  worker = SimpleNamespace(close=lambda: ended.append(asked.wait(60) >= 0))
  elements = SimpleNamespace(
    _iterators_in_use=3 * [worker] + [None], close=lambda: ended.append(0)
  )
  _close_together(elements)
  assert ended == [True, True, True, 0]


def test_worker_processes_decode_the_same_batches(stored):
  """And continue when told to stop, at their start and when they read: the run has
  yet to save."""
  told = set()

  def interrupt(workers):
    for worker in workers:
      os.kill(worker.pid, signal.SIGTERM)
      os.kill(worker.pid, signal.SIGINT)

  def tell():
    end = time.monotonic() + 300
    while len(told) < 2 and time.monotonic() < end:
      new = [w for w in multiprocessing.active_children() if w.pid not in told]
      interrupt(new)
      told.update(worker.pid for worker in new)

  def read(**arguments):
    augmentation = Augmentation("recipe", n_views=2, seed=1)
    fetch = functools.partial(views, stored, augmentation=augmentation, size=32)
    sizes = {"batch_size": 8, "seed": 0, "n_views": 2, "max_corrupt": 0.2}
    loader = Loader(stored, fetch, **sizes, **arguments)
    batches = [next(loader)]
    interrupt(multiprocessing.active_children())
    # More than lie ready.
    batches += itertools.islice(loader, 19)
    loader.close()
    assert not multiprocessing.active_children()
    return batches, set(loader.skipped.reasons)

  alone, unreadable = read()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
  telling = threading.Thread(target=tell)
  telling.start()
  workers, also = read(readers=Readers(1, 2))
  telling.join(10)
  assert len(told) == 2
  assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
  assert unreadable == also == {3}
  np.testing.assert_equal(alone, workers)


def test_the_resource_tracker_does_not_warn():
  """Its warning of the memory that Grain leaves would be the last line of a run."""
  script = """
from multiprocessing import shared_memory
from pomp_jax.data.loader import _start_resource_tracker
import os
_start_resource_tracker()
assert "PYTHONWARNINGS" not in os.environ
print(shared_memory.SharedMemory(create=True, size=8).name)
"""
  environ = {
    name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"
  }
  done = subprocess.run(
    [sys.executable, "-c", script],
    env=environ,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stderr == ""
  assert not os.path.exists(f"/dev/shm/{done.stdout.strip()}")


# The recipe's batch on one process: 1,024 views of 224 x 224 pixels, 653 an epoch.
RECIPE = {"decodes": True, "n_batches": 653, "batch_bytes": 1024 * 3 * 224**2}


@pytest.mark.parametrize(
  ("n_cores", "changes", "expected"),
  [
    # A worker for each core, up to one for four batches of an epoch; threads use a few
    # cores.
    *[(1, RECIPE, (1, 0)), (2, RECIPE, (2, 0)), (4, RECIPE, (1, 4))],
    *[(64, RECIPE, (1, 64)), (240, RECIPE, (1, 163))],
    # What is given stays, and the rest follows from it.
    (64, RECIPE | {"threads": 3, "workers": 5}, (3, 5)),
    (64, RECIPE | {"workers": 32}, (2, 32)),
    # Little work gets no workers.
    (64, {}, (4, 0)),
    (64, RECIPE | {"n_batches": 7}, (4, 0)),
    (64, RECIPE | {"n_batches": 8}, (4, 2)),
  ],
)
def test_readers(n_cores, changes, expected):
  given = {"threads": 0, "workers": -1} | changes
  assert choose_readers(**given, n_cores=n_cores, shared_memory=2**40) == expected


@pytest.mark.parametrize(("mebibytes", "expected"), [(64, (4, 0)), (8 * 1024, (4, 11))])
def test_workers_fit_into_the_shared_memory(caplog, mebibytes, expected):
  """Containers have 64 MiB by default, and a worker that overfills it is killed
  (SIGBUS)."""
  with caplog.at_level("WARNING", "pomp_jax"):
    found = choose_readers(0, -1, n_cores=64, shared_memory=mebibytes * 2**20, **RECIPE)
  assert found == expected
  (line,) = caplog.messages
  assert f"/dev/shm has {mebibytes} MiB free" in line
  assert 5 * found.workers * RECIPE["batch_bytes"] <= mebibytes * 2**20


def test_cores_and_memory_of_this_machine(monkeypatch):
  free = os.statvfs("/dev/shm")
  assert module._free_shared_memory() == pytest.approx(
    free.f_bavail * free.f_frsize, rel=0.5
  )
  monkeypatch.setattr(module, "_SHARED_MEMORY", "/no/such/folder")
  assert module._free_shared_memory() == 0
  monkeypatch.setattr(hosts, "own_cores", lambda: 3)
  assert choose_readers(0, -1) == Readers(3, 0)
