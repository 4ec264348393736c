"""The frozen text tower: its contract, its implementations by name, and the memory that
its backward pass takes.

  (params, prefix [P,D], suffix [C,L,D], lengths [C]) -> features [C,E]

Row c is the sequence of prefix and suffix[c, :lengths[c]]. The feature of the row is
read at the last token of this sequence (EOT). Padding after EOT has no effect. Features
are not normalised. Shapes: C classes, P shared prefix tokens, L positions for a class's
own tokens, T own tokens of all rows, S positions of the tower, R tokens of a packed
sequence, M context vectors, J layers with a context, V vocabulary, D width, E
embedding.
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
# Any implementation. Only `shared` takes one more argument, MaPLe's `deep` [J-1,M,D].
TextTower = Callable[..., Float[Array, "C E"]]


def text_tower(
  kind: str,
  config: Any,
  dtype: Any = jnp.float32,
  token_budget: int | None = None,
  memory: MemoryPlan = AT_ONCE,
  block: int | None = None,
) -> TextTower:
  """Builds an implementation of the text tower; all take FlaxCLIP's parameters.

  `shared` computes the prefix once and packs names, see `clip.packed`. For a
  bidirectional CLIP, `shared` computes all positions of every class instead.
  `reference` is HuggingFace's modules, see `clip.reference`; it ignores the arguments
  after `dtype`.

  Args:
    kind: implementation, one of `TEXT_TOWERS`.
    config: sizes of the text tower, HuggingFace's CLIPTextConfig or its fields.
    dtype: compute type, see `clip.precision`.
    token_budget: own tokens that the packed tower computes; None for all.
    memory: chunks and rematerialisation.
    block: rows of a block of the packed tower, see `block_of`; None without blocks.

  Raises:
    InputError: `reference` was requested for a bidirectional CLIP, which FlaxCLIP does
      not implement, or with transformers 5 or newer, which has no FlaxCLIP.
  """
  if is_bidirectional(config):
    if kind != "shared":
      raise InputError(
        f"text_tower: got {kind!r}, expected 'shared': this CLIP is no FlaxCLIP"
      )
    return _bidirectional_text_tower(config, dtype, memory)
  if kind == "shared":
    return shared_text_tower(config, dtype, token_budget, memory, block)
  if not has_flax_clip():
    raise InputError(f"text_tower: got 'reference', expected {WITHOUT_FLAX}")
  # Import here: only this tower needs FlaxCLIP, which transformers may not have.
  from pomp_jax.clip.reference import reference_text_tower

  return reference_text_tower(config, dtype)


def is_bidirectional(config: Any) -> bool:
  """Whether every position of a text tower attends to all positions. HuggingFace's own
  configurations don't have this field; their towers are causal."""
  return getattr(config, "bidirectional", False)


def _bidirectional_text_tower(config: Any, dtype: Any, memory: MemoryPlan) -> TextTower:
  """Builds the text tower of SigLIP and CLIPA: every position attends to all positions,
  and the feature is read at the last one.

  Sharing the prefix or dropping padding would change the result of such a tower. It
  computes all 64 or 32 positions of a class, where the packed tower computes 4 to 6.
  The own tokens of a class include padding up to the last position.

  Args:
    config: sizes of the text tower.
    dtype: compute type, see `clip.precision`.
    memory: chunks and rematerialisation.

  Raises:
    ValueError: by the tower, when its arguments don't fill all positions, or have
      MaPLe's context of deeper layers.
  """
  dtype, products = precision_of(dtype)
  n_positions = config.max_position_embeddings

  def features(
    params: Any, prefix_PxD: Any, suffix_CxLxD: Any, lengths_C: Array, deep: Any = None
  ) -> Array:
    n_prefix = len(prefix_PxD)
    n_suffix = suffix_CxLxD.shape[1]
    if deep is not None or n_prefix + n_suffix != n_positions:
      raise ValueError(
        f"prompt of {n_prefix} + {n_suffix} tokens: expected {n_positions}, all"
        " positions of the text tower, and no context of deeper layers"
      )
    tower = Tower(config, dtype, memory.remat, params)

    def features_of_chunk(suffix_CxLxD: Array, lengths_C: Array) -> Array:
      del lengths_C  # all classes have the same length
      return _full_features(tower, prefix_PxD, suffix_CxLxD)

    return in_equal_chunks(features_of_chunk, memory, suffix_CxLxD, lengths_C)

  return jax.default_matmul_precision(products)(features)


def _full_features(tower: Tower, prefix_PxD: Any, suffix_CxLxD: Any) -> Array:
  """Computes features [C,E] of classes whose tokens fill all S positions.

  The dense layers take the R = C * S tokens of all classes as rows. Only attention
  separates the classes.
  """
  n_classes, n_suffix, width = suffix_CxLxD.shape
  n_prefix = len(prefix_PxD)
  n_positions = n_prefix + n_suffix
  embeddings = tower.params["text_model"]["embeddings"]
  position_SxD = embeddings["position_embedding"]["embedding"]
  prefix_CxPxD = jnp.broadcast_to(prefix_PxD, (n_classes, n_prefix, width))
  tokens_CxSxD = jnp.concatenate([prefix_CxPxD, suffix_CxLxD], axis=1)
  hidden_CxSxD = tokens_CxSxD + jnp.asarray(position_SxD)

  def by_class(rows_RxD: Array) -> Array:
    return rows_RxD.reshape(n_classes, n_positions, width)

  def attend(query_RxD: Array, key_RxD: Array, value_RxD: Array) -> Array:
    attended_CxSxD = attention(
      tower.config.num_attention_heads,
      by_class(query_RxD),
      by_class(key_RxD),
      by_class(value_RxD),
      scale=1.0,  # the queries are scaled already
    )
    return attended_CxSxD.reshape(-1, width)

  def select_last(rows_RxD: Array) -> Array:
    return rows_RxD[n_positions - 1 :: n_positions]

  hidden_RxD = hidden_CxSxD.reshape(-1, width).astype(jnp.float32)
  return encoded(tower, hidden_RxD, attend, select_last)


def block_of(kind: str, config: Any, platform: str) -> int | None:
  """Rows of a block of the text tower on a platform; None for a tower without blocks.

  Only the packed tower has blocks, and only on platforms where blocks are faster, see
  `clip.blocks.block_width`.

  Args:
    kind: implementation, one of `TEXT_TOWERS`.
    config: sizes of the text tower.
    platform: kind of the devices: cpu, gpu or tpu.
  """
  is_packed = kind == "shared" and not is_bidirectional(config)
  if not is_packed:
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
  """Embeddings of token ids, without positions. With NumPy parameters the result is a
  NumPy array, and no device is used."""
  rows = token_table(params)[ids]
  # A table that is mapped from a file may be stored in half precision.
  return rows if rows.dtype == jnp.float32 else rows.astype(jnp.float32)


def token_table(params: Any) -> Any:
  """Embeddings [V,D] of all tokens. On the host, a long table is mapped from its file
  in the stored type."""
  return params["text_model"]["embeddings"]["token_embedding"]["embedding"]


def with_embeddings(
  params: Any, embeddings_VxD: Float[Array | np.ndarray, "V D"]
) -> Any:
  """Replaces the token embeddings in the parameters of the text tower."""
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
  """Chooses the fastest plan whose activations stay below a limit on one device.

  The activations are rough estimates, see `activation_bytes`. A bidirectional tower
  always needs at least twice the memory of its input embeddings, so its plan may exceed
  the limit.

  Args:
    config: sizes of the text tower.
    n_prefix: P, prefix tokens that all classes share.
    n_tokens: T, own tokens of all classes.
    limit_bytes: memory for activations, bytes.
    block: W, rows of a block; None without blocks.
    dtype: compute type; read only for a bidirectional tower.
    platform: kind of the devices; read only for a bidirectional tower.
  """
  if is_bidirectional(config):
    full_tower = full_tower_bytes(config, n_prefix, n_tokens, dtype, platform)
    return full_tower.plan(limit_bytes)
  needed_bytes = activation_bytes(config, n_prefix, n_tokens, block)
  if needed_bytes <= limit_bytes:
    return AT_ONCE
  n_chunks = math.ceil(needed_bytes / limit_bytes)
  return MemoryPlan(n_chunks, "chunks")


def activation_bytes(
  config: Any,
  n_prefix: int,
  n_tokens: int,
  block: int | None = None,
  dtype: Any = jnp.float32,
  platform: str = "cpu",
) -> float:
  """Estimates the bytes of all residuals without rematerialisation, for P and T tokens.

  The residuals of a token in a layer are about nine vectors of width D (inputs of the
  norms, query, key, value, the result of attention), the MLP's hidden vector, and the
  attention weights. `full_tower_bytes` has the estimate for a bidirectional tower.

  Args:
    config: sizes of the text tower.
    n_prefix: P, prefix tokens that all classes share.
    n_tokens: T, own tokens of all classes.
    block: W, rows of a block; None without blocks.
    dtype: compute type; read only for a bidirectional tower.
    platform: kind of the devices; read only for a bidirectional tower.
  """
  if is_bidirectional(config):
    return full_tower_bytes(config, n_prefix, n_tokens, dtype, platform).peak(1)
  if block is None:
    n_rows: float = n_tokens
    # A token attends to the prefix and to two windows. Usual names have windows of 8.
    n_weights = n_prefix + 2 * 8
  else:
    # Each block begins with a copy of the prefix, and each row of a block has a weight
    # for every row of the block.
    n_rows = n_tokens * block / (block - n_prefix)
    n_weights = block
  of_vectors = 9 * config.hidden_size + config.intermediate_size
  of_attention = config.num_attention_heads * n_weights
  bytes_of_row = 4.0 * (of_vectors + of_attention)
  return bytes_of_row * config.num_hidden_layers * n_rows


class FullTowerBytes(NamedTuple):
  """Memory that a bidirectional text tower takes on one device beside its
  parameters, in bytes."""

  n_classes: int
  residuals: float  # residuals of all classes, without rematerialisation
  embeddings: float  # the tower's input: embeddings of all classes' own tokens
  # copy of the weights in the compute type, which all chunks share; 0 in float32
  weights: float
  # three arrays for all classes: features by chunk, joined features, their gradient
  features: float

  def peak(self, n_chunks: int) -> float:
    """Peak memory with a number of equal chunks. To make more than one chunk, the
    embeddings are copied first."""
    throughout = self.embeddings + self.features
    if n_chunks == 1:
      return throughout + self.residuals
    classes_of_chunk = math.ceil(self.n_classes / n_chunks)
    residuals_of_chunk = self.residuals * classes_of_chunk / self.n_classes
    # The peak is either the copy of the embeddings, or the backward pass of a chunk.
    return throughout + max(self.embeddings, self.weights + residuals_of_chunk)

  def plan(self, limit_bytes: float) -> MemoryPlan:
    """Chooses the fewest chunks that stay below the limit. If no number does, chooses
    the fewest with the least peak.

    The copy of the embeddings causes that peak, or the backward pass of one class."""
    if self.peak(1) <= limit_bytes:
      return AT_ONCE
    beside_residuals = self.embeddings + self.features + self.weights
    # No number of chunks lowers the peak below the copy of the embeddings, so residuals
    # may always use as much memory as the copy does.
    room = max(limit_bytes - beside_residuals, self.embeddings - self.weights)
    classes_at_once = math.floor(room / self.residuals * self.n_classes)
    classes_at_once = max(1, classes_at_once)
    return MemoryPlan(math.ceil(self.n_classes / classes_at_once), "chunks")


def full_tower_bytes(
  config: Any, n_prefix: int, n_tokens: int, dtype: Any, platform: str
) -> FullTowerBytes:
  """Estimates the memory of a bidirectional tower, whose classes have all S positions.

  The residuals of a token in a layer are the inputs of two norms in float32, and in the
  compute type: query, key, value, scores and weights of attention, and the MLP's hidden
  vector. `docs.studies.full_tower_memory` compares the estimate with compiled programs.

  Args:
    config: sizes of the text tower.
    n_prefix: P, prefix tokens that all classes share.
    n_tokens: own tokens of all classes, S - P for each class.
    dtype: compute type, see `clip.precision`.
    platform: kind of the devices: cpu, gpu or tpu.
  """
  compute_bytes = jnp.dtype(precision_of(dtype).dtype).itemsize
  n_positions = config.max_position_embeddings
  n_layers = config.num_hidden_layers
  n_heads = config.num_attention_heads
  width = config.hidden_size
  inner_width = config.intermediate_size
  n_classes = math.ceil(n_tokens / (n_positions - n_prefix))

  def stored(size: int) -> int:
    """Stored length of an array's last axis: a TPU pads it to a multiple of 128."""
    if platform == "tpu":
      return 128 * math.ceil(size / 128)
    return size

  of_projections = 3 * stored(width // n_heads)
  of_scores_and_weights = 2 * stored(n_positions)
  of_attention = n_heads * (of_projections + of_scores_and_weights)
  of_norms = 4 * 2 * width  # bytes
  of_row = of_norms + compute_bytes * (of_attention + inner_width)  # bytes, one layer
  n_weights = n_layers * (4 * width**2 + 2 * width * inner_width)
  copied_weights = 0.0
  if compute_bytes < 4:
    copied_weights = float(compute_bytes * n_weights)
  return FullTowerBytes(
    n_classes,
    residuals=float(n_layers * of_row * n_classes * n_positions),
    embeddings=4.0 * n_tokens * width,
    weights=copied_weights,
    features=3 * 4.0 * n_classes * config.projection_dim,
  )
