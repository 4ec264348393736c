"""A training step with 12 classes and 16 images, on any mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from pomp_jax.clip.text import text_tower
from pomp_jax.prompt.learner import ContextLearner
from pomp_jax.prompt.loss import ContrastSettings
from pomp_jax.prompt.mesh import replicate
from pomp_jax.prompt.optimizer import sgd
from pomp_jax.prompt.sampling import samplers, without_replacement
from pomp_jax.prompt.step import StepParts, TrainState, create_state, make_train_step
from tests.support.clips import PLAIN_TOWER

N_CLASSES, K = 12, 6
# Some classes occur twice; 3 and 5 within one group of two images.
LABELS = np.array([3, 3, 7, 0, 1, 11, 4, 9, 5, 5, 2, 8, 6, 3, 10, 0], np.int32)
SEED = 7


def settings_of(
  world,
  k: int = K,
  sampler: samplers.SamplingSettings | None = None,
  ancestors: float = 0.0,
):
  """Returns settings with K classes and the logit scale of the CLIP."""
  scale = world.clip.logit_scale
  return ContrastSettings(
    k, N_CLASSES, "log", scale, sampler or samplers.SamplingSettings(), ancestors
  )


def draw_of(step: int, group: int) -> list[int]:
  """Returns the K-1 negatives of a plain draw."""
  key = without_replacement.draw_key(
    jax.random.key(SEED), jnp.int32(step), jnp.int32(group)
  )
  return jax.jit(without_replacement.sample_uniform, static_argnums=(1, 2))(
    key, K, N_CLASSES
  ).tolist()


def make_step(
  world,
  *,
  mesh,
  module,
  kind=PLAIN_TOWER,
  budget=None,
  block=None,
  vision=None,
  rate: float = 0.5,
  clip_norm: float = 0.0,
  terms=None,
  **more,
) -> tuple[Callable, TrainState, Any]:
  """Returns the train step, the initial state and the frozen arrays, on the mesh.

  `block` is that of the text tower; `more` goes to `StepParts`.
  """
  optimizer = sgd(lambda step: rate / (1 + step), 0.9, 0.01, clip_norm)
  tower = text_tower(
    kind, world.clip.config.text_config, token_budget=budget, block=block
  )
  capacity = block and block - 1 - module.n_vectors + module.n_own
  learner = ContextLearner(
    module, tower, budget, capacity, image_tower=vision, terms=terms or {}
  )
  step = make_train_step(StepParts(mesh, learner, optimizer, **more))
  state = replicate(create_state(learner, optimizer, SEED), mesh)
  return step, state, replicate(world.frozen, mesh)


def batch_of(mesh, images, labels):
  """Shards images, or their features, over the data axis."""
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  return jax.device_put({"image": images, "label": labels}, sharding)
