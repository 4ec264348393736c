"""Packing of names into blocks for the fast text tower, and attention within a block.

A TPU computes tiles of 128 rows, and a slice that is not aligned to a tile costs more
than a product. Therefore each block of W rows begins with a copy of the prefix, every
class lies within one block, and attention is a plain masked product within the block.
Nothing is sliced or joined between layers.

Blocks are filled with classes from the longest to the shortest (next-fit decreasing). A
block has c = W - P rows for own tokens, so k = floor(c / l) classes of l tokens fit in
it. Such a class takes 1/k of the block, which is c / k tokens: the room of the class.
Token budgets count room.

Shapes: C classes, P prefix tokens, L positions for a class's own tokens, of which it
uses l, G blocks of W rows, R = G * W rows, c own tokens that fit in a block, D width, H
heads of width e.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.array_types import Array, Bool, Float, Int32

# Room is counted in 1/64 of a token, rounded up: sums of integers are exact.
PARTS = 64


def block_width(platform: str, n_positions: int) -> int | None:
  """W for the devices of a platform; None if tokens are packed without blocks.

  A block holds any prompt, because P + L is at most the number of positions. Only TPUs
  have blocks: the copies of the prefix make CPUs slower, and GPUs were not measured.
  """
  if platform != "tpu":
    return None
  return 128 * math.ceil(n_positions / 128)


def room_of(lengths: Any, capacity: int) -> Any:
  """Room that classes take of a token budget, in PARTS of a token.

  A class of l own tokens shares its block with k - 1 other classes of this length, k =
  floor(c / l), and therefore takes c / k >= l tokens. A class of length 0 takes none.

  Args:
    lengths: own tokens l of each class, a NumPy or a JAX array.
    capacity: c, own tokens that fit in a block.
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

  A class of l own tokens has k = floor(c / l). Long classes come first, so k rises from
  block to block. If all classes of a block have the same k, the block holds k of them,
  and their room is the whole block. If the classes differ in k, the block is mixed, and
  some class did not fit and begins the next block. With k of that next class, the mixed
  block lacks less than 1/k of a block. Each k begins a block after a mixed one at most
  once, and the smallest k never does. The last block need not be full.

  Args:
    token_budget: room of all classes together, in tokens.
    capacity: c, own tokens that fit in a block.
    longest: most own tokens that a class may have.
  """
  all_k = {capacity // length for length in range(1, longest + 1)}
  smallest_k = min(all_k)
  lacking = sum(1 / k for k in all_k - {smallest_k})
  full = token_budget / capacity
  return max(1, math.ceil(full + lacking))


class Blocks(NamedTuple):
  """Maps between rows of the blocks and own tokens of the classes; -1 for none."""

  source_R: Int32[Array, " R"]  # class * L + position of each row's token
  target_CL: Int32[Array, " C*L"]  # row of each own token; the inverse of source_R
  position_R: Int32[Array, " R"]  # position of the row's token in its class; 0 for none
  eot_C: Int32[Array, " C"]  # row of each class's EOT
  eot_R: Int32[Array, " R"]  # class whose EOT the row is; the inverse of eot_C
  mask: Bool[Array, "G W W"]  # whether a row attends to another row of its block


def pack_blocks(
  lengths_C: Int32[Array, " C"], n_suffix: int, n_prefix: int, width: int, number: int
) -> Blocks:
  """Fills blocks with classes, from the longest to the shortest.

  Args:
    lengths_C: own tokens of each class; 0 for a class that is left out.
    n_suffix: L, positions for a class's own tokens.
    n_prefix: P; the first P rows of each block are the prefix.
    width: W, number of rows in a block.
    number: G, number of blocks; `n_blocks` returns one that suffices.
  """
  n_classes = lengths_C.shape[0]
  capacity = width - n_prefix
  order_C = jnp.argsort(-lengths_C).astype(jnp.int32)
  rank_C = jnp.argsort(order_C).astype(jnp.int32)
  # Own tokens are numbered through all classes, from the longest class to the shortest.
  # `ends_C`, `starts_C` and `block_C` below have this order.
  ends_C = jnp.cumsum(lengths_C[order_C])

  def fill(first: Array, _: None) -> tuple[Array, Array]:
    """Returns the next block's first token, after all classes that fit in this one."""
    fits_C = ends_C <= first + capacity
    return jnp.max(jnp.where(fits_C, ends_C, first)), first

  # The first token is 0. Computed from `ends_C`, it varies over the devices of a
  # shard_map like the result of `fill`, which scan requires of a carry.
  token_0 = jnp.minimum(ends_C[0], 0)
  _, first_G = jax.lax.scan(fill, token_0, None, number)
  end_G = jnp.append(first_G[1:], ends_C[-1])

  # For each row: the number of its token, the token's class, and its position there.
  place_W = jnp.arange(width, dtype=jnp.int32) - n_prefix
  token_GxW = first_G[:, None] + place_W
  exists_R = ((place_W >= 0) & (token_GxW < end_G[:, None])).reshape(-1)
  token_R = token_GxW.reshape(-1)
  rank_R = jnp.searchsorted(ends_C, token_R, side="right").astype(jnp.int32)
  rank_R = jnp.minimum(rank_R, n_classes - 1)
  class_R = jnp.where(exists_R, order_C[rank_R], -1)
  starts_C = ends_C - lengths_C[order_C]
  position_R = jnp.where(exists_R, token_R - starts_C[rank_R], 0)
  is_eot_R = exists_R & (token_R == ends_C[rank_R] - 1)

  # For each sorted class: its block, and the row of its first token. `row_C` has these
  # rows in the original order of the classes.
  block_C = jnp.searchsorted(first_G, starts_C, side="right").astype(jnp.int32) - 1
  first_row_C = block_C * width + n_prefix + starts_C - first_G[block_C]
  row_C = first_row_C[rank_C]
  position_L = jnp.arange(n_suffix, dtype=jnp.int32)
  target_CxL = jnp.where(
    position_L < lengths_C[:, None], row_C[:, None] + position_L, -1
  )

  class_GxW = class_R.reshape(number, width)
  same_class_GxWxW = class_GxW[:, :, None] == class_GxW[:, None, :]
  # Rows without a class attend to one another, so that no softmax is empty.
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
  """Masked softmax attention within each block of W rows, without the projections.

  The softmax is in float32. Residuals of the backward pass are queries, keys, values
  and softmax weights. Internally the rows are the last axis, as TPUs lay them out, so
  that cutting D into heads moves no data.

  Args:
    n_heads: number of heads, a divisor of D.
    query_RxD: projected queries, scaled by 1 / sqrt(e).
    key_RxD: projected keys.
    value_RxD: projected values.
    mask_GxWxW: `Blocks.mask`, whether a row attends to another row of its block.
  """
  # The precision is an argument, because the backward pass is traced later, outside the
  # context that sets the precision.
  precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # made at run time
  return _attention(precision, n_heads, query_RxD, key_RxD, value_RxD, mask_GxWxW)


class _Residuals(NamedTuple):
  """Arrays of the forward pass that the backward pass reads."""

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
  """A V with A = softmax(Q K^T), in each block."""
  del precision  # the caller's context sets it for the forward pass
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
    n_heads: number of heads, a divisor of D.
    residuals: Q, K, V and A of the forward pass.
    d_attended_RxD: dO.
  """
  query, key, value, weights = residuals
  mask_like_GxWxW = weights[:, 0]  # only its shape is read
  with jax.default_matmul_precision(precision):
    d_attended = _to_heads(d_attended_RxD, n_heads, mask_like_GxWxW)
    d_weights = jnp.einsum("gheq,ghek->ghqk", d_attended, value).astype(jnp.float32)
    # Gradient of the softmax, in float32 like the softmax itself.
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
