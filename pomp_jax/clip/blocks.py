"""Packing of names into blocks for the fast text tower, and attention within a block.

A TPU computes tiles of 128 rows, and a slice that is not aligned to one costs more than
a product. So each block of W rows begins with a copy of the prefix, a class never
crosses two blocks, and attention is a plain masked product within the block: nothing is
sliced or joined between layers.

Blocks are filled with the classes from the longest on (next-fit decreasing). A class of
l tokens takes 1/k of a block, with k = floor(c / l) and c = W - P: its room, which
budgets count.

Shapes: C classes, P prefix tokens, L own tokens of a class, G blocks of W rows, R = G *
W rows, c the capacity of a block in own tokens, D width, H heads of width e.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.array_types import Array, Bool, Float, Int32

# Room is rounded up to these parts of a token, so that its sums are exact integers.
PARTS = 64


def block_width(platform: str, n_positions: int) -> int | None:
  """W for the devices of a platform; None where tokens are packed without blocks.

  A block holds any prompt: P + L is at most the number of positions. CPUs lose by the
  copies of the prefix, and GPUs were not measured.
  """
  if platform != "tpu":
    return None
  return 128 * math.ceil(n_positions / 128)


def room_of(lengths: Any, capacity: int) -> Any:
  """Room that classes take of a token budget, in PARTS of a token.

  A class of l tokens shares its block with k - 1 others of this length, k = floor(c /
  l), so that it takes c / k >= l tokens. Classes of length 0 take none.

  Args:
    lengths: own tokens of each class, a NumPy or a JAX array.
    capacity: c, own tokens that a block has room for.
  """
  numpy: Any = jnp
  if isinstance(lengths, np.ndarray):
    numpy = np
  per_block = capacity // numpy.maximum(lengths, 1)
  has_tokens = lengths > 0
  room = -(-PARTS * capacity // per_block)  # rounded up
  return numpy.where(has_tokens, room, 0)


def n_blocks(token_budget: int, capacity: int, longest: int) -> int:
  """G: enough blocks for any classes whose room is within the budget.

  Blocks are filled from the longest classes on, so from the smallest k = floor(c / l). A
  block whose classes have one k is full by its room. A block of several k lacks less
  than 1/k of a block, with k that of the first class that no longer fits and begins the
  next block. Each k does so at most once, and the smallest never.

  Args:
    token_budget: own tokens of all classes, in room.
    capacity: c, own tokens that a block has room for.
    longest: own tokens of the longest class at most.
  """
  all_k = {capacity // length for length in range(1, longest + 1)}
  smallest_k = min(all_k)
  lacking = sum(1 / k for k in all_k - {smallest_k})
  full = token_budget / capacity
  return max(1, math.ceil(full + lacking))


class Blocks(NamedTuple):
  """Indices between rows of the blocks and classes; -1 for none."""

  source_R: Int32[Array, " R"]  # class * L + position of each row in the suffix [C * L]
  target_CL: Int32[Array, " C*L"]  # row of each suffix token; the inverse
  position_R: Int32[Array, " R"]  # position among the class's own tokens
  eot_C: Int32[Array, " C"]  # row of each class's EOT
  eot_R: Int32[Array, " R"]  # class of which a row is the EOT; the inverse
  mask: Bool[Array, "G W W"]  # whether a row attends to another


def pack_blocks(
  lengths_C: Int32[Array, " C"], n_suffix: int, n_prefix: int, width: int, number: int
) -> Blocks:
  """Fills blocks with classes, from the longest on.

  Args:
    lengths_C: own tokens of each class; 0 for one that is left out.
    n_suffix: L, the positions of a class's suffix.
    n_prefix: P, the first rows of each block.
    width: W, the rows of a block.
    number: G, blocks that must suffice, see `n_blocks`.
  """
  n_classes = lengths_C.shape[0]
  capacity = width - n_prefix
  order_C = jnp.argsort(-lengths_C).astype(jnp.int32)
  rank_C = jnp.argsort(order_C).astype(jnp.int32)
  # Tokens are numbered along the sorted classes.
  ends_C = jnp.cumsum(lengths_C[order_C])

  def fill(first: Array, _: None) -> tuple[Array, Array]:
    """Moves from a block's first token to that of the next, over all that fit."""
    fits_C = ends_C <= first + capacity
    return jnp.max(jnp.where(fits_C, ends_C, first)), first

  _, first_G = jax.lax.scan(fill, jnp.minimum(ends_C[0], 0), None, number)
  end_G = jnp.append(first_G[1:], ends_C[-1])

  # From rows to classes: the token of each row, and where it is in its class.
  place_W = jnp.arange(width, dtype=jnp.int32) - n_prefix
  token_GxW = first_G[:, None] + place_W
  exists_R = ((place_W >= 0) & (token_GxW < end_G[:, None])).reshape(-1)
  token_R = token_GxW.reshape(-1)
  sorted_R = jnp.searchsorted(ends_C, token_R, side="right").astype(jnp.int32)
  sorted_R = jnp.minimum(sorted_R, n_classes - 1)
  class_R = jnp.where(exists_R, order_C[sorted_R], -1)
  starts_C = ends_C - lengths_C[order_C]
  position_R = jnp.where(exists_R, token_R - starts_C[sorted_R], 0)
  is_eot_R = exists_R & (token_R == ends_C[sorted_R] - 1)

  # From classes to rows: the block of each sorted class, and the row of its first token.
  block_C = jnp.searchsorted(first_G, starts_C, side="right").astype(jnp.int32) - 1
  first_row_C = block_C * width + n_prefix + starts_C - first_G[block_C]
  row_C = first_row_C[rank_C]
  position_L = jnp.arange(n_suffix, dtype=jnp.int32)
  target_CxL = jnp.where(
    position_L < lengths_C[:, None], row_C[:, None] + position_L, -1
  )

  class_GxW = class_R.reshape(number, width)
  same_class_GxWxW = class_GxW[:, :, None] == class_GxW[:, None, :]
  # A row of no class attends to others of none, so that no softmax is empty.
  visible_GxWxW = same_class_GxWxW | (place_W < 0)
  return Blocks(
    source_R=jnp.where(exists_R, class_R * n_suffix + position_R, -1),
    target_CL=target_CxL.reshape(-1),
    position_R=position_R,
    eot_C=jnp.where(lengths_C > 0, row_C + lengths_C - 1, -1),
    eot_R=jnp.where(is_eot_R, class_R, -1),
    mask=visible_GxWxW & np.tri(width, dtype=bool),
  )


def block_attention(
  n_heads: int, query_RxD: Array, key_RxD: Array, value_RxD: Array, mask_GxWxW: Array
) -> Float[Array, "R D"]:
  """Masked softmax attention within each block of W rows, between its projections.

  The softmax is in float32. Residuals of the backward pass are queries, keys, values
  and softmax weights. Rows are the last axis of each head, as TPUs lay them out, so
  that cutting into heads moves nothing.

  Args:
    n_heads: heads, a divisor of D.
    query_RxD: projected queries, scaled by 1 / sqrt(e).
    key_RxD: projected keys.
    value_RxD: projected values.
    mask_GxWxW: `Blocks.mask`, whether a row attends to another of its block.
  """
  # An argument, because the backward pass is traced later, outside of the context that
  # sets the precision.
  precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # made at run time
  return _attention(precision, n_heads, query_RxD, key_RxD, value_RxD, mask_GxWxW)


class _Residuals(NamedTuple):
  """What the backward pass reads."""

  query_GxHxexW: Float[Array, "G H e W"]
  key_GxHxexW: Float[Array, "G H e W"]
  value_GxHxexW: Float[Array, "G H e W"]
  weights_GxHxWxW: Float[Array, "G H W W"]  # the softmax


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
  precision: str | None,
  n_heads: int,
  query_RxD: Array,
  key_RxD: Array,
  value_RxD: Array,
  mask_GxWxW: Array,
) -> Array:
  attended_RxD, _ = _forward(
    precision, n_heads, query_RxD, key_RxD, value_RxD, mask_GxWxW
  )
  return attended_RxD


def _forward(
  precision: str | None,
  n_heads: int,
  query_RxD: Array,
  key_RxD: Array,
  value_RxD: Array,
  mask_GxWxW: Array,
) -> tuple[Array, _Residuals]:
  """A = softmax(Q K^T) and the result A V of each block."""
  del precision  # set by the context of the forward pass
  query = _to_heads(query_RxD, n_heads, mask_GxWxW)
  key = _to_heads(key_RxD, n_heads, mask_GxWxW)
  value = _to_heads(value_RxD, n_heads, mask_GxWxW)
  scores = jnp.einsum("gheq,ghek->ghqk", query, key)
  mask_Gx1xWxW = mask_GxWxW[:, None]
  visible = jnp.where(mask_Gx1xWxW, scores, -jnp.inf).astype(jnp.float32)
  weights = jax.nn.softmax(visible, axis=-1).astype(query.dtype)
  attended = jnp.einsum("ghqk,ghek->gheq", weights, value)
  return _from_heads(attended), _Residuals(query, key, value, weights)


def _backward(
  precision: str | None,
  n_heads: int,
  residuals: _Residuals,
  d_attended_RxD: Array,
) -> tuple[Array, Array, Array, None]:
  """Gradients of queries, keys and values; the mask has none.

  With S = Q K^T, A = softmax(S) and O = A V in each block and head:

    dA = dO V^T,  dS = A (dA - sum A dA),  dQ = dS K,  dK = dS^T Q,  dV = A^T dO.

  Args:
    precision: matmul precision of the forward pass.
    n_heads: heads, a divisor of D.
    residuals: Q, K, V and A of the forward pass.
    d_attended_RxD: dO.
  """
  query, key, value, weights = residuals
  mask_like_GxWxW = weights[:, 0]  # of the mask's shape
  with jax.default_matmul_precision(precision):
    d_attended = _to_heads(d_attended_RxD, n_heads, mask_like_GxWxW)
    d_weights = jnp.einsum("gheq,ghek->ghqk", d_attended, value).astype(jnp.float32)
    # Gradient of a softmax, in float32 as its values.
    weights_f32 = weights.astype(jnp.float32)
    mean = jnp.sum(weights_f32 * d_weights, axis=-1, keepdims=True)
    d_scores = (weights_f32 * (d_weights - mean)).astype(weights.dtype)

    d_query_RxD = _from_heads(jnp.einsum("ghqk,ghek->gheq", d_scores, key))
    d_key_RxD = _from_heads(jnp.einsum("ghqk,gheq->ghek", d_scores, query))
    d_value_RxD = _from_heads(jnp.einsum("ghqk,gheq->ghek", weights, d_attended))
  return d_query_RxD, d_key_RxD, d_value_RxD, None


_attention.defvjp(_forward, _backward)


def _to_heads(
  rows_RxD: Array, n_heads: int, mask_GxWxW: Array
) -> Float[Array, "G H e W"]:
  number, width, _ = mask_GxWxW.shape
  rows_GxDxW = rows_RxD.reshape(number, width, -1).swapaxes(1, 2)
  return rows_GxDxW.reshape(number, n_heads, -1, width)


def _from_heads(rows_GxHxexW: Array) -> Float[Array, "R D"]:
  number, _, _, width = rows_GxHxexW.shape
  rows_GxDxW = rows_GxHxexW.reshape(number, -1, width)
  return rows_GxDxW.swapaxes(1, 2).reshape(number * width, -1)
