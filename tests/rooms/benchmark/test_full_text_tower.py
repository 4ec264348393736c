"""The bidirectional text tower: equal in chunks, and the memory that is planned for
it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax.clip.architecture import parameter_shapes
from pomp_jax.clip.packed import AT_ONCE, MemoryPlan
from pomp_jax.clip.text import (
  activation_bytes,
  full_tower_bytes,
  plan_memory,
  text_tower,
)
from pomp_jax.rooms.benchmark.synthetic_clip import open_clips_config, random_params
from tests.support.checks import assert_close

N_CLASSES = 11
N_PREFIX = 3
POSITIONS = 8
TEXT = {
  **{
    "width": 48,
    "layers": 2,
    "heads": 4,
    "vocab_size": 16,
    "context_length": POSITIONS,
  },
  "no_causal_mask": True,
}


@pytest.fixture(scope="module")
def clip():
  vision = {"timm_model_name": "none"}
  return open_clips_config({"embed_dim": 24, "text_cfg": TEXT, "vision_cfg": vision})


@pytest.mark.parametrize("n_chunks", [2, 4, 5])
def test_chunks_change_nothing(clip, n_chunks):
  """Also where the rows don't divide, and where fewer chunks hold them: 5 of at most
  3 rows."""
  shapes = parameter_shapes(clip)
  params = random_params(
    {key: shapes[key] for key in ("text_model", "text_projection")}, seed=0
  )
  rng = np.random.default_rng(1)
  shape = N_CLASSES, POSITIONS - N_PREFIX, TEXT["width"]
  suffix_CxLxD = rng.standard_normal(shape, np.float32)
  prefix_PxD = rng.standard_normal((N_PREFIX, TEXT["width"]), np.float32)
  cotangent_CxE = rng.standard_normal((N_CLASSES, 24), np.float32)

  def found(plan):
    tower = text_tower("shared", clip.text_config, jnp.float32, None, plan)

    def loss(prefix_PxD, suffix_CxLxD):
      lengths_C = jnp.full(N_CLASSES, POSITIONS - N_PREFIX)
      features_CxE = tower(params, prefix_PxD, suffix_CxLxD, lengths_C)
      return jnp.sum(jnp.sin(features_CxE) * cotangent_CxE), features_CxE

    gradients, features = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(
      prefix_PxD, suffix_CxLxD
    )
    return features, *gradients

  expected = found(AT_ONCE)
  for one, other in zip(found(MemoryPlan(n_chunks, "chunks")), expected, strict=True):
    assert one.shape == other.shape
    assert_close(one, other)


def test_the_plan_has_the_fewest_chunks_that_fit(clip):
  n_tokens = 1000 * (POSITIONS - N_PREFIX)
  arguments = clip.text_config, N_PREFIX, n_tokens
  estimate = full_tower_bytes(*arguments, "bfloat16", "tpu")
  assert estimate.n_classes == 1000
  assert activation_bytes(*arguments, None, "bfloat16", "tpu") == estimate.peak(1)
  plan = lambda limit: plan_memory(*arguments, limit, None, "bfloat16", "tpu")
  assert plan(estimate.peak(1)) == AT_ONCE
  for share in (0.9, 0.3, 0.2):
    limit = share * estimate.peak(1)
    n_chunks, remat = plan(limit)
    assert n_chunks > 1 and remat == "chunks"
    assert estimate.peak(n_chunks) <= limit < estimate.peak(n_chunks - 1)


def test_the_plan_of_a_small_limit(clip):
  """Twice the embeddings lie in memory in any case, and a chunk has one class or
  more."""
  estimate = full_tower_bytes(clip.text_config, N_PREFIX, 5000, "float32", "cpu")
  n_chunks = estimate.plan(0.0).n_chunks
  least = 2 * estimate.embeddings + estimate.features
  assert estimate.peak(n_chunks) <= least < estimate.peak(n_chunks - 1)
  heavy = estimate._replace(weights=10 * estimate.embeddings)
  assert heavy.plan(0.0).n_chunks == estimate.n_classes


def test_a_tpu_pads_heads_and_weights_of_attention(clip):
  sizes = clip.text_config, N_PREFIX, 5000
  there, here = (
    full_tower_bytes(*sizes, "bfloat16", platform) for platform in ("tpu", "gpu")
  )
  # Heads of 12 and eight weights of a query are stored as 128.
  rows = 2 * 1000 * POSITIONS
  assert there.residuals - here.residuals == 2 * rows * 4 * (
    3 * (128 - 12) + 2 * (128 - 8)
  )
  assert here.weights == 2 * 2 * 12 * 48**2
  assert full_tower_bytes(*sizes, "tensorfloat32", "gpu").weights == 0
