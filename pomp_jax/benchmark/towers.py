"""The text towers to compare in JAX, forward and backward to the context, with random weights.

shared      ours: the prefix once, names packed (`clip.packed`)
reference   HuggingFace Flax, all 77 positions of every class
"""

from collections.abc import Callable
import dataclasses
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.benchmark.measurement import (
  BenchmarkError,
  Measurement,
  Step,
  in_own_process,
  peak_mib,
)
from pomp_jax.clip import packed
from pomp_jax.config.fields import Benchmark
from pomp_jax.data.class_lists import load_synsets


@dataclasses.dataclass(frozen=True)
class TextSizes:
  """A text tower's sizes, under HuggingFace's names.

  Attributes:
    hidden_size: D.
    num_attention_heads: H.
    projection_dim: E.
    num_hidden_layers: layers.
    max_position_embeddings: positions.
    vocab_size: token ids.
    hidden_act: the MLP's activation.
    layer_norm_eps: added to the variance.
  """

  hidden_size: int
  num_attention_heads: int
  projection_dim: int
  num_hidden_layers: int = 12
  max_position_embeddings: int = 77
  vocab_size: int = 49408
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5

  @property
  def intermediate_size(self) -> int:
    """Width of the MLP."""
    return 4 * self.hidden_size

  def flops(self, n_tokens: int) -> float:
    """Of the dense layers, forward and backward through activations; 12 D^2 weights a layer."""
    return 4.0 * 12 * self.hidden_size**2 * self.num_hidden_layers * n_tokens


MODELS = {
  "vit_b_16": TextSizes(512, 8, 512),
  "vit_l_14": TextSizes(768, 12, 768),
  # For tests: seconds on any machine.
  "tiny": TextSizes(64, 2, 32, num_hidden_layers=2, vocab_size=100),
}


def shared_step(settings: Benchmark, lengths_K: np.ndarray) -> tuple[Measurement, Step]:
  """Ours, with the token budget that a training step of these K rows has."""
  k = lengths_K.size
  budget = packed.token_budget(load_synsets().lengths, k)
  n_chunks = math.ceil(k / settings.chunk)
  tower = packed.shared_text_tower(
    MODELS[settings.model],
    settings.dtype,
    token_budget=budget,
    n_chunks=n_chunks,
    remat="none" if n_chunks == 1 else "layers",
  )
  if not bool(packed.kept_rows(jnp.asarray(lengths_K), budget).all()):
    raise BenchmarkError(f"seed {settings.seed} draws names that overflow the budget")
  tokens = settings.m + 1 + int(lengths_K.sum())
  return _jax_step("shared", settings, lengths_K, tower, tokens, k)


def reference_step(settings: Benchmark, lengths_K: np.ndarray) -> tuple[Measurement, Step]:
  """HuggingFace Flax over all positions, in parts of `rows_at_a_time` rows."""
  sizes = MODELS[settings.model]
  text = importlib.import_module("pomp_jax.clip.text")
  transformers = importlib.import_module("transformers")
  fields = dataclasses.asdict(sizes) | {"intermediate_size": sizes.intermediate_size}
  tower = text.text_tower("reference", transformers.CLIPTextConfig(**fields), settings.dtype)
  tokens = sizes.max_position_embeddings * lengths_K.size
  return _jax_step("reference", settings, lengths_K, tower, tokens, settings.rows_at_a_time)


def _jax_step(name, settings, lengths_K, tower, tokens, rows_at_a_time):
  sizes, n_classes = MODELS[settings.model], load_synsets().lengths.size
  k, longest = lengths_K.size, int(load_synsets().lengths.max())
  rows_at_a_time = min(rows_at_a_time, k)
  params, prefix_PxD = random_inputs(sizes, settings.m, settings.seed)

  @jax.jit
  def gradient(params, prefix_PxD, suffix_KxLxD, lengths_K, cotangent_KxE):
    def loss(prefix_PxD):
      return jnp.vdot(tower(params, prefix_PxD, suffix_KxLxD, lengths_K), cotangent_KxE)

    return jax.value_and_grad(loss)(prefix_PxD)

  def shapes(n_rows):
    return (
      jax.ShapeDtypeStruct((n_rows, longest, sizes.hidden_size), jnp.float32),
      jax.ShapeDtypeStruct((n_rows,), jnp.int32),
      jax.ShapeDtypeStruct((n_rows, sizes.projection_dim), jnp.float32),
    )

  compiled = gradient.lower(params, prefix_PxD, *shapes(k)).compile()
  parts = []
  for start in range(0, k, rows_at_a_time):
    suffix, lengths, cotangent = shapes(min(rows_at_a_time, k - start))
    key = jax.random.fold_in(jax.random.key(settings.seed), start)
    parts.append(
      (
        0.02 * jax.random.normal(key, suffix.shape),
        jnp.asarray(lengths_K[start : start + lengths.shape[0]], jnp.int32),
        jax.random.normal(key, cotangent.shape),
      )
    )

  def step(warm_up):
    # The last part may have another size.
    for part in parts[:1] + parts[-1:] if warm_up else parts:
      # A compiled function is none that jit knows of.
      call = compiled if len(parts) == 1 else gradient
      jax.block_until_ready(call(params, prefix_PxD, *part))

  flops = sizes.flops(tokens)
  peak = temporaries_mib(compiled)
  return Measurement(name, k, n_classes, tokens, rows_at_a_time, flops, peak), step


def temporaries_mib(compiled: Any) -> float | None:
  """Peak temporaries of a compiled program; None where the backend does not say."""
  memory = compiled.memory_analysis()
  return None if memory is None else memory.temp_size_in_bytes / 2**20


def process_peak_mib(
  prepare: Callable[[Benchmark, np.ndarray], tuple[Measurement, Step]],
  settings: Benchmark,
  lengths_K: np.ndarray,
) -> float | None:
  """Peak memory of a process with this step and nothing else; None on accelerators."""
  if jax.default_backend() != "cpu":
    return None
  return in_own_process(_run_once, prepare, settings, lengths_K)


def _run_once(prepare, settings, lengths_K) -> float:
  prepare(settings, lengths_K)[1](True)
  return peak_mib()


def random_inputs(sizes: TextSizes, m: int, seed: int) -> tuple[Any, jax.Array]:
  """Parameters in FlaxCLIP's tree and a prefix [M+1, D], on the device."""
  rng = np.random.default_rng(seed)

  def dense(n_in, n_out):
    kernel = rng.standard_normal((n_in, n_out), np.float32) / n_in**0.5
    return {"kernel": kernel, "bias": np.zeros(n_out, np.float32)}

  def norm():
    return {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}

  width = sizes.hidden_size
  layers = {
    str(i): {
      "self_attn": {f"{name}_proj": dense(width, width) for name in ("q", "k", "v", "out")},
      "layer_norm1": norm(),
      "mlp": {
        "fc1": dense(width, sizes.intermediate_size),
        "fc2": dense(sizes.intermediate_size, width),
      },
      "layer_norm2": norm(),
    }
    for i in range(sizes.num_hidden_layers)
  }
  positions = 0.01 * rng.standard_normal((sizes.max_position_embeddings, width), np.float32)
  params = {
    "text_model": {
      "embeddings": {
        "position_embedding": {"embedding": positions},
        "token_embedding": {
          "embedding": 0.02 * rng.standard_normal((sizes.vocab_size, width), np.float32)
        },
      },
      "encoder": {"layers": layers},
      "final_layer_norm": norm(),
    },
    "text_projection": {"kernel": dense(width, sizes.projection_dim)["kernel"]},
  }
  prefix = 0.02 * rng.standard_normal((m + 1, width), np.float32)
  return jax.device_put((params, prefix))
