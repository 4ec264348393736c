"""The step with samplers that compare a bank: on every mesh the same, and nothing recompiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax.prompt.bank import place_rows
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.mesh import make_mesh, replicate
from pomp_jax.prompt.sampling import SamplingArrays, SamplingSettings
from pomp_jax.prompt.step import renewal_token_budget, renewed_classes
from tests.support.checks import assert_close
from tests.support.small_step import (
  LABELS,
  N_CLASSES,
  K,
  batch_of,
  budget_of,
  make_step,
  settings_of,
)

SAMPLERS = {
  "posterior": SamplingSettings("posterior", mix=0.1, logit_scale=20.0),
  "hard": SamplingSettings("hard", temperature=0.2, exclude="similar", exclude_threshold=0.6),
  "hierarchical": SamplingSettings("hierarchical", exclude="kin", batch_positives=True),
}


def _bank(width):
  bank = np.random.default_rng(1).normal(size=(N_CLASSES, width)).astype(np.float32)
  return bank / np.linalg.norm(bank, axis=1, keepdims=True)


def _arrays():
  every = np.arange(N_CLASSES, dtype=np.int32)
  return SamplingArrays(
    groups=every[:, None] // 4,
    group_sizes=np.full(3, 4, np.int32),
    kin=np.where(every % 2, every - 1, -1)[:, None].astype(np.int32),
    levels=every[:, None] // 3,
  )


def _steps(world, features, sampling, *, devices, class_size):
  module = PromptContext(3, world.clip.text_width)
  mesh = make_mesh(class_size, jax.devices()[:devices])
  settings = settings_of(world, K, sampling, 0.3)
  budget = budget_of(world, module, settings, group_size=2, class_size=class_size)
  step, state, frozen = make_step(
    world,
    mesh=mesh,
    module=module,
    settings=settings,
    accumulate=8 * class_size // devices,
    kind="shared",
    budget=budget,
  )
  if "bank" in sampling.needs:
    state = state.replace(bank=place_rows(_bank(features.shape[1]), mesh, "float32"))
  frozen = frozen._replace(sampling=replicate(_arrays(), mesh))
  batch = batch_of(mesh, features, LABELS)
  losses = []
  for _ in range(3):
    state, metrics = step(state, frozen, batch)
    losses.append(float(metrics["loss"]))
  assert step._cache_size() == 1
  return np.asarray(state.params["context"]), losses


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_mesh_computes_the_same(world, image_features, name):
  features = image_features.astype(np.float32)
  context, losses = _steps(world, features, SAMPLERS[name], devices=1, class_size=1)
  for class_size in (1, 4):
    other, other_losses = _steps(world, features, SAMPLERS[name], devices=8, class_size=class_size)
    assert_close(other, context, 1e-5)
    assert other_losses == pytest.approx(losses, rel=1e-5)
  plain, _ = _steps(world, features, SamplingSettings(), devices=1, class_size=1)
  assert np.abs(plain - context).max() > 1e-3 * np.abs(context).max()


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
