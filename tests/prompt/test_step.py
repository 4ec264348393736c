"""The step on one device against torch, its initial state, and which rows of the bank it renews."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pomp_jax.clip.packed import kept_rows
from pomp_jax.prompt.bank import place_rows
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ContextLearner
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.prompt.optimizer import sgd
from pomp_jax.prompt.step import create_state, renewal_token_budget, renewed_classes
from tests.support.checks import assert_close
from tests.support.oracles import unit
from tests.support.small_step import LABELS, N_CLASSES, batch_of, draw_of, make_step, settings_of


def test_negatives_beyond_the_token_budget_are_left_out_and_not_counted(world, image_features):
  """Nor are they written into the bank, which gets all others that the step computes."""
  module, mesh = PromptContext(3, world.clip.text_width), make_mesh()
  labels, drawn = LABELS[:4], draw_of(0, 0)
  lengths = np.array([world.tokens.lengths[c] for c in [*labels, *drawn]])
  budget = int(lengths[:7].sum())
  kept = np.asarray(kept_rows(jnp.asarray(lengths), budget))
  assert kept.tolist() == [True] * 7 + [False] * 2
  step, state, frozen = make_step(
    world, mesh=mesh, module=module, settings=settings_of(world), kind="shared", budget=budget
  )
  bank = unit(np.random.default_rng(1).normal(size=(N_CLASSES, image_features.shape[1])))
  state = state.replace(bank=place_rows(bank, mesh, "float32"))
  leaf = torch.nn.Parameter(torch.tensor(np.asarray(state.params["context"], np.float64)))
  loss, _ = world.loss(leaf, "end", image_features[:4], labels, drawn[:3])
  loss.backward()
  for c in {*labels.tolist(), *drawn[:3]}:
    bank[c] = unit(world.class_feature(c, leaf).detach().numpy())
  batch = batch_of(mesh, image_features[:4].astype(np.float32), labels)
  state, metrics = step(state, frozen, batch)
  assert_close(metrics["loss"], loss.item())
  assert_close(metrics["grad_norm"], leaf.grad.norm().item())
  assert_close(state.bank, bank)


def test_the_first_context_is_a_function_of_the_seed_and_no_draw_shares_its_key():
  learner = ContextLearner(PromptContext(4, 8), lambda *inputs: inputs)
  first, again, other = (
    create_state(learner, sgd(lambda step: 1.0, 0.9, 0.0), seed) for seed in (1, 1, 2)
  )
  contexts = [np.asarray(state.params["context"]) for state in (first, again, other)]
  np.testing.assert_array_equal(contexts[0], contexts[1])
  assert not np.any(contexts[0] == contexts[2])
  assert first.step == 0


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
      np.add.at(seen, renewed(np.int32(step), np.int32(part), n_parts, rows, n_classes), 1)
  assert seen.min() >= 1
  assert seen.sum() == turn * n_parts * rows


def test_the_budget_of_a_renewal_holds_its_longest_part():
  n_classes, n_parts, rows, n_own = 23, 2, 3, 4
  lengths_N = np.random.default_rng(0).integers(2, 9, n_classes)
  parts = [
    (
      lengths_N[
        np.asarray(renewed_classes(jnp.int32(step), jnp.int32(part), n_parts, rows, n_classes))
      ]
      + n_own
    ).sum()
    for step in range(4)
    for part in range(n_parts)
  ]
  assert renewal_token_budget(lengths_N, n_own, n_parts, rows) == max(parts)


def test_names_of_one_length_that_follow_one_another_are_renewed_apart():
  lengths_N = np.repeat([2, 8], 500)
  assert renewal_token_budget(lengths_N, 0, 1, 100) == 500
