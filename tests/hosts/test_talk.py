"""Waits for other processes: as long as asked, and signals are heard meanwhile."""

import types

import jax
import pytest

from pomp_jax.hosts import LostHostError, talk


class Store:
  """A store with a clock of its own; a value comes at a time, or an error."""

  def __init__(self, value="", at=float("inf"), error=""):
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
  monkeypatch.setattr(talk, "time", clock)
  return talk._get(store, "key", seconds)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 7.5])
def test_a_wait_that_ends(monkeypatch, seconds):
  store = Store()
  assert wait(monkeypatch, store, seconds) is None
  assert store.now == pytest.approx(seconds, abs=0.01)
  # What JAX waits for it does not hear signals in, nor forget.
  assert store.blocked == [min(seconds, 1.0)]


def test_a_value_that_comes_late(monkeypatch):
  for at, seen in ((0.0, 0.0), (0.3, 0.3), (3.5, 4.0)):
    store = Store("value", at)
    assert wait(monkeypatch, store, 300.0) == "value"
    assert store.now == seen
    assert sum(store.blocked) <= 1


def test_a_coordinator_that_is_lost_meanwhile(monkeypatch):
  with pytest.raises(LostHostError, match=r"the coordinator is lost \(UNAVAILABLE: gone\)"):
    wait(monkeypatch, Store(at=2.5, error="UNAVAILABLE: gone"), 300.0)
