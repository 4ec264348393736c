"""What is said about a program while JAX compiles it, and afterwards."""

import logging
import re
import threading

import jax
from jax._src import monitoring
import jax.numpy as jnp
import pytest

from pomp_jax.files import compilation_log, terminal
from pomp_jax.files.compilation_log import shown_compilations


@pytest.fixture
def said(monkeypatch, capsys):
  """A function that returns the lines since the last call; every program is worth one."""
  monkeypatch.setattr(compilation_log, "_SHOWN_SECONDS", 0.0)
  monkeypatch.setattr(terminal, "_start_thread", lambda: terminal._open[-1].tick())
  records = []
  handler = logging.Handler()
  handler.emit = records.append
  monkeypatch.setattr(compilation_log.log, "level", logging.INFO)
  compilation_log.log.addHandler(handler)

  def since_last_call():
    found = [line.split("  ")[1] for line in capsys.readouterr().err.splitlines()]
    found += [record.getMessage() for record in records]
    records.clear()
    return [re.sub(r"[\d.]+ s$", "T s", line) for line in found]

  before = n_listeners()
  with shown_compilations():
    assert n_listeners() == (before[0] + 1, before[1] + 1)
    yield since_last_call
  compilation_log.log.removeHandler(handler)
  assert not terminal._open
  assert n_listeners() == before


def n_listeners():
  return len(monitoring.get_scalar_listeners()), len(monitoring.get_event_duration_listeners())


def test_a_program_is_named_in_words(said, monkeypatch):
  @jax.jit
  def double_step(x):
    return 2 * x

  x = jnp.ones(3)
  said()
  double_step(x)
  # Traced, lowered, compiled.
  assert said() == ["compiling double step"] * 3 + ["compiled double step in T s"]
  double_step(x)
  assert said() == []
  double_step.lower(jnp.ones(5)).compile()
  assert said()[-1] == "compiled double step in T s"
  jax.jit(lambda x: 2 * x)(x)
  assert said()[-1] == "compiled a program in T s"
  # Quick ones are not mentioned.
  monkeypatch.setattr(compilation_log, "_SHOWN_SECONDS", 1e9)
  jax.jit(lambda x: 3 * x)(x)
  assert said() == []


def test_the_time_is_that_of_all_phases(said, monkeypatch):
  monkeypatch.setattr(compilation_log, "_SHOWN_SECONDS", 2.0)
  records = []
  monkeypatch.setattr(compilation_log.log, "info", lambda *found: records.append(found[1:]))
  for of_tracing in (1.5, 0.1):
    for phase, name, seconds in (
      ("jaxpr_trace", "step", of_tracing),
      ("backend_compile", "jit(step)", 1.0),
    ):
      event = f"/jax/core/compile/{phase}_duration"
      jax.monitoring.record_scalar(event, 0.0, fun_name=name)
      jax.monitoring.record_event_duration_secs(event, seconds, fun_name=name)
  assert records == [("step", 2.5)]


def test_a_failure_leaves_nothing_open(said):
  @jax.jit
  def broken(x):
    raise KeyError("x")

  with pytest.raises(KeyError):
    broken(1)
  assert said() == ["compiling broken"]
  assert not terminal._open


def test_threads_compile_side_by_side(said):
  def compile_one(number):
    def side(x):
      return x * number

    side.__name__ = f"side_{number}"
    jax.jit(side)(2.0)

  threads = [threading.Thread(target=compile_one, args=(number,)) for number in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  found = {line for line in said() if line.startswith("compiled side")}
  assert found == {f"compiled side {number} in T s" for number in range(4)}
