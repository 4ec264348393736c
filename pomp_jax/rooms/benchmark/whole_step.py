"""The whole training step against the number of classes: draw, tower, loss, gradient, update.

Image features are given; names are synthetic, their lengths those of ImageNet-21K's.
"""

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax.clip.text import plan_memory, text_tower
from pomp_jax.config.fields import Sampling
from pomp_jax.prompt.bank import place_rows, renewal_token_budget
from pomp_jax.prompt.context import ClassTokens, PromptContext
from pomp_jax.prompt.learner import ContextLearner, Frozen
from pomp_jax.prompt.loss import ContrastSettings
from pomp_jax.prompt.mesh import DATA, make_mesh, replicate
from pomp_jax.prompt.optimizer import sgd
from pomp_jax.prompt.sampling import draws, samplers
from pomp_jax.prompt.step import (
  Renewal,
  StepParts,
  TrainState,
  create_state,
  make_train_step,
  step_token_budget,
)
from pomp_jax.rooms.benchmark.fields import Benchmark
from pomp_jax.rooms.benchmark.measurement import Measurement, Step
from pomp_jax.rooms.benchmark.synthetic_clip import token_lengths
from pomp_jax.rooms.benchmark.towers import MODELS, dense_flops, random_inputs, temporaries_mib

# Images of a draw: those of a device in the published recipe, before augmentation.
_GROUP = 32
# Memory for activations that config.clip.memory_gib stands for on CPUs.
_ACTIVATION_BYTES = 4.0 * 2**30


def whole_step(
  fields: Benchmark, k: int, n_classes: int, renew: int | None = None
) -> tuple[Measurement, Step]:
  """Builds the step of one device with one draw of K of N classes, one positive an image.

  `renew` is the number of rows of the bank that a step of the sampler `posterior` renews; None
  stands for a uniform draw without a bank.
  """
  compiled, state, frozen, batch = compile_step(fields, k, n_classes, renew)
  lengths_N = np.asarray(frozen.tokens.lengths)

  def step(warm_up):
    nonlocal state
    del warm_up
    state, metrics = compiled(state, frozen, batch)
    jax.block_until_ready((state, metrics))

  n_rows = _GROUP + draws.n_negatives(k, n_classes)
  n_tokens = fields.m + 1 + round(n_rows * float(lengths_N.mean()))
  flops, peak = dense_flops(MODELS[fields.model], n_tokens), temporaries_mib(compiled)
  bank = 0.0 if state.bank is None else state.bank.nbytes / 2**20
  sizes = k, n_classes, n_tokens, n_rows, flops, peak
  return Measurement("train_step", *sizes, renew=renew, bank_mib=bank), step


def compile_step(
  fields: Benchmark, k: int, n_classes: int, renew: int | None
) -> tuple[jax.stages.Compiled, TrainState, Frozen, dict[str, jax.Array]]:
  """Compiles the step of `whole_step`; returns it with its arguments, the state donated."""
  config, rng = MODELS[fields.model], np.random.default_rng(fields.seed)
  # Names repeat, so that the mean length of a draw does not depend on N.
  lengths_N = np.resize(token_lengths(), n_classes)
  ids_NxL = rng.integers(0, config.vocab_size, (n_classes, lengths_N.max()), np.int32)
  params, prefix = random_inputs(config, fields.m, fields.seed)
  mesh = make_mesh(devices=jax.devices()[:1])
  tokens = ClassTokens(ids_NxL, lengths_N - 2, lengths_N)
  frozen = replicate(Frozen(params, {}, prefix[:1], tokens), mesh)
  module = PromptContext(fields.m, config.hidden_size)
  optimizer = sgd(lambda step: 0.002, 0.9, 5e-4)
  name = "uniform" if renew is None else "posterior"
  drawing = samplers.SamplingSettings(name, mix=Sampling().mix)
  contrast = ContrastSettings(k, n_classes, "log", 100.0, drawing)
  budget = step_token_budget(module, lengths_N, settings=contrast, group_size=_GROUP)

  def learner_of(budget):
    memory = plan_memory(config, fields.m + 1, budget, _ACTIVATION_BYTES)
    tower = text_tower("shared", config, fields.dtype, budget, memory)
    return ContextLearner(module, tower, budget)

  learner, renewal = learner_of(budget), None
  if renew:
    renewal = Renewal(learner_of(renewal_token_budget(lengths_N, 0, 1, renew)), renew)
  train_step = make_train_step(
    StepParts(
      mesh=mesh,
      learner=learner,
      image_tower=None,
      optimizer=optimizer,
      settings=contrast,
      renewal=renewal,
    )
  )
  state = replicate(create_state(learner, optimizer, fields.seed), mesh)
  if renew is not None:
    rows_NxE = rng.standard_normal((n_classes, config.projection_dim), np.float32)
    rows_NxE /= np.linalg.norm(rows_NxE, axis=-1, keepdims=True)
    state = state.replace(bank=place_rows(rows_NxE, mesh, fields.bank_dtype))
  batch = {
    "image": rng.standard_normal((_GROUP, config.projection_dim), np.float32),
    "label": rng.integers(0, n_classes, _GROUP, np.int32),
  }
  batch = jax.device_put(batch, NamedSharding(mesh, P(DATA)))
  return train_step.lower(state, frozen, batch).compile(), state, frozen, batch
