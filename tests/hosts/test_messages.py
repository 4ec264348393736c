"""What processes tell each other: timeouts, what is compared before a start, shared
cores."""

import json
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
  [
    (0.1, 1e9, 0.1),
    (1.0, 1e9, 1.0),
    (7.5, 1e9, 7.5),
    (300.0, 0.3, 0.3),
    (300.0, 3.5, 4.0),
  ],
)
def test_a_wait_ends_with_the_value_or_the_timeout(monkeypatch, seconds, at, seen):
  store = Store("value", at)
  assert wait(monkeypatch, store, seconds) == ("value" if at < seconds else None)
  assert store.now == pytest.approx(seen, abs=0.01)
  # Inside JAX no signals are handled, and each wait stays in memory.
  assert store.blocked == [min(seconds, 1.0)]


def test_a_coordinator_that_is_lost_meanwhile(monkeypatch):
  with pytest.raises(
    LostHostError, match=r"the coordinator is lost \(UNAVAILABLE: gone\)"
  ):
    wait(monkeypatch, Store(at=2.5, error="UNAVAILABLE: gone"), 300.0)


def test_hosts_that_disagree_are_named(monkeypatch):
  facts = [{"config.k": "20"}, {"config.k": "30", "workdir": "a"}] + [
    {"config.k": "20"}
  ] * 5
  found = [(f"host{index}", fact) for index, fact in enumerate(facts)]
  monkeypatch.setattr(messages, "gather", lambda *arguments: found)
  sides = (
    "20 for process 0 on host0, process 2 .*process 4 on host4 and 2 more;"
    " 30 for process 1 on"
  )
  with pytest.raises(HostError, match=rf"config\.k: {sides} host1"):
    messages.agree({})
  del found[1]
  messages.agree({})
  # A fact that the first has not.
  found[1:] = [("host1", facts[0] | {"workdir": "a"})]
  with pytest.raises(
    HostError, match=r"workdir: nothing for .*; a for process 1 on host1"
  ):
    messages.agree({})


@pytest.fixture
def asked(monkeypatch):
  """A function: index of this process of four, texts by the end of their key ->
  waits, store."""

  def install(index, texts):
    waits, store = [], mock.Mock()

    def get(_, key, seconds):
      waits.append(seconds)
      return texts.get(key.rpartition("/")[2], texts.get(""))

    monkeypatch.setattr(messages, "client", lambda: store)
    monkeypatch.setattr(messages, "_get", get)
    monkeypatch.setattr(messages, "own_index", lambda: index)
    monkeypatch.setattr(messages, "n_processes", lambda: 4)
    return waits, store

  return install


def test_a_gather_waits_once_and_names_all_that_are_missing(asked):
  """After the first timeout the others have had their time too."""
  waits, _ = asked(0, {"1": '["b", 7]', "3": '["d", 9]'})
  with pytest.raises(
    LostHostError, match=r"^cores: process 2 of 4 did not answer within 9 s"
  ):
    messages.gather(5, "cores", 9.0)
  assert waits == [9.0, 9.0, 0.1]
  asked(0, {"2": '["c", 7]'})
  with pytest.raises(LostHostError, match=r"^cores: process 1, 3 of 4 did not answer"):
    messages.gather(5, "cores", 9.0)


def test_each_process_gets_what_all_have_sent(asked, monkeypatch):
  """The first collects; another sends its own, and waits until the first has waited
  for all."""
  monkeypatch.setattr(messages.socket, "gethostname", lambda: "own")
  others = {str(index): f'["host{index}", {index}]' for index in (1, 2, 3)}
  waits, store = asked(0, others)
  expected = [("own", 0), ("host1", 1), ("host2", 2), ("host3", 3)]
  assert messages.gather(0, "cores", 9.0) == expected and waits == [9.0] * 3
  (sent,) = store.key_value_set.mock_calls
  assert json.loads(sent.args[1]) == [list(pair) for pair in expected]
  waits, store = asked(2, {"": json.dumps(expected)})
  assert messages.gather(2, "cores", 9.0) == expected and waits == [18.0]
  (sent,) = store.key_value_set.mock_calls
  assert sent.args[0].endswith("/2") and json.loads(sent.args[1]) == ["own", 2]
  asked(2, {})
  with pytest.raises(
    LostHostError, match="^cores: process 0 did not answer within 18 s"
  ):
    messages.gather(2, "cores", 9.0)


def test_the_latest_value_of_each_process_is_found_by_its_number(asked):
  _, store = asked(2, {})
  messages.post("watch", {"loss": 1.5})
  name = f"{messages._POSTS}/watch"
  assert store.mock_calls == [
    mock.call.key_value_set(f"{name}/2", '{"loss": 1.5}', allow_overwrite=True)
  ]
  store.key_value_dir_get.return_value = [(f"{name}/10", "1"), (f"{name}/9", "2")]
  assert list(messages.posted("watch").items()) == [(9, 2), (10, 1)]
  assert store.key_value_dir_get.call_args == mock.call(f"{name}/")
  # A lost coordinator is found elsewhere.
  lost = jax.errors.JaxRuntimeError("UNAVAILABLE: gone")
  store.key_value_set.side_effect = store.key_value_dir_get.side_effect = lost
  messages.post("watch", 1)
  assert messages.posted("watch") == {}


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
  libraries = {
    key.removeprefix("the version of ") for key in seen[0] if "version" in key
  }
  assert libraries == {"jax", "jaxlib", "flax", "optax", "numpy", "transformers"}


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """Eight cores without a quota; the file of the quota."""
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
  monkeypatch.setattr(resources, "_QUOTA", tmp_path / "cpu.max")
  monkeypatch.setattr(resources, "_n_sharers", 1)
  return tmp_path / "cpu.max"


@pytest.mark.parametrize(
  ("quota", "expected"),
  [("max 100000", 8), ("250000 100000", 2), ("5000 100000", 1), ("?", 8)],
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


@pytest.mark.parametrize(
  ("index", "expected"), [(0, 4), (1, 8), (2, 2), (3, 4), (5, 2)]
)
def test_each_process_counts_those_of_its_own_host(
  machine, monkeypatch, index, expected
):
  """Two on the first host, one on the second; on the third four, of which one has
  other cores."""
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
