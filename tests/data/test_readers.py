"""Threads and worker processes that follow from the cores, the images and the memory."""

import os

import pytest

from pomp_jax import hosts
from pomp_jax.data import readers as module
from pomp_jax.data.readers import Readers, choose_readers

# The recipe's batch on one process: 1,024 views of 224 x 224 pixels, 653 an epoch.
RECIPE = {"decodes": True, "n_batches": 653, "batch_bytes": 1024 * 3 * 224**2}


def choose(n_cores, threads=0, workers=-1, *, memory=2**40, **images):
  return choose_readers(threads, workers, n_cores=n_cores, shared_memory=memory, **images)


@pytest.mark.parametrize(
  ("n_cores", "expected"), [(1, (1, 0)), (2, (2, 0)), (4, (1, 4)), (64, (1, 64)), (240, (1, 163))]
)
def test_the_recipe_has_a_worker_for_each_core(n_cores, expected):
  """Up to one for four batches of an epoch; a few cores are left to threads."""
  assert choose(n_cores, **RECIPE) == expected


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    # What is given stays, and the rest follows from it.
    (RECIPE | {"threads": 3, "workers": 5}, (3, 5)),
    (RECIPE | {"threads": 4}, (4, 16)),
    (RECIPE | {"workers": 0}, (4, 0)),
    (RECIPE | {"workers": 32}, (2, 32)),
    # Little work gets no workers.
    ({}, (4, 0)),
    (RECIPE | {"n_batches": 7}, (4, 0)),
    (RECIPE | {"n_batches": 8}, (4, 2)),
  ],
)
def test_readers_of_64_cores(changes, expected):
  assert choose(64, **changes) == expected


@pytest.mark.parametrize(("mebibytes", "expected"), [(64, (4, 0)), (8 * 1024, (4, 11))])
def test_workers_fit_into_the_shared_memory(caplog, mebibytes, expected):
  """Containers have 64 MiB by default, and a worker that overfills it is killed (SIGBUS)."""
  with caplog.at_level("WARNING", "pomp_jax"):
    found = choose(64, memory=mebibytes * 2**20, **RECIPE)
  assert found == expected
  (line,) = caplog.messages
  assert f"/dev/shm has {mebibytes} MiB free" in line
  assert 5 * found.workers * RECIPE["batch_bytes"] <= mebibytes * 2**20


def test_cores_and_memory_of_this_machine(monkeypatch):
  free = os.statvfs("/dev/shm")
  assert module._free_shared_memory() == pytest.approx(free.f_bavail * free.f_frsize, rel=0.5)
  monkeypatch.setattr(module, "_SHARED_MEMORY", "/no/such/folder")
  assert module._free_shared_memory() == 0
  monkeypatch.setattr(hosts, "own_cores", lambda: 3)
  assert choose_readers(0, -1) == Readers(3, 0)
  # The batches read at once.
  assert [Readers(4, 0).n_at_once, Readers(2, 8).n_at_once] == [4, 16]
