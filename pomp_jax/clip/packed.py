"""The fast text tower: the shared prefix computed once, names packed without padding.

CLIP's text tower is causal and the prefix comes first, so the keys and values of the
prefix are equal for all classes, and no token after EOT influences EOT. One sequence of
R = P + T tokens, the prefix and then the own tokens of all classes, passes through
every dense layer. Only attention separates classes: a token attends to the prefix and
to a window of the tokens before it, masked to its own class. The window covers the
longest class, so the attention is exact. The last layer computes its MLP at the EOT
tokens alone. T, the token budget, is static; classes beyond the budget are dropped, see
`kept_rows`. On TPUs the tokens are packed into blocks that each begin with the prefix,
see `clip.blocks`.

The weights are frozen, so the backward pass needs no input of any dense layer: layer
norm, activation and attention have custom VJPs with few residuals.

Shapes: C classes of a call (rows of its arguments), N classes in all, P prefix tokens,
L positions for a class's own tokens, T packed tokens, R = P + T (in blocks: G blocks of
W tokens, R = G * W), S positions of the text tower, D width, F width of the MLP, E
embedding. `_select` gathers O of I rows. Imports jax and numpy only.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.array_types import Array, Bool, Float, Int32
from pomp_jax.clip.attention import masks_of, packed_attention
from pomp_jax.clip.blocks import PARTS, block_attention, n_blocks, pack_blocks, room_of
from pomp_jax.clip.precision import precision_of

# What the backward pass recomputes, from the fastest to the smallest in memory. `none`:
# nothing costly; the inputs of every layer norm, activation and attention are
# residuals. `layers`: each layer, from its input. `chunks`: each chunk, so that memory
# holds the residuals of only one chunk.
REMAT = ("none", "layers", "chunks")


class MemoryPlan(NamedTuple):
  """How the classes of a step share the memory of the backward pass."""

  n_chunks: int = 1  # number of parts, which are computed one after the other
  remat: str = "none"  # one of REMAT


AT_ONCE = MemoryPlan()  # the fastest

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
  "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def shared_text_tower(
  config: Any,
  dtype: Any = jnp.float32,
  token_budget: int | None = None,
  memory: MemoryPlan = AT_ONCE,
  block: int | None = None,
) -> Callable[..., Float[Array, "C E"]]:
  """Builds a fast `clip.text.TextTower`, equal to `reference` for every kept row.

  The tower has one more, optional argument, `deep` [J-1,M,D], for MaPLe (Khattak et al., 2023).
  deep[j-1] replaces the prefix's last M tokens before layer j, for j = 1..J-1.

  Args:
    config: HuggingFace's CLIPTextConfig, or an object with its fields.
    dtype: compute type of the dense layers and of attention, see `clip.precision`; layer
      norm, softmax and the sum of the layers stay float32.
    token_budget: T, most own tokens of all rows together; enough for C * L if None.
      Features of rows beyond the budget, see `kept_rows`, are 1, without gradient.
    memory: chunks and rematerialisation.
    block: W of `clip.blocks.block_width`; None packs all tokens into one sequence.

  Raises:
    ValueError: by the tower, when it is called with a prompt longer than its positions.
  """
  dtype, products = precision_of(dtype)

  def features(
    params: Any, prefix_PxD: Any, suffix_CxLxD: Any, lengths_C: Array, deep: Any = None
  ) -> Array:
    n_classes, n_suffix, _ = suffix_CxLxD.shape
    n_prefix = prefix_PxD.shape[0]
    if n_prefix + n_suffix > config.max_position_embeddings:
      raise ValueError(
        f"prompt of {n_prefix} + {n_suffix} tokens: expected at most"
        f" {config.max_position_embeddings}, the text tower's positions"
      )
    capacity = None
    if block is not None:
      capacity = block - n_prefix
    longest = math.ceil(taken_of(np.array([n_suffix], np.int32), capacity)[0])
    budget = token_budget
    if budget is None:
      budget = n_classes * longest
    is_kept_C = kept_rows(lengths_C, budget, capacity)
    kept_lengths_C = jnp.where(is_kept_C, lengths_C, 0)
    if memory.n_chunks > 1:
      # `in_chunks` balances tokens up to one row, so add the longest row to each share.
      budget = math.ceil(budget / memory.n_chunks) + longest

    if block is None:
      tower = Tower(config, dtype, memory.remat, params)
      compute = functools.partial(_packed_features, tower, budget, prefix_PxD, deep)
    else:
      tower = Tower(config, dtype, memory.remat, params, one_pass=True)
      compute = functools.partial(
        _block_features, tower, block, budget, prefix_PxD, deep
      )
    features_CxE = in_chunks(compute, memory, suffix_CxLxD, kept_lengths_C)
    return jnp.where(is_kept_C[:, None], features_CxE, 1.0)

  return jax.default_matmul_precision(products)(features)


def kept_rows(
  lengths_C: Int32[Array, " C"], token_budget: int, capacity: int | None = None
) -> Bool[Array, " C"]:
  """Which rows a tower with a token budget computes.

  A row is kept if the tokens of this and all earlier rows fit in the budget. Each row
  takes its own tokens, or with blocks its share of a block, see `taken_of`.

  Args:
    lengths_C: own tokens of each row.
    token_budget: T, most tokens that all kept rows may take together.
    capacity: own tokens that fit in a block; None without blocks.
  """
  if capacity is None:
    used_C = jnp.cumsum(lengths_C)
    return used_C <= token_budget
  # Count room in integer parts of a token (PARTS for one token): their sums are exact.
  used_parts_C = jnp.cumsum(room_of(lengths_C, capacity))
  return used_parts_C <= PARTS * token_budget


def taken_of(
  lengths_N: Int32[np.ndarray, " N"], capacity: int | None = None
) -> Float[np.ndarray, " N"]:
  """Tokens that each row takes of a token budget.

  Without a capacity a row takes its own tokens. With the capacity of a block, the row
  takes its share of the block in tokens. Sums of these numbers are exact.
  """
  if capacity is None:
    return lengths_N.astype(np.float64)
  return room_of(lengths_N.astype(np.int64), capacity) / PARTS


def token_budget(
  lengths_N: Int32[np.ndarray, " N"],
  n_drawn: int,
  n_given: int = 0,
  capacity: int | None = None,
) -> int:
  """T for a step: enough for the classes of almost every step with uniform draws.

  The tokens of n rows drawn without replacement have the mean n mu and the variance n
  s^2 (N - n) / (N - 1). About one step in 30,000 exceeds four standard deviations.

  Args:
    lengths_N: own tokens of all classes.
    n_drawn: n, number of rows that are drawn.
    n_given: number of arbitrary rows before the drawn ones, the positives. The estimate
      counts them as independent draws, but they always fit, even if each is the longest
      class.
    capacity: own tokens that fit in a block; None without blocks. With blocks T counts
      the tokens that rows take of their blocks, see `taken_of`.

  Returns:
    T, rounded up to a multiple of 16. Before rounding, T is at most what the longest
    names take.
  """
  taken_N = taken_of(lengths_N, capacity)
  n_classes = taken_N.size
  longest = taken_N.max()
  # Number of independent draws with the same variance: n drawn without replacement
  # count as n (N - n) / (N - 1), and the positives are independent.
  n_independent = n_drawn * (n_classes - n_drawn) / max(n_classes - 1, 1) + n_given
  variance = taken_N.var() * n_independent
  expected = taken_N.mean() * (n_drawn + n_given) + 4.0 * math.sqrt(variance)
  # No draw without replacement holds more than the n_drawn longest names.
  most = np.sort(taken_N)[n_classes - n_drawn :].sum() + n_given * longest
  budget = min(max(expected, n_given * longest), most)
  return 16 * math.ceil(budget / 16)


class _Packing(NamedTuple):
  """Indices between packed tokens and classes; -1 for none."""

  # class * L + position in the class, for each packed token
  source_T: Int32[Array, " T"]
  # packed token of each class and position; the inverse of `source_T`
  target_CL: Int32[Array, " C*L"]
  # class of each packed token; the number of classes for a token without a class
  row_T: Int32[Array, " T"]
  position_T: Int32[Array, " T"]  # position of a packed token in its class
  eot_C: Int32[Array, " C"]  # packed token of each class's EOT
  eot_T: Int32[Array, " T"]  # class whose EOT a packed token is; the inverse of `eot_C`


def _pack(lengths_C: Array, n_suffix: int, budget: int) -> _Packing:
  """Numbers the own tokens of all classes one after the other.

  Args:
    lengths_C: own tokens of each class; 0 for a class that is left out.
    n_suffix: L, positions for a class's own tokens.
    budget: T, number of packed tokens. Packed tokens after the last class's own tokens
      belong to no class.
  """
  n_classes = lengths_C.shape[0]
  ends_C = jnp.cumsum(lengths_C)
  starts_C = ends_C - lengths_C

  # For each packed token: its class, and its position in the class.
  token_T = jnp.arange(budget, dtype=jnp.int32)
  row_T = jnp.searchsorted(ends_C, token_T, side="right").astype(jnp.int32)
  exists_T = row_T < n_classes
  index_T = jnp.minimum(row_T, n_classes - 1)  # a valid index, also without a class
  position_T = jnp.where(exists_T, token_T - starts_C[index_T], 0)

  # For each class and position: the packed token.
  position_L = jnp.arange(n_suffix, dtype=jnp.int32)
  is_own_CxL = position_L < lengths_C[:, None]
  target_CxL = jnp.where(is_own_CxL, starts_C[:, None] + position_L, -1)
  is_eot_T = exists_T & (token_T == ends_C[index_T] - 1)
  return _Packing(
    source_T=jnp.where(exists_T, index_T * n_suffix + position_T, -1),
    target_CL=target_CxL.reshape(-1),
    row_T=row_T,
    position_T=position_T,
    eot_C=jnp.where(lengths_C > 0, ends_C - 1, -1),
    eot_T=jnp.where(is_eot_T, index_T, -1),
  )


@jax.custom_vjp
def _select(rows_IxD: Any, index_O: Array, inverse_I: Array) -> Array:
  """rows[index], zero where the index is -1.

  The backward pass reads `inverse_I`, the inverse of the map: -1 for rows that are not
  selected. In general the transpose of a gather is a scatter, which is slow on CPUs and
  not deterministic on GPUs. Here no row is selected twice, so the transpose is a gather
  with the inverse.
  """
  del inverse_I
  return jnp.where(index_O[:, None] >= 0, rows_IxD[jnp.maximum(index_O, 0)], 0)


def _select_forward(
  rows_IxD: Any, index_O: Array, inverse_I: Array
) -> tuple[Array, tuple[Array, Array]]:
  return _select(rows_IxD, index_O, inverse_I), (index_O, inverse_I)


def _select_backward(
  indices: tuple[Array, Array], gradient_OxD: Array
) -> tuple[Array, None, None]:
  index_O, inverse_I = indices
  return _select(gradient_OxD, inverse_I, index_O), None, None


_select.defvjp(_select_forward, _select_backward)


class Tower(NamedTuple):
  """Settings and parameters of a text tower, equal for all classes."""

  config: Any
  dtype: Any
  remat: str
  params: Any
  one_pass: bool = False  # whether layer norms read rows once, see `_Norm`


def _packed_features(
  tower: Tower,
  budget: int,
  prefix_PxD: Any,
  deep: Any,
  suffix_CxLxD: Any,
  lengths_C: Array,
) -> Float[Array, "C E"]:
  """Computes features of all rows in one packed pass.

  Features of rows of length 0 are undefined but finite.
  """
  n_classes, n_suffix, width = suffix_CxLxD.shape
  n_prefix = prefix_PxD.shape[0]
  # A token attends to at most L - 1 tokens before it. With windows of at least L - 1
  # tokens, these are in its own window and the window before.
  window = 8 * math.ceil(max(n_suffix - 1, 1) / 8)
  budget = window * math.ceil(budget / window)
  packing = _pack(lengths_C, n_suffix, budget)
  masks = masks_of(packing.row_T, window)

  positions_SxD = _positions(tower)
  suffix_TxD = _select(
    suffix_CxLxD.reshape(n_classes * n_suffix, width),
    packing.source_T,
    packing.target_CL,
  )
  prefix_PxD = prefix_PxD + positions_SxD[:n_prefix]
  suffix_TxD = suffix_TxD + positions_SxD[n_prefix + packing.position_T]
  hidden_RxD = jnp.concatenate([prefix_PxD, suffix_TxD]).astype(jnp.float32)

  def select_eot(rows_RxD: Array) -> Array:
    return _select(rows_RxD[n_prefix:], packing.eot_C, packing.eot_T)

  def attend(query_RxD: Array, key_RxD: Array, value_RxD: Array) -> Array:
    n_heads = tower.config.num_attention_heads
    return packed_attention(n_heads, n_prefix, query_RxD, key_RxD, value_RxD, masks)

  def with_deep_tokens(i: int, hidden_RxD: Array) -> Array:
    if deep is None or not 0 < i <= deep.shape[0]:
      return hidden_RxD
    before_RxD = hidden_RxD[: n_prefix - deep.shape[1]]
    return jnp.concatenate([before_RxD, deep[i - 1], hidden_RxD[n_prefix:]])

  return encoded(tower, hidden_RxD, attend, select_eot, with_deep_tokens)


def _positions(tower: Tower) -> Array:
  """Embeddings [S,D] of the text tower's positions."""
  embeddings = tower.params["text_model"]["embeddings"]
  return jnp.asarray(embeddings["position_embedding"]["embedding"])


def _block_features(
  tower: Tower,
  width: int,
  budget: int,
  prefix_PxD: Any,
  deep: Any,
  suffix_CxLxD: Any,
  lengths_C: Array,
) -> Float[Array, "C E"]:
  """Computes features of all rows, packed into blocks.

  Features of rows of length 0 are undefined but finite.
  """
  n_classes, n_suffix, n_features = suffix_CxLxD.shape
  n_prefix = prefix_PxD.shape[0]
  number = n_blocks(budget, width - n_prefix, n_suffix)
  packing = pack_blocks(lengths_C, n_suffix, n_prefix, width, number)

  positions_SxD = _positions(tower)
  suffix_RxD = _select(
    suffix_CxLxD.reshape(n_classes * n_suffix, n_features),
    packing.source_R,
    packing.target_CL,
  )
  suffix_RxD = suffix_RxD + positions_SxD[n_prefix + packing.position_R]
  place_Wx1 = np.arange(width)[:, None]

  def with_prefix(rows_RxD: Array, prefix_MxD: Array) -> Array:
    """Replaces the last M rows of every block's prefix."""
    n_before = n_prefix - prefix_MxD.shape[0]
    prefix_WxD = jnp.pad(prefix_MxD, ((n_before, width - n_prefix), (0, 0)))
    is_replaced_Wx1 = (place_Wx1 >= n_before) & (place_Wx1 < n_prefix)
    rows_GxWxD = rows_RxD.reshape(number, width, n_features)
    replaced_GxWxD = jnp.where(is_replaced_Wx1, prefix_WxD, rows_GxWxD)
    return replaced_GxWxD.reshape(number * width, n_features)

  hidden_RxD = with_prefix(suffix_RxD, prefix_PxD + positions_SxD[:n_prefix])
  hidden_RxD = hidden_RxD.astype(jnp.float32)

  def select_eot(rows_RxD: Array) -> Array:
    return _select(rows_RxD, packing.eot_C, packing.eot_R)

  def attend(query_RxD: Array, key_RxD: Array, value_RxD: Array) -> Array:
    n_heads = tower.config.num_attention_heads
    return block_attention(n_heads, query_RxD, key_RxD, value_RxD, packing.mask)

  def with_deep_tokens(i: int, hidden_RxD: Array) -> Array:
    if deep is None or not 0 < i <= deep.shape[0]:
      return hidden_RxD
    return with_prefix(hidden_RxD, deep[i - 1])

  return encoded(tower, hidden_RxD, attend, select_eot, with_deep_tokens)


def encoded(
  tower: Tower,
  hidden_RxD: Float[Array, "R D"],
  attend: Callable,
  select_last: Callable,
  enter: Callable[[int, Array], Array] = lambda i, hidden_RxD: hidden_RxD,
) -> Float[Array, "C E"]:
  """Passes tokens through all layers of a text tower, and projects them to features.

  Args:
    tower: sizes and parameters.
    hidden_RxD: embeddings of the tokens, with their positions added.
    attend: attention, see `layer`.
    select_last: function from [R,D] to the rows [C,D] whose features are read.
    enter: function (number of a layer, input of the layer) -> changed input.
  """
  model = tower.params["text_model"]
  n_layers = tower.config.num_hidden_layers
  for i in range(n_layers):
    # Only some tokens of the last layer's output are read.
    select = select_last if i == n_layers - 1 else lambda rows_RxD: rows_RxD
    weights = model["encoder"]["layers"][str(i)]
    compute: Callable = functools.partial(
      layer, tower, weights, attend=attend, select=select
    )
    if tower.remat == "layers":
      compute = jax.checkpoint(compute)
    hidden_RxD = compute(enter(i, hidden_RxD))
  read_CxD = _normed(tower, model["final_layer_norm"], hidden_RxD)
  projection = tower.params["text_projection"]
  features_CxE = read_CxD @ projection["kernel"].astype(tower.dtype)
  if "bias" in projection:
    features_CxE += projection["bias"]
  return features_CxE.astype(jnp.float32)


def in_chunks(
  compute: Callable, memory: MemoryPlan, suffix_CxLxD: Any, lengths_C: Array
) -> Float[Array, "C E"]:
  """Computes the rows in chunks, each with its own pass of the prefix (a few tokens).

  The chunks take turns in taking the longest row that is left, so the numbers of tokens
  of two chunks differ by at most one row's tokens.

  Args:
    compute: function from suffixes and lengths of some rows to their features.
    memory: number of chunks, and rematerialisation.
    suffix_CxLxD: embeddings of the rows' own tokens.
    lengths_C: own tokens of each row.
  """
  n_chunks = memory.n_chunks
  if n_chunks == 1:
    return compute(suffix_CxLxD, lengths_C)
  n_classes, n_suffix, width = suffix_CxLxD.shape
  n_rows = math.ceil(n_classes / n_chunks)
  order_C = jnp.argsort(-lengths_C).astype(jnp.int32)
  rank_C = jnp.argsort(order_C).astype(jnp.int32)
  n_padding = n_rows * n_chunks - n_classes
  # Chunk i takes ranks i, i + n_chunks, ..
  row_of_slot = jnp.pad(order_C, (0, n_padding), constant_values=-1)
  row_of_slot = row_of_slot.reshape(n_rows, n_chunks).T.reshape(-1)
  slot_of_row = (rank_C % n_chunks) * n_rows + rank_C // n_chunks
  suffixes = _select(suffix_CxLxD.reshape(n_classes, -1), row_of_slot, slot_of_row)
  lengths = jnp.where(row_of_slot >= 0, lengths_C[jnp.maximum(row_of_slot, 0)], 0)

  suffixes = suffixes.reshape(n_chunks, n_rows, n_suffix, width)
  lengths = lengths.reshape(n_chunks, n_rows)
  features = _one_after_the_other(compute, memory, suffixes, lengths)
  return _select(features, slot_of_row, row_of_slot)


def in_equal_chunks(
  compute: Callable, memory: MemoryPlan, suffix_CxLxD: Any, lengths_C: Array
) -> Float[Array, "C E"]:
  """Computes rows of equal length in chunks.

  Unlike `in_chunks`, keeps the order of the rows, which saves a permuted copy of the
  embeddings. The arguments are those of `in_chunks`.
  """
  if memory.n_chunks == 1:
    return compute(suffix_CxLxD, lengths_C)
  n_classes = len(lengths_C)
  n_rows = math.ceil(n_classes / memory.n_chunks)
  # Rounding up the rows of a chunk may make fewer chunks sufficient.
  n_chunks = math.ceil(n_classes / n_rows)
  n_padding = n_rows * n_chunks - n_classes

  def in_chunks_of_rows(rows: Array) -> Array:
    no_padding = [(0, 0)] * (rows.ndim - 1)
    padded = jnp.pad(rows, [(0, n_padding), *no_padding])
    return padded.reshape(n_chunks, n_rows, *rows.shape[1:])

  features = _one_after_the_other(
    compute, memory, in_chunks_of_rows(suffix_CxLxD), in_chunks_of_rows(lengths_C)
  )
  return features[:n_classes]


def _one_after_the_other(
  compute: Callable,
  memory: MemoryPlan,
  suffix_NxCxLxD: Array,
  lengths_NxC: Array,
) -> Float[Array, "slots E"]:
  """Computes N chunks of rows in a loop, so that memory holds one chunk at a time.

  Args:
    compute: function from suffixes and lengths of a chunk to its features.
    memory: whether the backward pass recomputes each chunk.
    suffix_NxCxLxD: embeddings of the chunks' rows.
    lengths_NxC: own tokens of each row.

  Returns:
    Features of all rows, chunk after chunk [N * C,E].
  """

  def features_of_chunk(_: None, chunk: tuple[Array, Array]) -> tuple[None, Array]:
    suffix_CxLxD, lengths_C = chunk
    return None, compute(suffix_CxLxD, lengths_C)

  if memory.remat == "chunks":
    features_of_chunk = jax.checkpoint(features_of_chunk, prevent_cse=False)
  _, features_NxCxE = jax.lax.scan(
    features_of_chunk, None, (suffix_NxCxLxD, lengths_NxC)
  )
  return features_NxCxE.reshape(-1, features_NxCxE.shape[-1])


def _project(weights: Any, rows: Array) -> Array:
  """A dense layer without its bias, in the type of the rows."""
  return rows @ weights["kernel"].astype(rows.dtype)


def layer(
  tower: Tower, weights: Any, hidden_RxD: Array, attend: Callable, select: Callable
) -> Float[Array, "R D"]:
  """Computes one layer of a frozen text tower, with few residuals.

  Args:
    tower: sizes and compute type.
    weights: parameters of the layer.
    hidden_RxD: input, float32.
    attend: function from scaled queries, keys and values [R,D] to the result [R,D].
    select: function from [R,D] to the rows that are read; only these rows pass the MLP.
  """
  attention = weights["self_attn"]
  mlp = weights["mlp"]
  normed_RxD = _normed(tower, weights["layer_norm1"], hidden_RxD)
  head_width = hidden_RxD.shape[1] // tower.config.num_attention_heads

  def projected(name: str) -> Array:
    bias_D = attention[name]["bias"].astype(tower.dtype)
    return _project(attention[name], normed_RxD) + bias_D

  query_RxD = projected("q_proj") * head_width**-0.5
  key_RxD = projected("k_proj")
  value_RxD = projected("v_proj")
  attended_RxD = attend(query_RxD, key_RxD, value_RxD)
  hidden_RxD = select(hidden_RxD)
  attended_RxD = select(attended_RxD)
  out = attention["out_proj"]
  hidden_RxD += _project(out, attended_RxD) + out["bias"]

  normed_RxD = _normed(tower, weights["layer_norm2"], hidden_RxD)
  inner_RxF = _project(mlp["fc1"], normed_RxD)
  inner_RxF = _activation(tower.config.hidden_act, inner_RxF, mlp["fc1"]["bias"])
  return hidden_RxD + (_project(mlp["fc2"], inner_RxF) + mlp["fc2"]["bias"])


def _activated(name: str, rows_RxF: Array, bias_F: Any) -> Array:
  """The MLP's activation of rows + bias; of arrays with R rows, the backward pass keeps
  only `rows_RxF`."""
  return ACTIVATIONS[name](rows_RxF + bias_F.astype(rows_RxF.dtype))


def _activation_backward(name: str, inputs: Any, gradient_RxF: Array) -> tuple:
  # The barrier stops the compiler from storing intermediates of the forward pass.
  inputs, gradient_RxF = jax.lax.optimization_barrier((inputs, gradient_RxF))
  _, gradients_of = jax.vjp(functools.partial(_activated, name), *inputs)
  return gradients_of(gradient_RxF)


_activation = jax.custom_vjp(_activated, nondiff_argnums=(0,))
_activation.defvjp(
  lambda name, *inputs: (_activation(name, *inputs), inputs), _activation_backward
)


def _normed(tower: Tower, weights: Any, rows_RxD: Array) -> Array:
  settings = _Norm(tower.config.layer_norm_eps, tower.dtype, tower.one_pass)
  return _layer_norm(settings, rows_RxD, weights["scale"], weights["bias"])


def layer_norm(
  epsilon: float, dtype: Any, rows: Array, scale: Any, bias: Any
) -> Float[Array, "... D"]:
  """Layer norm over the last axis, (x - mean) / sqrt(var + epsilon) * scale + bias.

  The norm is computed in float32. The backward pass recomputes the normed rows, so the
  rows themselves are the only residual of their size.

  Args:
    epsilon: number added to the variance.
    dtype: type of the result.
    rows: input [..,D], float32.
    scale: factors [D].
    bias: summands [D].
  """
  settings = _Norm(epsilon, dtype)
  return _layer_norm(settings, rows, scale, bias)


class _Norm(NamedTuple):
  """Static settings of a layer norm."""

  epsilon: float
  dtype: Any
  # Whether the variance is E[x^2] - E[x]^2, as in Flax: one pass over the rows, which a
  # TPU fuses with the matrix product before. This formula is exact to rounding if the
  # mean is not larger than the standard deviation.
  one_pass: bool = False


class _NormResiduals(NamedTuple):
  """Arrays of the forward pass that the backward pass of a layer norm reads."""

  rows_RxD: Array
  mean_Rx1: Array
  inverse_Rx1: Array  # 1 / sqrt(variance + epsilon)
  scale_D: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer_norm(settings: _Norm, rows_RxD: Array, scale_D: Any, bias_D: Any) -> Array:
  normed_RxD, _ = _layer_norm_forward(settings, rows_RxD, scale_D, bias_D)
  return normed_RxD


def _layer_norm_forward(
  settings: _Norm, rows_RxD: Array, scale_D: Any, bias_D: Any
) -> tuple[Array, _NormResiduals]:
  """y = n s + b, with n = (x - mean) / sqrt(var + epsilon)."""
  mean_Rx1 = jnp.mean(rows_RxD, axis=-1, keepdims=True)
  if settings.one_pass:
    mean_square_Rx1 = jnp.mean(jnp.square(rows_RxD), axis=-1, keepdims=True)
    # Rounding may give a negative difference.
    variance_Rx1 = jnp.maximum(mean_square_Rx1 - jnp.square(mean_Rx1), 0)
  else:
    variance_Rx1 = jnp.mean(jnp.square(rows_RxD - mean_Rx1), axis=-1, keepdims=True)
  inverse_Rx1 = jax.lax.rsqrt(variance_Rx1 + settings.epsilon)
  normed_RxD = (rows_RxD - mean_Rx1) * inverse_Rx1
  scaled_RxD = normed_RxD * scale_D + bias_D
  residuals = _NormResiduals(rows_RxD, mean_Rx1, inverse_Rx1, scale_D)
  return scaled_RxD.astype(settings.dtype), residuals


def _layer_norm_backward(
  settings: _Norm, residuals: _NormResiduals, gradient_RxD: Array
) -> tuple[Array, Array, Array]:
  """Gradients of rows, scale and bias, from the gradient g of y = n s + b.

  The mean is over the D numbers of a row, the sums are over the rows:

    dx = (g s - mean(g s) - n mean(g s n)) / sqrt(var + epsilon),
    ds = sum(g n),  db = sum(g).
  """
  del settings
  rows_RxD, mean_Rx1, inverse_Rx1, scale_D = residuals
  gradient_RxD = gradient_RxD.astype(jnp.float32)
  normed_RxD = (rows_RxD - mean_Rx1) * inverse_Rx1
  scaled_RxD = gradient_RxD * scale_D
  along_Rx1 = jnp.mean(scaled_RxD * normed_RxD, axis=-1, keepdims=True)
  centred_RxD = scaled_RxD - jnp.mean(scaled_RxD, axis=-1, keepdims=True)
  d_rows_RxD = inverse_Rx1 * (centred_RxD - normed_RxD * along_Rx1)
  d_scale_D = jnp.sum(gradient_RxD * normed_RxD, axis=0)
  d_bias_D = jnp.sum(gradient_RxD, axis=0)
  return d_rows_RxD, d_scale_D, d_bias_D


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
