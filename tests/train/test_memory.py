"""Memory for activations: a field, or the device limit of the first process."""

import types

import pytest

from pomp_jax import hosts
from pomp_jax.train import memory
from pomp_jax.train.memory import activation_memory
from tests.support.small_run import settings


@pytest.fixture(autouse=True)
def asked_again():
  """The device is asked once for each process."""
  memory.memory_of_device.cache_clear()
  yield
  memory.memory_of_device.cache_clear()


def devices(monkeypatch, *gibibytes):
  stats = [lambda n=n: {"bytes_limit": n * 2**30} for n in gibibytes]
  found = [types.SimpleNamespace(memory_stats=one) for one in stats]
  monkeypatch.setattr(hosts, "devices", lambda *, local: found)


def found(**fields):
  return activation_memory(settings(**fields).clip)


def test_it_is_the_field_or_half_of_the_smallest_device(monkeypatch, caplog):
  devices(monkeypatch, 60, 40)
  assert found(**{"clip.memory_gib": 1.5}) == 1.5 * 2**30
  with caplog.at_level("INFO"):
    assert found() == found() == 20 * 2**30
  (line,) = [record.getMessage() for record in caplog.records]
  assert "20.0 GiB" in line and "40.0 GiB" in line


def test_cpus_have_no_limit_and_always_the_same():
  assert found() == 4 * 2**30


def test_other_processes_take_what_the_first_one_has(monkeypatch):
  devices(monkeypatch, 40)
  monkeypatch.setattr(hosts, "from_first", lambda value, what: 32.0)
  assert found() == 16 * 2**30
