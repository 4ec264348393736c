"""Bad losses and roll-backs."""

import json
from typing import NamedTuple

import jax
import numpy as np
import pytest

from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.train.resume import Checkpoint
from pomp_jax.train.watch import BadLossError, LossMonitor


def losses(monitor, values, first=1):
  for step, loss in enumerate(values, first):
    monitor(step, {"loss": np.float32(loss), "accuracy": 0.5})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_values_that_are_not_finite_are_bad(name, value):
  with pytest.raises(BadLossError, match=rf"^{name} is -?(nan|inf) at step 7$") as caught:
    LossMonitor(0.0)(7, {"loss": 1.0, "grad_norm": 1.0} | {name: np.float32(value)})
  assert caught.value.step == 7


def test_a_spike_is_a_multiple_of_the_running_mean():
  monitor = LossMonitor(3.0)
  losses(monitor, [2.0, 1.0] * 15)
  mean = monitor.statistics["loss"]
  assert 1.3 < mean < 1.7
  losses(monitor, [2.9 * mean], first=31)
  with pytest.raises(BadLossError, match="^loss is 9 at step 32, more than 3 times "):
    losses(monitor, [9.0], first=32)


def test_the_first_steps_are_no_spikes():
  losses(LossMonitor(1.5), [1.0] * 19 + [100.0])
  losses(LossMonitor(0.0), [1.0] * 30 + [1e30])  # nor any loss, unless they are asked for
  with pytest.raises(BadLossError):
    losses(LossMonitor(1.5), [1.0] * 20 + [100.0])


def test_the_loss_has_a_plain_and_then_a_running_mean():
  values = np.random.default_rng(0).uniform(1, 2, 60)
  monitor = LossMonitor(10.0)
  losses(monitor, values[:20])
  mean = pytest.approx(values[:20].mean(), rel=1e-6)
  assert monitor.statistics == {"steps": 20, "loss": mean}
  losses(monitor, values[20:], first=21)
  # A loss from d steps ago weighs 0.05 * 0.95^d.
  weights = 0.05 * 0.95 ** np.arange(40)[::-1]
  expected = weights @ values[20:] + 0.95**40 * values[:20].mean()
  assert monitor.statistics["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_resumed_monitor_has_the_same_statistics():
  values = np.random.default_rng(1).uniform(1, 2, 50)
  whole, first = LossMonitor(2.0), LossMonitor(2.0)
  losses(whole, values)
  losses(first, values[:23])
  second = LossMonitor(2.0, json.loads(json.dumps(first.statistics)))
  losses(second, values[23:], first=24)
  assert second.statistics == whole.statistics


def test_each_roll_back_skips_batches_and_has_other_draws():
  class State(NamedTuple):
    seed_key: np.ndarray | None = None

    def replace(self, **changes):
      return self._replace(**changes)

  mesh, start = make_mesh(), Checkpoint(0, State())
  once = start._replace(step=8).rolled_back(start, 11, 5, mesh)
  assert (once.roll_backs, once.skipped_batches) == (1, 3)
  # From the same checkpoint again, and then from a later one.
  twice = start._replace(step=8).rolled_back(once, 9, 5, mesh)
  thrice = start._replace(step=12).rolled_back(twice, 14, 5, mesh)
  assert (thrice.roll_backs, thrice.skipped_batches) == (3, 6)
  counts = (start._replace(roll_backs=n) for n in range(19))
  keys = [np.asarray(start.rolled_back(before, 1, 5, mesh).state.seed_key) for before in counts]
  keys.append(jax.random.key_data(jax.random.key(5)))
  assert len({key.tobytes() for key in keys}) == 20
  np.testing.assert_array_equal(thrice.state.seed_key, keys[2])
