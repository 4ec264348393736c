"""Builds the steps to compare: text towers, forward and backward, and a whole step.

shared      our tower: computes the prefix once, and packs the names (`clip.packed`)
reference   HuggingFace Flax's tower: computes all positions of every class

Weights are random. The whole step (draw, tower, loss, gradient, update) shows how the
time grows with the number of classes. Its image features are random, and its names are
random ids with the lengths of ImageNet-21K's names.

Shapes: K rows of a step, L tokens of the longest name, N classes, B images, P = M + 1
prefix tokens, D width, E embedding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int
import numpy as np
from transformers import CLIPTextConfig, CLIPVisionConfig

from pomp_jax.clip import packed
from pomp_jax.clip.architecture import ClipConfig, parameter_shapes
from pomp_jax.clip.open_clip import tables
from pomp_jax.clip.text import block_of, plan_memory, text_tower
from pomp_jax.config import ConfigError
from pomp_jax.config.fields import Sampling
from pomp_jax.hosts import devices
from pomp_jax.prompt import step as training
from pomp_jax.prompt.bank import place_rows, renewal_token_budget
from pomp_jax.prompt.context import ClassTokens, PromptContext
from pomp_jax.prompt.learner import ContextLearner, Frozen
from pomp_jax.prompt.loss import ContrastSettings
from pomp_jax.prompt.mesh import DATA, make_mesh, replicate
from pomp_jax.prompt.optimizer import sgd
from pomp_jax.prompt.sampling import samplers, without_replacement
from pomp_jax.prompt.step import (
  TrainState,
  create_state,
  make_train_step,
  step_token_budget,
)
from pomp_jax.rooms.benchmark import synthetic_clip
from pomp_jax.rooms.benchmark.fields import Benchmark
from pomp_jax.rooms.benchmark.measurement import Measurement, Step
from pomp_jax.rooms.benchmark.synthetic_clip import (
  open_clips_config,
  random_params,
  token_lengths,
)

# Images that share a draw: a device's images in the published recipe, counted before
# augmentation.
_GROUP = 32
# Memory for activations; config.clip.memory_gib has this default on CPUs.
_ACTIVATION_BYTES = 4.0 * 2**30
# Rows of a chunk of our tower. Of more rows the layers are computed again for the
# gradient.
_CHUNK_ROWS = 2048
SEED = 0  # of weights, names and images
_TINY = {
  "vocab_size": 100,
  "hidden_size": 64,
  "intermediate_size": 256,
  "projection_dim": 32,
}
_OPENAI_CLIPS = {
  "vit_b_16": "openai/clip-vit-base-patch16",
  "vit_l_14": "openai/clip-vit-large-patch14",
}
# Text towers by config.benchmark.model. `tiny` takes seconds on any machine.
MODELS: dict[str, CLIPTextConfig] = {
  name: synthetic_clip.synthetic_config(hub_id).text_config
  for name, hub_id in _OPENAI_CLIPS.items()
}
MODELS["tiny"] = CLIPTextConfig(**_TINY, num_hidden_layers=2, num_attention_heads=2)
# Name in open_clip of each family's base size, or of its smallest size.
OPEN_CLIPS = {
  "eva02_b_16": "EVA02-B-16",
  "pe_core_b_16": "PE-Core-B-16",
  "convnext_base_w": "convnext_base_w",
  "metaclip2_h_14": "ViT-H-14-worldwide-quickgelu",
  "siglip_b_16": "ViT-B-16-SigLIP",
  "siglip2_b_16": "ViT-B-16-SigLIP2",
  "clipa_l_14": "ViT-L-14-CLIPA",
}


def open_clip_settings(name: str) -> dict[str, Any]:
  """Returns open_clip's settings of a family's CLIP, with a table of 8 tokens.

  No step reads the table of tokens, because inputs are embeddings.
  """
  settings = tables()[OPEN_CLIPS[name]]["model_cfg"]
  return settings | {"text_cfg": settings["text_cfg"] | {"vocab_size": 8}}


MODELS |= {
  name: open_clips_config(open_clip_settings(name)).text_config for name in OPEN_CLIPS
}


def dense_flops(config: CLIPTextConfig, n_tokens: int) -> float:
  """Counts the FLOP of the dense layers, forward and backward through activations.

  A layer has 12 D^2 weights, and each costs a token 2 FLOP in either direction.
  """
  n_weights = 12 * config.hidden_size**2 * config.num_hidden_layers
  return 4.0 * n_weights * n_tokens


def shared_step(fields: Benchmark, lengths_K: np.ndarray) -> tuple[Measurement, Step]:
  """Builds our tower's step, with the token budget of a training step of K rows."""
  k = lengths_K.size
  config = MODELS[fields.model]
  block, capacity = _block(fields)
  budget = packed.token_budget(token_lengths(), k, capacity=capacity)
  n_chunks = -(-k // _CHUNK_ROWS)  # rounded up
  memory = packed.MemoryPlan(n_chunks, "none" if n_chunks == 1 else "layers")
  tower = text_tower("shared", config, fields.dtype, budget, memory, block)
  if getattr(config, "bidirectional", False):
    # A bidirectional tower reads all positions of each class; nothing is packed.
    n_positions = config.max_position_embeddings
    lengths_K = np.full(k, n_positions - fields.m - 1)
    n_tokens = n_positions * k
  else:
    if not bool(packed.kept_rows(jnp.asarray(lengths_K), budget, capacity).all()):
      raise ConfigError(
        "benchmark.k", k, "a number whose drawn names fit the token budget"
      )
    n_tokens = fields.m + 1 + int(lengths_K.sum())
  return _tower_step(
    "shared", fields, lengths_K, tower=tower, n_tokens=n_tokens, rows_at_a_time=k
  )


def _block(fields: Benchmark) -> tuple[int | None, int | None]:
  """Rows of a block of the packed tower on the measured device, and its capacity.

  The capacity is the number of own tokens of classes that a block holds. Both are None
  if the tower has no blocks.
  """
  block = block_of("shared", MODELS[fields.model], devices()[0].platform)
  if block is None:
    return None, None
  return block, block - fields.m - 1


def reference_step(
  fields: Benchmark, lengths_K: np.ndarray
) -> tuple[Measurement, Step]:
  """Builds the step of HuggingFace Flax's tower, in groups of `rows_at_a_time` rows."""
  config = MODELS[fields.model]
  return _tower_step(
    "reference",
    fields,
    lengths_K,
    tower=text_tower("reference", config, fields.dtype),
    n_tokens=config.max_position_embeddings * lengths_K.size,
    rows_at_a_time=fields.rows_at_a_time,
  )


def _tower_step(
  name: str,
  fields: Benchmark,
  lengths_K: np.ndarray,
  *,
  tower: Callable[..., jax.Array],
  n_tokens: int,
  rows_at_a_time: int,
) -> tuple[Measurement, Step]:
  """Builds a tower's step, forward and backward to the prefix, on random inputs.

  A program for all rows is compiled for the figure of memory, but the rows run in
  groups of `rows_at_a_time`, one after another. `n_tokens` is the number of tokens that
  the tower computes.
  """
  config = MODELS[fields.model]
  lengths_N = token_lengths()
  k = lengths_K.size
  longest = int(max(lengths_N.max(), lengths_K.max()))
  rows_at_a_time = min(rows_at_a_time, k)
  params, prefix_PxD = random_inputs(config, fields.m)

  @jax.jit
  def gradient(
    params: Any,
    prefix_PxD: Float[jax.Array, "P D"],
    suffix_KxLxD: Float[jax.Array, "K L D"],
    lengths_K: Int[jax.Array, " K"],
    cotangent_KxE: Float[jax.Array, "K E"],
  ) -> tuple[Float[jax.Array, ""], Float[jax.Array, "P D"]]:
    def loss(prefix_PxD: Float[jax.Array, "P D"]) -> Float[jax.Array, ""]:
      return jnp.vdot(tower(params, prefix_PxD, suffix_KxLxD, lengths_K), cotangent_KxE)

    return jax.value_and_grad(loss)(prefix_PxD)

  def inputs(
    start: int, n_rows: int
  ) -> tuple[Float[jax.Array, "K L D"], Int[jax.Array, " K"], Float[jax.Array, "K E"]]:
    key = jax.random.fold_in(jax.random.key(SEED), start)
    return (
      0.02 * jax.random.normal(key, (n_rows, longest, config.hidden_size)),
      jnp.asarray(lengths_K[start : start + n_rows], jnp.int32),
      jax.random.normal(key, (n_rows, config.projection_dim)),
    )

  all_rows = jax.eval_shape(lambda: inputs(0, k))
  compiled = gradient.lower(params, prefix_PxD, *all_rows).compile()
  parts = []
  for start in range(0, k, rows_at_a_time):
    parts.append(inputs(start, min(rows_at_a_time, k - start)))
  call = compiled if len(parts) == 1 else gradient

  def step(is_warmup: bool) -> None:
    chosen = parts
    if is_warmup:
      # The last part may be smaller than the others, which takes another program.
      chosen = parts[:1] + parts[-1:]
    for part in chosen:
      jax.block_until_ready(call(params, prefix_PxD, *part))

  measurement = Measurement(
    implementation=name,
    k=k,
    n_classes=lengths_N.size,
    tokens=n_tokens,
    rows_at_a_time=rows_at_a_time,
    flops=dense_flops(config, n_tokens),
    peak_mib=temporaries_mib(compiled),
  )
  return measurement, step


def temporaries_mib(compiled: jax.stages.Compiled) -> float | None:
  """Returns a program's peak temporaries; None if the backend has no figure."""
  memory = compiled.memory_analysis()
  if memory is None:
    return None
  return memory.temp_size_in_bytes / 2**20


def random_inputs(config: CLIPTextConfig, m: int) -> tuple[Any, jax.Array]:
  """Draws a text tower's parameters and a prefix, and places them on the device.

  Args:
    config: sizes of the text tower.
    m: number of context vectors.

  Returns:
    The text parameters in FlaxCLIP's tree, and the prefix [M+1, D].
  """
  # `parameter_shapes` needs a whole CLIP: give it the smallest image tower.
  vision = CLIPVisionConfig(1, 1, 1, 1, 1, image_size=1, patch_size=1)
  shapes = parameter_shapes(ClipConfig(config, vision, config.projection_dim))
  text_shapes = {name: shapes[name] for name in ("text_model", "text_projection")}
  params = random_params(text_shapes, SEED)
  rng = np.random.default_rng(SEED)
  prefix = 0.02 * rng.standard_normal((m + 1, config.hidden_size), np.float32)
  return jax.device_put((params, prefix))


# Builders of steps by their name in config.benchmark.implementations.
IMPLEMENTATIONS = {"shared": shared_step, "reference": reference_step}


def whole_step(
  fields: Benchmark, k: int, n_classes: int, renew: int | None = None
) -> tuple[Measurement, Step]:
  """Builds the whole training step of one device, with one draw for all images.

  Args:
    fields: settings of the benchmark.
    k: classes of an image's contrast: the image's own class, and k - 1 negatives.
    n_classes: number of classes to draw from.
    renew: rows of the bank that a step of the sampler `posterior` renews; None for a
      uniform draw without a bank.
  """
  compiled, state, frozen, batch = compile_step(fields, k, n_classes, renew)
  step = training.repeated(compiled, state, frozen, batch)
  lengths_N = np.asarray(frozen.tokens.lengths)
  n_rows = _GROUP + without_replacement.n_negatives(k, n_classes)
  n_tokens = fields.m + 1 + round(n_rows * float(lengths_N.mean()))
  measurement = Measurement(
    implementation="train_step",
    k=k,
    n_classes=n_classes,
    tokens=n_tokens,
    rows_at_a_time=n_rows,
    flops=dense_flops(MODELS[fields.model], n_tokens),
    peak_mib=temporaries_mib(compiled),
    renew=renew,
  )
  if state.bank is not None:
    measurement.bank_mib = state.bank.nbytes / 2**20
  return measurement, lambda is_warmup: step()


class CompiledStep(NamedTuple):
  """A compiled training step with the arguments that it takes, in order."""

  program: jax.stages.Compiled
  state: TrainState  # donated: its memory becomes that of the next state
  frozen: Frozen
  batch: dict[str, jax.Array]  # features "image" [B,E] and classes "label" [B]


def compile_step(
  fields: Benchmark, k: int, n_classes: int, renew: int | None
) -> CompiledStep:
  """Compiles the step of `whole_step`.

  Args:
    fields: settings of the benchmark.
    k: classes of an image's contrast.
    n_classes: number of classes to draw from.
    renew: rows of the bank that a step renews; None for no bank.
  """
  config = MODELS[fields.model]
  rng = np.random.default_rng(SEED)
  mesh = make_mesh(devices=devices()[:1])
  # Repeat the names, so that the mean length of a draw does not depend on N.
  lengths_N = np.resize(token_lengths(), n_classes)
  ids_NxL = rng.integers(0, config.vocab_size, (n_classes, lengths_N.max()), np.int32)
  # The lengths count a full stop and EOT after the name.
  tokens = ClassTokens(ids_NxL, lengths_N - 2, lengths_N)
  params, prefix = random_inputs(config, fields.m)
  frozen = replicate(Frozen(params, {}, prefix[:1], tokens), mesh)
  module = PromptContext(fields.m, config.hidden_size)
  optimizer = sgd(lambda step: 0.002, 0.9, 5e-4)
  sampler = "uniform" if renew is None else "posterior"
  sampling = samplers.SamplingSettings(sampler, mix=Sampling().mix)
  contrast = ContrastSettings(k, n_classes, "log", 100.0, sampling)
  block, capacity = _block(fields)

  def learner_of(budget: int) -> ContextLearner:
    memory = plan_memory(
      config,
      fields.m + 1,
      budget,
      _ACTIVATION_BYTES,
      block,
      fields.dtype,
      devices()[0].platform,
    )
    tower = text_tower("shared", config, fields.dtype, budget, memory, block)
    return ContextLearner(module, tower, budget, capacity)

  budget = step_token_budget(
    module, lengths_N, settings=contrast, group_size=_GROUP, capacity=capacity
  )
  learner = learner_of(budget)
  renewal = None
  if renew:
    renewal_budget = renewal_token_budget(lengths_N, 0, 1, renew, capacity)
    renewal = training.Renewal(learner_of(renewal_budget), renew)
  parts = training.StepParts(mesh, learner, optimizer, contrast, renewal=renewal)
  state = replicate(create_state(learner, optimizer, SEED), mesh)
  if renew is not None:
    # Fill the bank with random rows: a step takes as long for any values.
    rows_NxE = rng.standard_normal((n_classes, config.projection_dim), np.float32)
    rows_NxE /= np.linalg.norm(rows_NxE, axis=-1, keepdims=True)
    state = state.replace(bank=place_rows(rows_NxE, mesh))
  batch = {
    "image": rng.standard_normal((_GROUP, config.projection_dim), np.float32),
    "label": rng.integers(0, n_classes, _GROUP, np.int32),
  }
  batch = jax.device_put(batch, NamedSharding(mesh, P(DATA)))
  program = make_train_step(parts).lower(state, frozen, batch).compile()
  return CompiledStep(program, state=state, frozen=frozen, batch=batch)
