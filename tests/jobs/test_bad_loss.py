"""Losses that can't be gone on from, and the way around them."""

import json

import jax
import numpy as np
import pytest

from pomp_jax.jobs.bad_loss import BadLossError, Detour, Judge


def losses(judge, values, first=1):
  for step, loss in enumerate(values, first):
    judge(step, {"loss": np.float32(loss), "accuracy": 0.5})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_what_is_not_finite_is_bad(name, value):
  with pytest.raises(BadLossError, match=rf"^{name} is -?(nan|inf) at step 7$") as caught:
    Judge(0.0)(7, {"loss": 1.0, "grad_norm": 1.0} | {name: np.float32(value)})
  assert caught.value.step == 7


def test_any_finite_loss_is_good_unless_spikes_are_asked_for():
  losses(Judge(0.0), [1.0] * 30 + [1e30])


def test_a_spike_is_told_from_what_is_usual():
  judge = Judge(3.0)
  losses(judge, [2.0, 1.0] * 15)
  usual = judge.memory()["loss"]
  assert 1.3 < usual < 1.7
  losses(judge, [2.9 * usual], first=31)
  with pytest.raises(BadLossError, match=r"^loss is 9 at step 32, more than 3 times the 1\.\d+"):
    losses(judge, [9.0], first=32)


def test_the_first_steps_are_no_spikes():
  losses(Judge(1.5), [1.0] * 19 + [100.0])
  with pytest.raises(BadLossError):
    losses(Judge(1.5), [1.0] * 20 + [100.0])


def test_the_usual_loss_is_the_mean_and_then_a_running_mean():
  values = np.random.default_rng(0).uniform(1, 2, 60)
  judge = Judge(10.0)
  losses(judge, values[:20])
  assert judge.memory() == {"steps": 20, "loss": pytest.approx(values[:20].mean(), rel=1e-6)}
  losses(judge, values[20:], first=21)
  # A loss from d steps ago weighs 0.05 * 0.95^d.
  weights = 0.05 * 0.95 ** np.arange(40)[::-1]
  expected = weights @ values[20:] + 0.95**40 * values[:20].mean()
  assert judge.memory()["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_judge_goes_on_where_it_was_exactly():
  values = np.random.default_rng(1).uniform(1, 2, 50)
  whole, first = Judge(2.0), Judge(2.0)
  losses(whole, values)
  losses(first, values[:23])
  second = Judge(2.0, json.loads(json.dumps(first.memory())))
  losses(second, values[23:], first=24)
  assert second.memory() == whole.memory()


def test_a_detour_leaves_out_what_led_to_the_bad_loss():
  once = Detour().after(bad_step=11, good_step=8)
  assert once == Detour(roll_backs=1, batches=3)
  # From the same checkpoint again, and then from a later one.
  assert once.after(9, 8) == Detour(2, 4)
  assert once.after(9, 8).after(14, 12) == Detour(3, 6)


def test_each_detour_has_draws_of_its_own():
  keys = [Detour(n).seed_key(5) for n in range(20)]
  np.testing.assert_array_equal(keys[0], jax.random.key_data(jax.random.key(5)))
  assert len({key.tobytes() for key in keys}) == 20
  np.testing.assert_array_equal(Detour(3, 40).seed_key(5), keys[3])
