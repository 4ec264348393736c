"""The shared text tower against the reference, which computes every class in full."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from pomp_jax.clip.packed import (
  ACTIVATIONS,
  MemoryPlan,
  kept_rows,
  shared_text_tower,
  taken_of,
  token_budget,
)
from pomp_jax.clip.text import token_embeddings
from pomp_jax.prompt.context import PromptContext
from tests.support.checks import assert_close
from tests.support.clips import reference_tower

N_CLASSES = 11
LONGEST = 14


@pytest.fixture(scope="module")
def names(quick):
  return _names(quick)


def _names(stored):
  """Ragged rows: embeddings of names of 1 to 12 tokens with "." and EOT, and both
  lengths."""
  rng = np.random.default_rng(0)
  name_lengths = rng.integers(1, LONGEST - 1, N_CLASSES).astype(np.int32)
  name_lengths[:2] = 1, LONGEST - 2
  n_tokens = stored.clip.config.text_config.vocab_size
  ids = rng.integers(0, n_tokens, (N_CLASSES, LONGEST)).astype(np.int32)
  tokens = token_embeddings(stored.clip.params, ids)
  return jnp.asarray(tokens), jnp.asarray(name_lengths), jnp.asarray(name_lengths + 2)


def _features_and_gradient(stored, tower, module, names):
  """Features of all rows, and the gradient of a bounded function of them to the
  context."""
  tokens, name_lengths, lengths = names
  sos = stored.clip.sos_embedding
  rows = jnp.arange(N_CLASSES, dtype=jnp.int32)
  context = module.init(jax.random.key(1), method=lambda m: m.context)["params"]
  cotangent = (
    np.random.default_rng(2).standard_normal((N_CLASSES, 24)).astype(np.float32)
  )

  def loss(context):
    sequences = module.apply(
      {"params": context}, sos, tokens, name_lengths, lengths, rows
    )
    features = tower(stored.clip.text_params, *sequences)
    return jnp.sum(jnp.sin(features) * cotangent), features

  gradient, features = jax.jit(jax.grad(loss, has_aux=True))(context)
  return features, gradient["context"]


BLOCKS = (None, 48, 128)


def _tokens(lengths, capacity):
  """T that the rows just fit."""
  return math.ceil(taken_of(np.asarray(lengths), capacity).sum())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
  "which, m, position, class_specific, n_chunks, remat",
  [
    ("quick", 16, "end", False, 1, "none"),
    ("legacy", 7, "middle", False, 1, "none"),  # gelu
    ("quick", 4, "front", False, 1, "layers"),
    ("quick", 5, "middle", True, 5, "layers"),
    ("quick", 4, "middle", False, 2, "none"),
    ("quick", 4, "middle", False, 3, "chunks"),
  ],
)
def test_equals_the_reference_to_1e_5(
  request, which, m, position, class_specific, n_chunks, remat, block
):
  stored = request.getfixturevalue(which)
  names = _names(stored)
  module = PromptContext(
    m, stored.clip.text_width, position, N_CLASSES if class_specific else None
  )
  reference = reference_tower(stored.clip.config.text_config)
  expected = _features_and_gradient(stored, reference, module, names)
  capacity = block and block - 1 - m + module.n_own
  budget = _tokens(names[2] + module.n_own, capacity)
  memory = MemoryPlan(n_chunks, remat)
  tower = shared_text_tower(
    stored.clip.config.text_config, token_budget=budget, memory=memory, block=block
  )
  found = _features_and_gradient(stored, tower, module, names)
  assert_close(found[0], expected[0])
  assert_close(found[1], expected[1])


@pytest.mark.parametrize("longest", [9, 10, 17, 18])
def test_the_last_token_sees_the_first_of_the_longest_row(quick, longest):
  """Also where a block of the packed tokens begins with it, so that it sees one
  block more."""
  rng = np.random.default_rng(longest)
  # The first row fills up so that the second one's last token is the first of a block.
  first = (1 - longest) % 8 or 8
  lengths = np.array([first, longest], np.int32)
  n_tokens = quick.clip.config.text_config.vocab_size
  ids = rng.integers(0, n_tokens, (2, longest)).astype(np.int32)
  tokens = jnp.asarray(token_embeddings(quick.clip.params, ids))
  names = tokens, jnp.asarray(lengths - 2), jnp.asarray(lengths)
  assert (lengths.sum() - 1) % 8 == 0
  module = PromptContext(4, quick.clip.text_width)
  sequences = module.apply(
    module.init(jax.random.key(1), method=lambda m: m.context),
    *(quick.clip.sos_embedding, *names, jnp.arange(2, dtype=jnp.int32)),
  )
  config = quick.clip.config.text_config
  tower = shared_text_tower(
    config, token_budget=int(lengths.sum()), memory=MemoryPlan()
  )
  found = jax.jit(tower)(quick.clip.text_params, *sequences)
  expected = jax.jit(reference_tower(config))(quick.clip.text_params, *sequences)
  assert_close(found, expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_bfloat16_is_as_near_to_float32_as_the_reference_is(quick, names, block):
  module = PromptContext(16, quick.clip.text_width)
  config = quick.clip.config.text_config
  exact = _features_and_gradient(quick, reference_tower(config), module, names)
  theirs = _features_and_gradient(
    quick, reference_tower(config, jnp.bfloat16), module, names
  )
  tower = shared_text_tower(config, jnp.bfloat16, block=block)
  ours = _features_and_gradient(quick, tower, module, names)
  for mine, other, truth in zip(ours, theirs, exact, strict=True):
    error, other_error = (
      float(np.linalg.norm(x - truth) / np.linalg.norm(truth)) for x in (mine, other)
    )
    assert error < 0.05
    assert error < 1.5 * other_error


@pytest.mark.parametrize("block", BLOCKS)
def test_rows_beyond_the_budget_are_left_out_and_the_others_stay(quick, names, block):
  tokens, _, lengths = names
  prefix = jnp.asarray(
    token_embeddings(quick.clip.params, np.arange(3, dtype=np.int32))
  )
  capacity = block and block - 3
  budget = _tokens(lengths[:6], capacity) + 1
  kept = np.asarray(kept_rows(lengths, budget, capacity))
  np.testing.assert_array_equal(kept, np.arange(N_CLASSES) < 6)
  reference = jax.jit(reference_tower(quick.clip.config.text_config))
  expected = reference(quick.clip.text_params, prefix, tokens, lengths)
  for n_chunks in (1, 3):
    config, memory = quick.clip.config.text_config, MemoryPlan(n_chunks)
    tower = shared_text_tower(config, token_budget=budget, memory=memory, block=block)
    features = jax.jit(tower)(quick.clip.text_params, prefix, tokens, lengths)
    assert_close(features[:6], expected[:6])
    np.testing.assert_array_equal(features[6:], 1.0)

    def dropped(tokens, tower=tower):
      return jnp.sum(tower(quick.clip.text_params, prefix, tokens, lengths)[6:])

    np.testing.assert_array_equal(jax.jit(jax.grad(dropped))(tokens), 0.0)


@pytest.mark.parametrize("capacity", [None, 123])
def test_budget_holds_draws_and_always_the_given_rows(capacity):
  rng = np.random.default_rng(0)
  lengths = rng.integers(3, 15, 5000).astype(np.int32)
  taken = taken_of(lengths, capacity)
  budget = token_budget(lengths, 200, n_given=10, capacity=capacity)
  assert budget % 16 == 0
  draws = [rng.permutation(5000)[:210] for _ in range(500)]
  totals = [taken[draw].sum() for draw in draws]
  assert max(totals) <= budget < 1.15 * np.mean(totals)
  assert all(
    kept_rows(jnp.asarray(lengths[draw]), budget, capacity).all() for draw in draws[:9]
  )
  positives = jnp.full(300, 14, jnp.int32)
  budget = token_budget(lengths, 1, n_given=300, capacity=capacity)
  assert kept_rows(positives, budget, capacity).all()
  # All of them: no slack beyond the rounding.
  budget = token_budget(lengths, 5000, capacity=capacity)
  assert taken.sum() <= budget < taken.sum() + 16
  assert kept_rows(jnp.asarray(lengths), budget, capacity).all()


def test_refuses_what_it_does_not_know(quick, names):
  tokens, _, lengths = names
  config = quick.clip.config.text_config
  prefix = jnp.zeros((70, quick.clip.text_width))
  for tower in (shared_text_tower(config), reference_tower(config)):
    with pytest.raises(ValueError, match=r"70 \+ 14 tokens: expected at most"):
      tower(quick.clip.text_params, prefix, tokens, lengths)


def test_work_does_not_grow_with_the_padding(quick, n_rows=100):
  config = quick.clip.config.text_config

  def flops(longest):
    tower = shared_text_tower(config, token_budget=4 * n_rows)
    arguments = (
      quick.clip.text_params,
      jax.ShapeDtypeStruct((5, quick.clip.text_width), jnp.float32),
      jax.ShapeDtypeStruct((n_rows, longest, quick.clip.text_width), jnp.float32),
      jax.ShapeDtypeStruct((n_rows,), jnp.int32),
    )
    return jax.jit(tower).lower(*arguments).compile().cost_analysis()["flops"]

  assert flops(16) < 1.15 * flops(9)


def test_each_activation_is_huggingfaces():
  rows = np.linspace(-4, 4, 33, dtype=np.float32)
  for name, activation in ACTIVATIONS.items():
    expected = ACT2FN[name](torch.tensor(rows)).numpy()
    np.testing.assert_allclose(
      activation(jnp.asarray(rows)), expected, rtol=1e-5, atol=1e-6
    )
