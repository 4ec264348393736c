"""Bad losses, roll-backs, and trainings that learn nothing."""

import json

import jax
import numpy as np
import pytest

from pomp_jax.prompt.loss import guess_loss
from pomp_jax.train.resume import RollBacks
from pomp_jax.train.watch import BadLossError, Expected, LossMonitor
from tests.support.clips import write_random_clip
from tests.support.small_run import small_config, trained


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
  assert monitor.statistics == {
    "steps": 20,
    "loss": pytest.approx(values[:20].mean(), rel=1e-6),
    "first": pytest.approx(values[:5].mean(), rel=1e-6),
  }
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


def test_batches_that_led_to_a_bad_loss_are_skipped():
  once = RollBacks().add(bad_step=11, good_step=8)
  assert once == RollBacks(count=1, skipped_batches=3)
  # From the same checkpoint again, and then from a later one.
  assert once.add(9, 8) == RollBacks(2, 4)
  assert once.add(9, 8).add(14, 12) == RollBacks(3, 6)


def test_each_roll_back_has_other_draws():
  keys = [RollBacks(n).seed_key(5) for n in range(20)]
  np.testing.assert_array_equal(keys[0], jax.random.key_data(jax.random.key(5)))
  assert len({key.tobytes() for key in keys}) == 20
  np.testing.assert_array_equal(RollBacks(3, 40).seed_key(5), keys[3])


def learns_nothing(caplog):
  return [line for line in caplog.messages if "learns_nothing=true" in line]


EXPECTED = Expected(guess=4.0, after=30, rate=0.3)


@pytest.mark.parametrize(
  ("values", "found"),
  [
    ([3.5] * 15 + [4.5] * 60, "no better than the 4 of a guess"),
    ([9.0] * 80, "no better than the 4 of a guess"),
    ([1.0] * 15 + [2.0] * 60, "above the 1 of the first steps"),
  ],
)
def test_a_run_that_learns_nothing_warns_once(caplog, values, found):
  losses(LossMonitor(0.0, expected=EXPECTED), values)
  [line] = learns_nothing(caplog)
  assert found in line and "config.optim.lr=0.3" in line and "config.optim.warmup" in line
  assert int(line.split("step=")[1].split()[0]) >= 30


@pytest.mark.parametrize(
  "values",
  [
    [3.0, *np.linspace(6, 1, 29), *[1.0] * 50],  # bad until it is expected
    np.random.default_rng(0).uniform(1.5, 2.5, 200),  # neither up nor down
    [1.0] * 40 + [8.0] + [1.0] * 40,  # one batch
  ],
)
def test_a_loss_that_falls_stays_or_has_one_bad_batch_does_not_warn(caplog, values):
  losses(LossMonitor(0.0, expected=EXPECTED), values)
  assert not learns_nothing(caplog)


def test_the_first_loss_is_known_after_a_restart_and_unknown_to_older_checkpoints(caplog):
  before = LossMonitor(0.0, expected=EXPECTED)
  losses(before, [1.0] * 25)
  memory = json.loads(json.dumps(before.statistics))
  losses(LossMonitor(0.0, {"steps": 25, "loss": 1.0}, EXPECTED), [2.5] * 50, first=26)
  assert not learns_nothing(caplog)
  losses(LossMonitor(0.0, memory, EXPECTED), [2.5] * 50, first=26)
  assert learns_nothing(caplog)


def test_a_training_whose_loss_is_that_of_a_guess_warns(tmp_path, caplog):
  """A CLIP of random weights tells nothing apart, and is surer of it than a guess."""
  write_random_clip(tmp_path / "clip")
  changes = {"clip.model": str(tmp_path / "clip"), "optim.lr": 1e-4}
  with caplog.at_level("WARNING", "pomp_jax"):
    trained(small_config(**{"steps": 22, "checkpoint.every": 22, **changes}), tmp_path / "run")
  [line] = learns_nothing(caplog)
  assert "no better than the 5.7 of a guess" in line  # ln(300)
  assert "config.optim.lr=0.0001" in line


@pytest.mark.parametrize(
  ("n_negatives", "correction", "expected"),
  [
    # Of equal features the image's own class has weight 1, the 19 drawn ones that of 299.
    (19, "log", np.log(300)),
    (19, "refined", np.log(300)),
    (19, "none", np.log(20)),
    (19, "log10", np.log(1 + 19 * np.exp(np.log10(299 / 19)))),
    (299, "none", np.log(300)),
  ],
)
def test_the_loss_of_a_guess(n_negatives, correction, expected):
  assert guess_loss(n_negatives, 300, correction) == pytest.approx(expected, rel=1e-6)
