"""The whole training step against the number of classes: draw, tower, loss, gradient, update.

Image features are given; names are synthetic, their lengths those of ImageNet-21K's.
"""

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax.benchmark.measurement import Measurement, Step
from pomp_jax.benchmark.towers import MODELS, random_inputs, temporaries_mib
from pomp_jax.clip.text import plan_memory, text_tower
from pomp_jax.config.fields import Benchmark
from pomp_jax.data.class_lists import load_synsets
from pomp_jax.prompt import sampling
from pomp_jax.prompt.context import ClassTokens, PromptContext
from pomp_jax.prompt.learner import ContextLearner, Frozen
from pomp_jax.prompt.loss import ContrastSettings
from pomp_jax.prompt.mesh import DATA, make_mesh, replicate
from pomp_jax.prompt.optimizer import sgd
from pomp_jax.prompt.step import create_state, make_train_step, step_token_budget

# Images of a draw, as the published recipe has them on a device before its augmentations.
_GROUP = 32
# As `config.clip.memory_gib` has it.
_ACTIVATION_BYTES = 4.0 * 2**30


def whole_step(settings: Benchmark, k: int, n_classes: int) -> tuple[Measurement, Step]:
  """One device, one draw of K of N classes, positives as many as images."""
  sizes, rng = MODELS[settings.model], np.random.default_rng(settings.seed)
  # The same names over and over: draws of the same lengths on average whatever N.
  lengths_N = np.resize(load_synsets().lengths, n_classes)
  ids_NxL = rng.integers(0, sizes.vocab_size, (n_classes, lengths_N.max()), np.int32)
  params, prefix = random_inputs(sizes, settings.m, settings.seed)
  mesh = make_mesh(devices=jax.devices()[:1])
  tokens = ClassTokens(ids_NxL, lengths_N - 2, lengths_N)
  frozen = replicate(Frozen(params, {}, prefix[0], tokens), mesh)
  module = PromptContext(settings.m, sizes.hidden_size)
  optimizer = sgd(lambda step: 0.002, 0.9, 5e-4)
  contrast = ContrastSettings(k, n_classes, "log", 100.0)
  budget = step_token_budget(module, lengths_N, settings=contrast, group_size=_GROUP)
  memory = plan_memory(sizes, settings.m + 1, budget, _ACTIVATION_BYTES)
  tower = text_tower("shared", sizes, settings.dtype, budget, memory)
  learner = ContextLearner(module, tower, budget)
  train_step = make_train_step(
    mesh=mesh, learner=learner, image_tower=None, optimizer=optimizer, settings=contrast
  )
  state = replicate(create_state(learner, optimizer, settings.seed), mesh)
  batch = {
    "image": rng.standard_normal((_GROUP, sizes.projection_dim), np.float32),
    "label": rng.integers(0, n_classes, _GROUP, np.int32),
  }
  batch = jax.device_put(batch, NamedSharding(mesh, P(DATA)))
  compiled = train_step.lower(state, frozen, batch).compile()

  def step(warm_up):
    nonlocal state
    del warm_up
    state, metrics = compiled(state, frozen, batch)
    jax.block_until_ready(metrics)

  n_rows = _GROUP + sampling.n_negatives(k, n_classes)
  tokens = settings.m + 1 + round(n_rows * float(lengths_N.mean()))
  return Measurement(
    "train_step",
    k,
    n_classes,
    tokens,
    n_rows,
    sizes.flops(tokens),
    temporaries_mib(compiled),
  ), step
