"""What processes tell each other: timeouts, what is compared before a start, shared cores."""

import os
import types
from unittest import mock

import jax
import pytest

from pomp_jax import hosts
from pomp_jax.hosts import HostError, LostHostError, messages, resources


class Store:
  """A store with a clock of its own; a value comes at a time, or an error."""

  def __init__(self, value="", at=1e9, error=""):
    self.now, self.blocked = 0.0, []
    self._value, self._at, self._error = value, at, error

  def sleep(self, seconds):
    self.now += seconds

  def blocking_key_value_get(self, key, milliseconds):
    self.blocked.append(milliseconds / 1000)
    self.now = min(self.now + self.blocked[-1], max(self.now, self._at))
    return self._answer("DEADLINE_EXCEEDED: GetKeyValue() timed out")

  def key_value_try_get(self, key):
    return self._answer("NOT_FOUND: Config key key not found.")

  def _answer(self, not_yet):
    if self.now < self._at or self._error:
      raise jax.errors.JaxRuntimeError(not_yet if self.now < self._at else self._error)
    return self._value


def wait(monkeypatch, store, seconds):
  clock = types.SimpleNamespace(monotonic=lambda: store.now, sleep=store.sleep)
  monkeypatch.setattr(messages, "time", clock)
  return messages._get(store, "key", seconds)


@pytest.mark.parametrize(
  ("seconds", "at", "seen"),
  [(0.1, 1e9, 0.1), (1.0, 1e9, 1.0), (7.5, 1e9, 7.5), (300.0, 0.3, 0.3), (300.0, 3.5, 4.0)],
)
def test_a_wait_ends_with_the_value_or_the_timeout(monkeypatch, seconds, at, seen):
  store = Store("value", at)
  assert wait(monkeypatch, store, seconds) == ("value" if at < seconds else None)
  assert store.now == pytest.approx(seen, abs=0.01)
  # Inside JAX no signals are handled, and each wait stays in memory.
  assert store.blocked == [min(seconds, 1.0)]


def test_a_coordinator_that_is_lost_meanwhile(monkeypatch):
  with pytest.raises(LostHostError, match=r"the coordinator is lost \(UNAVAILABLE: gone\)"):
    wait(monkeypatch, Store(at=2.5, error="UNAVAILABLE: gone"), 300.0)


def test_hosts_that_disagree_are_named(monkeypatch):
  facts = [{"config.k": "20"}, {"config.k": "30", "workdir": "a"}] + [{"config.k": "20"}] * 5
  found = [(f"host{index}", fact) for index, fact in enumerate(facts)]
  monkeypatch.setattr(messages, "gather", lambda *arguments: found)
  sides = (
    "20 for process 0 on host0, process 2 .*process 4 on host4 and 2 more; 30 for process 1 on"
  )
  with pytest.raises(HostError, match=rf"config\.k: {sides} host1"):
    messages.agree({})
  del found[1]
  messages.agree({})


def test_the_checksum_covers_every_file(tmp_path, monkeypatch):
  package = tmp_path / "pomp_jax"
  (package / "hosts").mkdir(parents=True)
  code = package / "hosts" / "messages.py"
  code.write_text("x = 1")
  (package / "names.tsv").write_text("a\tb\n")
  monkeypatch.setattr(messages, "__file__", str(code))
  seen = [messages.fingerprint_of_package()]
  (package / "names.tsv").rename(package / "more.tsv")
  seen.append(messages.fingerprint_of_package())
  code.write_text("x = 2")
  seen.append(messages.fingerprint_of_package())
  (package / "__pycache__").mkdir()
  (package / "__pycache__" / "x.pyc").write_text("")
  assert messages.fingerprint_of_package() == seen[-1]
  assert len({found["the code of pomp_jax"] for found in seen}) == 3
  assert seen[0]["the version of jax"] == jax.__version__


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """Eight cores without a quota; the file of the quota."""
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
  monkeypatch.setattr(resources, "_QUOTA", tmp_path / "cpu.max")
  monkeypatch.setattr(resources, "_n_sharers", 1)
  return tmp_path / "cpu.max"


@pytest.mark.parametrize(
  ("quota", "expected"), [("max 100000", 8), ("250000 100000", 2), ("5000 100000", 1), ("?", 8)]
)
def test_a_quota_limits_the_affinity(machine, quota, expected):
  machine.write_text(quota)
  assert hosts.own_cores() == expected


@pytest.mark.parametrize(
  ("others", "expected"),
  [
    ([], 8),
    ([["here", list(range(8))], ["there", list(range(8))]], 4),
    ([["here", [8, 9]]], 8),
    ([["here", list(range(8))]] * 20, 1),
  ],
)
def test_processes_on_the_same_cores_share_them(machine, monkeypatch, others, expected):
  """On this host; a launcher may have given each process cores of its own."""
  monkeypatch.setattr(resources, "gather", lambda own, *_: [["here", own], *others])
  hosts.share_cores(1.0)
  assert hosts.own_cores() == expected


@pytest.mark.parametrize(("index", "expected"), [(0, 4), (1, 8), (2, 2), (3, 4), (5, 2)])
def test_each_process_counts_those_of_its_own_host(machine, monkeypatch, index, expected):
  """Two on the first host, one on the second; on the third four, of which one has other cores."""
  all_cores = list(range(8))
  found = [["a", all_cores], ["b", all_cores], ["c", all_cores], ["a", all_cores]]
  found += [["c", [0, 1]], ["c", all_cores], ["c", all_cores], ["c", all_cores]]
  monkeypatch.setattr(resources, "gather", lambda *_: found)
  monkeypatch.setattr(resources, "own_index", lambda: index)
  hosts.share_cores(1.0)
  assert hosts.own_cores() == expected


def test_devices_are_grouped_by_process(monkeypatch):
  """And of this process alone. The session's devices are not these."""
  found = [
    mock.Mock(spec=jax.Device, process_index=process, id=number)
    for process, number in ((1, 5), (0, 7), (1, 2), (0, 3))
  ]
  monkeypatch.setattr(jax, "devices", lambda: found)
  monkeypatch.setattr(jax, "local_devices", lambda: found[::2])
  numbers = lambda **given: [device.id for device in resources.devices(**given)]
  assert numbers() == [3, 7, 2, 5] and numbers(local=True) == [2, 5]
