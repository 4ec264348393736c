"""The step on one device against torch, which rows of the bank it renews, and its
rates."""

import itertools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from pomp_jax.clip.packed import kept_rows, taken_of
from pomp_jax.prompt.bank import place_rows, renewal_token_budget, renewed_classes
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.loss import ContrastSettings
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.prompt.optimizer import learning_rate
from pomp_jax.prompt.sampling.samplers import SamplingSettings
from pomp_jax.prompt.sampling.without_replacement import draw_key
from pomp_jax.prompt.step import create_state, step_token_budget
from tests.support.checks import assert_close
from tests.support.oracles import unit
from tests.support.small_step import (
  LABELS,
  N_CLASSES,
  batch_of,
  draw_of,
  make_step,
  settings_of,
)


@pytest.mark.parametrize("block", [None, 32])
def test_negatives_beyond_the_token_budget_are_left_out_and_not_counted(
  world, image_features, block
):
  """Nor are they written into the bank, which gets all others that the step
  computes."""
  module, mesh = PromptContext(3, world.clip.text_width), make_mesh()
  labels, drawn = LABELS[:4], draw_of(0, 0)
  lengths = np.array([world.tokens.lengths[c] for c in [*labels, *drawn]])
  capacity = block and block - 4
  budget = math.ceil(taken_of(lengths, capacity)[:7].sum())
  kept = np.asarray(kept_rows(jnp.asarray(lengths), budget, capacity))
  assert kept.tolist() == [True] * 7 + [False] * 2
  step, state, frozen = make_step(
    world,
    mesh=mesh,
    module=module,
    settings=settings_of(world),
    kind="shared",
    budget=budget,
    block=block,
  )
  bank = unit(
    np.random.default_rng(1).normal(size=(N_CLASSES, image_features.shape[1]))
  )
  state = state.replace(bank=place_rows(bank, mesh))
  leaf = torch.nn.Parameter(
    torch.tensor(np.asarray(state.params["context"], np.float64))
  )
  loss, _ = world.loss(leaf, "end", image_features[:4], labels, drawn[:3])
  loss.backward()
  for c in {*labels.tolist(), *drawn[:3]}:
    bank[c] = unit(world.class_feature(c, leaf).detach().numpy())
  batch = batch_of(mesh, image_features[:4].astype(np.float32), labels)
  state, metrics = step(state, frozen, batch)
  assert_close(metrics["loss"], loss.item())
  assert_close(metrics["grad_norm"], leaf.grad.norm().item())
  assert_close(state.bank, bank)


@pytest.mark.parametrize(
  ("n_classes", "n_parts", "rows", "first_step"),
  [(10, 2, 3, 0), (12, 2, 3, 5), (7, 1, 9, 3), (1_000_000, 2, 1500, 999_000)],
)
def test_a_turn_renews_every_class(n_classes, n_parts, rows, first_step):
  """Products of the step number and the rows exceed 32 bits in the last case."""
  turn = -(-n_classes // (n_parts * rows))
  seen = np.zeros(n_classes, int)
  renewed = jax.jit(renewed_classes, static_argnums=(2, 3, 4))
  for step in range(first_step, first_step + turn):
    for part in range(n_parts):
      np.add.at(
        seen, renewed(np.int32(step), np.int32(part), n_parts, rows, n_classes), 1
      )
  assert seen.min() >= 1
  assert seen.sum() == turn * n_parts * rows


@pytest.mark.parametrize("first", [2, 9])
def test_the_budget_of_all_classes_is_that_of_the_fullest_device(first):
  """Dealt out in turn, one device has the long names; each may have the longest
  positives."""
  lengths_N = np.tile([first, 11 - first], 10).astype(np.int32)
  settings = ContrastSettings(20, 20, "log", 10.0)
  parts = {"settings": settings, "group_size": 3, "class_size": 2}
  module = PromptContext(4, 8, "front")  # the four vectors are behind each name
  assert step_token_budget(module, lengths_N, **parts) == 10 * (9 + 4) + 2 * (9 + 4)


def test_the_initial_parameters_have_a_random_stream_of_their_own():
  """No draw of a step has their key, nor has the run of another seed."""
  keys = []
  learner = mock.Mock(init=lambda key: keys.append(jax.random.key_data(key)) or {})
  states = [create_state(learner, optax.identity(), seed) for seed in (0, 1, 0)]
  first, other, again = map(np.ndarray.tolist, map(np.asarray, keys))
  assert first == again != other
  seed_key = jax.random.key(0)
  np.testing.assert_array_equal(states[0].seed_key, jax.random.key_data(seed_key))
  assert states[0].step == 0
  steps = [jax.random.fold_in(seed_key, step) for step in range(9)]
  pairs = itertools.product(jnp.arange(9), repeat=2)
  draws = [draw_key(seed_key, step, group) for step, group in pairs]
  assert first not in [
    jax.random.key_data(key).tolist() for key in (seed_key, *steps, *draws)
  ]


def test_the_budget_of_a_renewal_holds_its_longest_part():
  n_classes, n_parts, rows, n_own = 23, 2, 3, 4
  lengths_N = np.random.default_rng(0).integers(2, 9, n_classes)
  renewed = [
    renewed_classes(jnp.int32(step), jnp.int32(part), n_parts, rows, n_classes)
    for step, part in itertools.product(range(4), range(n_parts))
  ]
  longest = max((lengths_N[np.asarray(ids)] + n_own).sum() for ids in renewed)
  assert renewal_token_budget(lengths_N, n_own, n_parts, rows) == longest


@pytest.mark.parametrize(
  ("k", "sampler", "images", "class_size", "tokens"),
  [
    # K - 1 = 9 classes of a draw, and those of 4 images.
    (10, "uniform", 4, 1, 9 + 4),
    (10, "posterior", 4, 1, 9 + 4),
    # A draw of 9 for each image.
    (10, "independent", 4, 1, 4 * 9 + 4),
    (2, "independent", 1, 1, 1 + 1),
    # The fuller of two devices, and of four.
    (10, "uniform", 4, 2, 5 + 2),
    (10, "uniform", 5, 4, 3 + 2),
    (10, "independent", 3, 2, 14 + 2),
    # Each image rejects its own class among all 21, which all images share.
    (21, "uniform", 4, 1, 21 + 4),
    (21, "independent", 4, 1, 21 + 4),
    (21, "uniform", 4, 4, 6 + 1),
    (20, "uniform", 4, 1, 19 + 4),
  ],
)
@pytest.mark.usefixtures("rows_of_studies")
def test_the_budget_of_names_of_one_length(k, sampler, images, class_size, tokens):
  """Names of 16 tokens, beside the vectors that classes do not share."""
  settings = ContrastSettings(k, 21, "log", 10.0, SamplingSettings(sampler))
  for position, n_classes, own in (
    ("end", None, 0),
    ("middle", None, 16),
    ("end", 21, 32),
  ):
    module = PromptContext(32, 8, position, n_classes)
    budget = step_token_budget(
      module,
      np.full(21, 16, np.int32),
      settings=settings,
      group_size=images,
      class_size=class_size,
    )
    assert budget == tokens * (16 + own)


def test_names_of_one_length_that_follow_one_another_are_renewed_apart():
  lengths_N = np.repeat([2, 8], 500)
  assert renewal_token_budget(lengths_N, 0, 1, 100) == 500


# Rates of the optimizer: the published schedule against Dassl's, ours by its formula.

RECIPE = {
  "base": 0.002,
  "epochs": 5.0,
  "steps_per_epoch": 7,
  "warmup": 1.0,
  "warmup_rate": 1e-5,
}


def _rates(schedule, **settings):
  settings = {**RECIPE, **settings}
  rate = jax.jit(learning_rate(schedule=schedule, **settings))
  n_steps = int(settings["epochs"] * settings["steps_per_epoch"])
  return np.array([rate(jnp.int32(step)) for step in range(n_steps)])


def dassl_rates(epochs, warmup, base=0.002, warmup_rate=1e-5):
  """The rates that torch's SGD has under Dassl's schedule, of torch's own schedulers.

  A cosine over all epochs, started after a constant warmup; stepped once an epoch.
  """
  leaf = torch.nn.Parameter(torch.zeros(1))
  leaf.grad = torch.zeros(1)
  optimizer = torch.optim.SGD([leaf], lr=base)
  scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
  if warmup:
    constant = torch.optim.lr_scheduler.LambdaLR(
      optimizer, lambda epoch: warmup_rate / base
    )
    parts = [constant, scheduler]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [warmup])
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
  """Its warm-up may be a fraction of an epoch. After the end it stays 0."""
  rates, first = _rates("step", warmup=warmup), math.ceil(7 * warmup)
  assert (rates[:first] == np.float32(1e-5)).all()
  share = (np.arange(first, 35) - 7 * warmup) / (35 - 7 * warmup)
  assert_close(rates[first:], 0.001 * (1 + np.cos(np.pi * share)), 1e-6)
  assert 0 < rates[-1] < 0.01 * 0.002
  after = learning_rate(schedule="step", **{**RECIPE, "warmup": warmup})
  assert [after(step) for step in (35, 50, 70)] == [0, 0, 0]


@pytest.mark.parametrize("schedule", ["epoch", "step"])
def test_a_run_that_is_all_warm_up_stays_there(schedule):
  assert (_rates(schedule, epochs=1.0) == np.float32(1e-5)).all()
