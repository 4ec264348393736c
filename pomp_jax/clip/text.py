"""The frozen text tower by name, its contract, and the memory that its backward pass
may take.

  (params, prefix [P,D], suffix [C,L,D], lengths [C]) -> features [C,E]

Row c is the sequence prefix, suffix[c, :lengths[c]]. Its feature is read at the last of
these positions (EOT), and padding after it has no effect. Features are not normalised.
Shapes: C classes, P shared prefix tokens, L own tokens of a class, T own tokens of all
rows, M context vectors, J layers with a context, D width, E embedding.
"""

from collections.abc import Callable
import importlib.util
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.array_types import Array, Float, Int32
from pomp_jax.clip.attention import attention
from pomp_jax.clip.blocks import block_width
from pomp_jax.clip.packed import (
  AT_ONCE,
  MemoryPlan,
  Tower,
  encoded,
  in_equal_chunks,
  shared_text_tower,
)
from pomp_jax.clip.precision import precision_of
from pomp_jax.errors import InputError

TEXT_TOWERS = ("shared", "reference")
WITHOUT_FLAX = "'shared', or FlaxCLIP (pip install 'transformers<5')"
# Any implementation; only `shared` takes MaPLe's `deep` [J-1,M,D] as one more argument.
TextTower = Callable[..., Float[Array, "C E"]]


def text_tower(
  kind: str,
  config: Any,
  dtype: Any = jnp.float32,
  token_budget: int | None = None,
  memory: MemoryPlan = AT_ONCE,
  block: int | None = None,
) -> TextTower:
  """Builds the implementation called `kind`; each takes FlaxCLIP's parameters as they
  are.

  `shared` computes the prefix once and packs names, see `clip.packed`; a bidirectional
  CLIP has a tower over all positions instead. `reference` is HuggingFace's modules, see
  `clip.reference`, and ignores `token_budget` and `memory`: InputError where
  transformers has none (5 and newer). `config` is HuggingFace's, or has its fields.
  `dtype` is the compute type, see `clip.precision`. `block` is the result of `block_of`
  for the packed tower.

  Args:
    kind: implementation, one of `TEXT_TOWERS`.
    config: text tower's sizes, HuggingFace's or with its fields.
    dtype: compute type, see `clip.precision`.
    token_budget: own tokens that the packed tower computes; None for all.
    memory: remat and chunks of the packed tower.
    block: rows of a block, `block_of`; None without blocks.
  """
  if getattr(config, "bidirectional", False):
    if kind != "shared":
      raise InputError(
        f"text_tower: got {kind!r}, expected 'shared': this CLIP is no FlaxCLIP"
      )
    return _bidirectional_text_tower(config, dtype, memory)
  if kind == "shared":
    return shared_text_tower(config, dtype, token_budget, memory, block)
  if not has_flax_clip():
    raise InputError(f"text_tower: got 'reference', expected {WITHOUT_FLAX}")
  from pomp_jax.clip.reference import reference_text_tower

  return reference_text_tower(config, dtype)


def _bidirectional_text_tower(config: Any, dtype: Any, memory: MemoryPlan) -> TextTower:
  """The text tower of SigLIP and CLIPA: every position attends to all, and the last is
  the feature.

  Neither a shared prefix nor dropped padding is exact here: a class has all 64 or 32
  positions, where the packed tower computes 4 to 6. The classes' own tokens, padding
  included, reach the last position; ValueError for others, and for MaPLe's context of
  deeper layers.
  """
  dtype, products = precision_of(dtype)
  n_positions = config.max_position_embeddings

  def features(
    params: Any, prefix_PxD: Any, suffix_CxLxD: Any, lengths_C: Array, deep: Any = None
  ) -> Array:
    n_prefix, (_, n_suffix, width) = len(prefix_PxD), suffix_CxLxD.shape
    if deep is not None or n_prefix + n_suffix != n_positions:
      raise ValueError(
        f"prompt of {n_prefix} + {n_suffix} tokens: expected {n_positions}, all positions of the"
        " text tower, and no context of deeper layers"
      )
    tower = Tower(config, dtype, memory.remat, params)
    positions = params["text_model"]["embeddings"]["position_embedding"]["embedding"]

    def features_of(suffix_CxLxD: Array, _: Array) -> Array:
      n_classes = len(suffix_CxLxD)
      prefix_CxPxD = jnp.broadcast_to(prefix_PxD, (n_classes, n_prefix, width))
      hidden = jnp.concatenate([prefix_CxPxD, suffix_CxLxD], axis=1) + jnp.asarray(
        positions
      )

      def attend(*projected: Array) -> Array:
        query, key, value = (
          rows.reshape(n_classes, n_positions, width) for rows in projected
        )
        return attention(config.num_attention_heads, query, key, value, 1.0).reshape(
          -1, width
        )

      last = lambda rows: rows[n_positions - 1 :: n_positions]
      return encoded(tower, hidden.reshape(-1, width).astype(jnp.float32), attend, last)

    return in_equal_chunks(features_of, memory, suffix_CxLxD, lengths_C)

  return jax.default_matmul_precision(products)(features)


def block_of(kind: str, config: Any, platform: str) -> int | None:
  """Rows of a block of the tower called `kind` on devices of a platform; None
  without blocks.

  Args:
    kind: implementation, one of `TEXT_TOWERS`.
    config: text tower's sizes.
    platform: kind of the devices: cpu, gpu or tpu.
  """
  if kind != "shared" or getattr(config, "bidirectional", False):
    return None
  return block_width(platform, config.max_position_embeddings)


def has_flax_clip() -> bool:
  """Whether the installed transformers has the modules of the `reference` tower."""
  return (
    importlib.util.find_spec("transformers.models.clip.modeling_flax_clip") is not None
  )


def token_embeddings(
  params: Any, ids: Int32[Array | np.ndarray, "..."]
) -> Float[Array | np.ndarray, "... D"]:
  """Embeddings of token ids without positions; NumPy parameters give NumPy, without
  a device."""
  rows = token_table(params)[ids]
  # A table that is mapped into memory may be stored in half precision.
  return rows if rows.dtype == jnp.float32 else rows.astype(jnp.float32)


def token_table(params: Any) -> Any:
  """Embeddings of all tokens [V,D]; on the host a long table stays in its file, as
  it is stored."""
  return params["text_model"]["embeddings"]["token_embedding"]["embedding"]


def with_embeddings(
  params: Any, embeddings_VxD: Float[Array | np.ndarray, "V D"]
) -> Any:
  """Parameters of the text tower with other token embeddings."""
  model = params["text_model"]
  embeddings = model["embeddings"] | {"token_embedding": {"embedding": embeddings_VxD}}
  return params | {"text_model": model | {"embeddings": embeddings}}


def plan_memory(
  config: Any,
  n_prefix: int,
  n_tokens: int,
  limit_bytes: float,
  block: int | None = None,
  dtype: Any = jnp.float32,
  platform: str = "cpu",
) -> MemoryPlan:
  """The fastest plan whose activations stay below a limit, by a rough estimate for one
  device.

  See `activation_bytes`. A bidirectional tower can't stay below twice the embeddings of
  its rows.

  Args:
    config: text tower's sizes.
    n_prefix: P, prefix tokens that all classes share.
    n_tokens: T, own tokens of the classes.
    limit_bytes: memory for activations, bytes.
    block: W, rows of a block; None without blocks.
    dtype: compute type of a bidirectional tower.
    platform: kind of the devices of a bidirectional tower.
  """
  if getattr(config, "bidirectional", False):
    return full_tower_bytes(config, n_prefix, n_tokens, dtype, platform).plan(
      limit_bytes
    )
  needed = activation_bytes(config, n_prefix, n_tokens, block)
  if needed <= limit_bytes:
    return AT_ONCE
  return MemoryPlan(math.ceil(needed / limit_bytes), "chunks")


def activation_bytes(
  config: Any,
  n_prefix: int,
  n_tokens: int,
  block: int | None = None,
  dtype: Any = jnp.float32,
  platform: str = "cpu",
) -> float:
  """Rough size of all residuals without rematerialisation, for P and T tokens.

  For each row and layer about nine vectors of width D (inputs of the norms, query, key,
  value, the result of attention), the MLP's hidden vector, and the attention weights.
  In blocks of W rows each begins with a copy of the prefix, and a row has W weights.
  The compute type and the platform count for a bidirectional tower alone, see
  `full_tower_bytes`.

  Args:
    config: text tower's sizes.
    n_prefix: P, prefix tokens that all classes share.
    n_tokens: T, own tokens of the classes.
    block: W, rows of a block; None without blocks.
    dtype: compute type of a bidirectional tower.
    platform: kind of the devices of a bidirectional tower.
  """
  if getattr(config, "bidirectional", False):
    return full_tower_bytes(config, n_prefix, n_tokens, dtype, platform).peak(1)
  n_rows = n_tokens if block is None else n_tokens * block / (block - n_prefix)
  n_weights = n_prefix + 16 if block is None else block
  floats = 9 * config.hidden_size + config.intermediate_size
  floats += config.num_attention_heads * n_weights
  return 4.0 * floats * config.num_hidden_layers * n_rows


class FullTowerBytes(NamedTuple):
  """Memory that a bidirectional text tower takes on one device beside its
  parameters, in bytes."""

  n_classes: int
  residuals: float  # of all rows, without rematerialisation
  embeddings: float  # of all classes' own tokens, the tower's input
  # copy of the weights in the compute type, for all chunks; 0 in float32
  weights: float
  # of all classes three times: of the chunks, joined, and their gradient
  features: float

  def peak(self, n_chunks: int) -> float:
    """Peak with this number of chunks: embeddings are copied before them, to equal
    chunks."""
    outside = self.embeddings + self.features
    if n_chunks == 1:
      return outside + self.residuals
    of_chunk = self.residuals * math.ceil(self.n_classes / n_chunks) / self.n_classes
    return outside + max(self.embeddings, self.weights + of_chunk)

  def plan(self, limit_bytes: float) -> MemoryPlan:
    """The fewest chunks that stay below a limit, or below twice the embeddings."""
    if self.peak(1) <= limit_bytes:
      return AT_ONCE
    beside = self.embeddings + self.features + self.weights
    room = max(limit_bytes - beside, self.embeddings - self.weights)
    at_once = max(1, math.floor(room / self.residuals * self.n_classes))
    return MemoryPlan(math.ceil(self.n_classes / at_once), "chunks")


def full_tower_bytes(
  config: Any, n_prefix: int, n_tokens: int, dtype: Any, platform: str
) -> FullTowerBytes:
  """Estimates memory of the tower over all S positions, for T own tokens of S - P a
  class.

  Residuals of each row and layer: the inputs of two norms in float32, and in the
  compute type query, key, value, scores and weights of attention and the MLP's hidden
  vector. A TPU stores the last axis of an array in multiples of 128: the width of a
  head, and the S weights of a query. `docs.studies.full_tower_memory` compares it with
  compiled programs.

  Args:
    config: text tower's sizes.
    n_prefix: P, prefix tokens that all classes share.
    n_tokens: T, own tokens of the classes.
    dtype: compute type.
    platform: kind of the devices: cpu, gpu or tpu.
  """
  n_bytes = jnp.dtype(precision_of(dtype)[0]).itemsize
  n_positions, n_layers = config.max_position_embeddings, config.num_hidden_layers
  width, n_inner, n_heads = (
    config.hidden_size,
    config.intermediate_size,
    config.num_attention_heads,
  )
  stored = lambda size: 128 * math.ceil(size / 128) if platform == "tpu" else size
  of_attention = n_heads * (3 * stored(width // n_heads) + 2 * stored(n_positions))
  of_row = 4 * 2 * width + n_bytes * (of_attention + n_inner)
  n_classes = math.ceil(n_tokens / (n_positions - n_prefix))
  weights = n_layers * (4 * width**2 + 2 * width * n_inner)
  return FullTowerBytes(
    n_classes,
    residuals=float(n_layers * of_row * n_classes * n_positions),
    embeddings=4.0 * n_tokens * width,
    weights=float(n_bytes * weights) if n_bytes < 4 else 0.0,
    features=3 * 4.0 * n_classes * config.projection_dim,
  )
