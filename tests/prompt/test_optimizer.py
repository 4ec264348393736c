"""SGD against torch's, the published schedule against Dassl's, and ours against its formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from pomp_jax.prompt.optimizer import learning_rate, sgd
from tests.support.checks import assert_close
from tests.support.oracles import dassl_scheduler

RECIPE = {"base": 0.002, "epochs": 5.0, "steps_per_epoch": 7, "warmup": 1.0, "warmup_rate": 1e-5}


def _rates(schedule, **settings):
  settings = {**RECIPE, **settings}
  rate = jax.jit(learning_rate(schedule=schedule, **settings))
  n_steps = int(settings["epochs"] * settings["steps_per_epoch"])
  return np.array([rate(jnp.int32(step)) for step in range(n_steps)])


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 5e-4), (0.5, 0.1), (0.0, 0.0)])
def test_sgd_is_torchs(momentum, weight_decay):
  rng = np.random.default_rng(0)
  start = rng.normal(size=(4, 8)).astype(np.float32)
  gradients = rng.normal(size=(10, 4, 8)).astype(np.float32)
  rates = [0.3 / (1 + step) for step in range(10)]

  optimizer = sgd(lambda step: jnp.asarray(rates)[step], momentum, weight_decay)
  params = {"context": jnp.asarray(start)}
  state = optimizer.init(params)
  leaf = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
  other = torch.optim.SGD([leaf], lr=rates[0], momentum=momentum, weight_decay=weight_decay)
  for gradient, rate in zip(gradients, rates, strict=True):
    updates, state = optimizer.update({"context": jnp.asarray(gradient)}, state, params)
    params = optax.apply_updates(params, updates)
    leaf.grad = torch.tensor(gradient, dtype=torch.float64)
    other.param_groups[0]["lr"] = rate
    other.step()
    assert_close(params["context"], leaf.detach(), 1e-6)


def dassl_rates(epochs, warmup, base=0.002, warmup_rate=1e-5):
  """The rate that torch's SGD has in each epoch under Dassl's scheduler."""
  leaf = torch.nn.Parameter(torch.zeros(1))
  leaf.grad = torch.zeros(1)
  optimizer = torch.optim.SGD([leaf], lr=base)
  scheduler = dassl_scheduler(optimizer, epochs=epochs, warmup=warmup, warmup_rate=warmup_rate)
  rates = []
  for _ in range(epochs):
    rates.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()
  return rates


@pytest.mark.parametrize("epochs", [1, 2, 5, 20, 50, 200])
@pytest.mark.parametrize("warmup", [0, 1, 2, 5])
def test_the_epoch_schedule_is_dassls(epochs, warmup):
  rates = _rates("epoch", epochs=float(epochs), warmup=float(warmup), steps_per_epoch=3)
  expected = np.repeat(dassl_rates(epochs, warmup), 3)
  assert_close(rates, expected, 1e-6)


def test_the_recipes_rates_are_the_published_ones():
  rates = _rates("epoch").reshape(5, 7)
  assert (rates == rates[:, :1]).all()
  assert rates[0, 0] == np.float32(1e-5)
  assert rates[1, 0] == np.float32(0.002)
  np.testing.assert_array_equal(
    rates[1:, 0].round(5).astype(str), ["0.002", "0.00181", "0.00131", "0.00069"]
  )


def test_epoch_boundaries_are_exact_for_any_number_of_steps():
  # step / steps_per_epoch in float32 rounds to the wrong side at some of these.
  for steps_per_epoch in (3, 49, 1303, 5000):
    rate = jax.jit(
      learning_rate(schedule="epoch", **{**RECIPE, "steps_per_epoch": steps_per_epoch})
    )
    for epoch in range(1, 5):
      before, first, last = (
        float(rate(jnp.int32(epoch * steps_per_epoch + offset)))
        for offset in (-1, 0, steps_per_epoch - 1)
      )
      assert first == last != before


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_the_step_variant_moves_at_every_step_and_ends_near_zero(warmup):
  """Its warm-up may be a fraction of an epoch."""
  rates, first = _rates("step", warmup=warmup), math.ceil(7 * warmup)
  assert (rates[:first] == np.float32(1e-5)).all()
  share = (np.arange(first, 35) - 7 * warmup) / (35 - 7 * warmup)
  assert_close(rates[first:], 0.001 * (1 + np.cos(np.pi * share)), 1e-6)
  assert 0 < rates[-1] < 0.01 * 0.002


@pytest.mark.parametrize("schedule", ["epoch", "step"])
def test_a_run_that_is_all_warm_up_stays_there(schedule):
  assert (_rates(schedule, epochs=1.0) == np.float32(1e-5)).all()


def test_an_unknown_schedule_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="schedule: got 'linear'"):
    learning_rate(schedule="linear", **RECIPE)
