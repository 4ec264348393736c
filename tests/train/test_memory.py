"""Memory for activations: a field, or the device limit of the first process."""

import types
from unittest import mock

import pytest

from pomp_jax import hosts
from pomp_jax.clip.packed import MemoryPlan
from pomp_jax.encoder import Encoder
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


def test_towers_share_the_memory_that_there_is(monkeypatch):
  """The plan is of the tower's own blocks; fields count more than it."""
  planned = mock.Mock(return_value=MemoryPlan(3, "layers"))
  monkeypatch.setattr(memory, "plan_memory", planned)
  encoder = mock.Mock(spec=Encoder, block=128, platform="tpu", clip=mock.Mock())
  text = encoder.clip.config.text_config
  plan = lambda **fields: memory.memory_plan(
    settings(**{"clip.memory_gib": 3.0} | fields).clip, encoder, 5, 1000, 2
  )
  assert plan() == MemoryPlan(3, "layers")
  assert planned.call_args == mock.call(
    text, 5, 1000, 1.5 * 2**30, 128, "float32", "tpu"
  )


def test_cpus_have_no_limit_and_always_the_same():
  assert found() == 4 * 2**30


def test_other_processes_take_what_the_first_one_has(monkeypatch):
  devices(monkeypatch, 40)
  monkeypatch.setattr(hosts, "from_first", lambda value, what: 32.0)
  assert found() == 16 * 2**30
