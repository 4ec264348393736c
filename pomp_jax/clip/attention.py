"""Attention of the fast text tower, with a custom VJP; and plain attention.

Packed tokens are cut into blocks of W. A packed token attends to the prefix, to its own
block and to the block before, masked to its own class. Shapes: P prefix and T packed
tokens, R = P + T rows, D width, H heads of width e, G blocks of W tokens, S = P + 2 W
tokens that a packed token may attend to. In plain `attention`: B sequences, Q queries,
T keys.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.array_types import Array, Bool, Float, Int32


def attention(
  n_heads: int,
  query: Float[Array, "B Q D"],
  key: Float[Array, "B T D"],
  value: Float[Array, "B T D"],
  scale: float | None = None,
) -> Float[Array, "B Q D"]:
  """Softmax attention of several heads, without a mask. The softmax is in float32.

  Args:
    n_heads: number of heads, a divisor of D.
    query: projected queries.
    key: projected keys.
    value: projected values.
    scale: factor on the queries; 1 / sqrt(D / n_heads) if None.
  """
  split = lambda rows: rows.reshape(*rows.shape[:2], n_heads, -1)
  query = split(query)
  key = split(key)
  value = split(value)
  if scale is None:
    scale = query.shape[-1] ** -0.5
  scores = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key)
  weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(value.dtype)
  attended = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
  return attended.reshape(*attended.shape[:2], -1)


class Masks(NamedTuple):
  """Whether a packed token attends to another: tokens of its own class, up to itself.

  Packed tokens without a class attend to one another, so that no softmax is empty.
  """

  previous: Bool[Array, "G W W"]  # keys in the block before the token's
  current: Bool[Array, "G W W"]  # keys in the token's own block


def masks_of(row_T: Int32[Array, " T"], window: int) -> Masks:
  """Builds the masks from the class of each packed token.

  Args:
    row_T: class of each packed token; T is a multiple of the window.
    window: W, number of tokens in a block.
  """
  row_GxW = row_T.reshape(-1, window)
  no_block_1xW = jnp.full((1, window), -1, row_T.dtype)
  previous_GxW = jnp.concatenate([no_block_1xW, row_GxW[:-1]])
  current_GxWxW = row_GxW[:, :, None] == row_GxW[:, None, :]
  previous_GxWxW = row_GxW[:, :, None] == previous_GxW[:, None, :]
  is_causal_WxW = np.tri(window, dtype=bool)
  return Masks(previous=previous_GxWxW, current=current_GxWxW & is_causal_WxW)


def packed_attention(
  n_heads: int,
  n_prefix: int,
  query_RxD: Array,
  key_RxD: Array,
  value_RxD: Array,
  masks: Masks,
) -> Float[Array, "R D"]:
  """Causal softmax attention of the prefix and of the packed tokens.

  The prefix attends to itself. A packed token attends to the prefix and, as the masks
  allow, to its own block and the block before. The projections of queries, keys, values
  and results are not included. Residuals of the backward pass are queries, keys, values
  and softmax weights.

  Args:
    n_heads: number of heads, a divisor of D.
    n_prefix: P; the first P rows are the prefix.
    query_RxD: projected queries, scaled by 1 / sqrt(e).
    key_RxD: projected keys.
    value_RxD: projected values.
    masks: result of `masks_of`.
  """
  # The precision is an argument, because the backward pass is traced later, outside the
  # context that sets the precision.
  precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # made at run time
  return _attention(precision, n_heads, n_prefix, query_RxD, key_RxD, value_RxD, masks)


class _Heads(NamedTuple):
  """Rows cut into heads; the packed rows are also cut into blocks."""

  prefix: Float[Array, "H P e"]
  packed: Float[Array, "H G W e"]


class _Parts(NamedTuple):
  """Scores or weights of packed tokens, by where their keys are."""

  prefix: Float[Array, "H T P"]
  previous: Float[Array, "H G W W"]  # the block before
  current: Float[Array, "H G W W"]  # the token's own block


class _Residuals(NamedTuple):
  """Arrays of the forward pass that the backward pass reads."""

  query: _Heads
  key: _Heads
  value: _Heads
  prefix_weights_HxPxP: Float[Array, "H P P"]  # softmax of the prefix
  weights_HxTxS: Float[Array, "H T S"]  # softmax of the packed tokens


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(
  precision: str | None,
  n_heads: int,
  n_prefix: int,
  query_RxD: Array,
  key_RxD: Array,
  value_RxD: Array,
  masks: Masks,
) -> Array:
  attended_RxD, _ = _attention_forward(
    precision, n_heads, n_prefix, query_RxD, key_RxD, value_RxD, masks
  )
  return attended_RxD


def _attention_forward(
  precision: str | None,
  n_heads: int,
  n_prefix: int,
  query_RxD: Array,
  key_RxD: Array,
  value_RxD: Array,
  masks: Masks,
) -> tuple[Array, _Residuals]:
  """A V with A = softmax(Q K^T), for the prefix and for the packed tokens."""
  del precision  # the caller's context sets it for the forward pass
  window = masks.current.shape[-1]
  query = _to_heads(query_RxD, n_heads, n_prefix, window)
  key = _to_heads(key_RxD, n_heads, n_prefix, window)
  value = _to_heads(value_RxD, n_heads, n_prefix, window)

  # The prefix is causal, and attends to no packed token.
  scores_HxPxP = jnp.einsum("hpe,hqe->hpq", query.prefix, key.prefix)
  is_causal_PxP = np.tri(n_prefix, dtype=bool)
  prefix_weights_HxPxP = _softmax(jnp.where(is_causal_PxP, scores_HxPxP, -jnp.inf))

  # A packed token has one softmax over the prefix and both blocks.
  scores = _products(query, key)
  previous_HxGxWxW = jnp.where(masks.previous, scores.previous, -jnp.inf)
  current_HxGxWxW = jnp.where(masks.current, scores.current, -jnp.inf)
  scores_HxTxS = _joined(_Parts(scores.prefix, previous_HxGxWxW, current_HxGxWxW))
  weights_HxTxS = _softmax(scores_HxTxS)

  prefix_HxPxe = prefix_weights_HxPxP @ value.prefix
  packed_HxTxe = _weighted(weights_HxTxS, value)
  residuals = _Residuals(query, key, value, prefix_weights_HxPxP, weights_HxTxS)
  return _from_heads(prefix_HxPxe, packed_HxTxe), residuals


def _attention_backward(
  precision: str | None,
  n_heads: int,
  n_prefix: int,
  residuals: _Residuals,
  d_attended_RxD: Array,
) -> tuple[Array, Array, Array, None]:
  """Gradients of queries, keys and values; the masks have none.

  With S = Q K^T, A = softmax(S) and O = A V, for the prefix and for the packed tokens:

    dA = dO V^T,  dS = A (dA - sum A dA),  dQ = dS K,  dK = dS^T Q,  dV = A^T dO.

  Args:
    precision: matmul precision of the forward pass.
    n_heads: number of heads, a divisor of D.
    n_prefix: P; the first P rows are the prefix.
    residuals: Q, K, V and A of the forward pass.
    d_attended_RxD: dO.
  """
  query, key, value, prefix_weights_HxPxP, weights_HxTxS = residuals
  window = query.packed.shape[2]
  with jax.default_matmul_precision(precision):
    d_attended = _to_heads(d_attended_RxD, n_heads, n_prefix, window)

    d_weights_HxPxP = jnp.einsum("hpe,hqe->hpq", d_attended.prefix, value.prefix)
    d_scores_HxPxP = _softmax_backward(prefix_weights_HxPxP, d_weights_HxPxP)
    d_weights_HxTxS = _joined(_products(d_attended, value))
    d_scores_HxTxS = _softmax_backward(weights_HxTxS, d_weights_HxTxS)

    d_prefix_HxPxe = d_scores_HxPxP @ key.prefix
    d_packed_HxTxe = _weighted(d_scores_HxTxS, key)
    d_query_RxD = _from_heads(d_prefix_HxPxe, d_packed_HxTxe)
    d_key_RxD = _transposed_weighted(d_scores_HxPxP, d_scores_HxTxS, query)
    d_value_RxD = _transposed_weighted(prefix_weights_HxPxP, weights_HxTxS, d_attended)
  return d_query_RxD, d_key_RxD, d_value_RxD, None


def _transposed_weighted(
  prefix_weights_HxPxP: Array, weights_HxTxS: Array, rows: _Heads
) -> Float[Array, "R D"]:
  """Sums rows for each key: over all tokens that attend to the key, with their weights.

  These are the products dS^T Q and A^T dO of the backward pass.

  Args:
    prefix_weights_HxPxP: weights (A or dS) of the prefix on itself.
    weights_HxTxS: weights (A or dS) of the packed tokens.
    rows: rows that are summed, Q or dO.
  """
  n_prefix = prefix_weights_HxPxP.shape[1]
  window = rows.packed.shape[2]
  weights = _split(weights_HxTxS, n_prefix, window)

  # The prefix itself and all packed tokens attend to the prefix.
  prefix_HxPxe = jnp.einsum("hpq,hpe->hqe", prefix_weights_HxPxP, rows.prefix)
  prefix_HxPxe += jnp.einsum("htp,hte->hpe", weights.prefix, _flat(rows.packed))

  # A block itself and the next block attend to a block. Move the sums over the next
  # block up by one, to the block that they belong to.
  from_current_HxGxWxe = jnp.einsum("hgwv,hgwe->hgve", weights.current, rows.packed)
  to_previous_HxGxWxe = jnp.einsum("hgwv,hgwe->hgve", weights.previous, rows.packed)
  one_block_up = ((0, 0), (0, 1), (0, 0), (0, 0))
  from_next_HxGxWxe = jnp.pad(to_previous_HxGxWxe[:, 1:], one_block_up)
  return _from_heads(prefix_HxPxe, _flat(from_current_HxGxWxe + from_next_HxGxWxe))


_attention.defvjp(_attention_forward, _attention_backward)


def _to_heads(rows_RxD: Array, n_heads: int, n_prefix: int, window: int) -> _Heads:
  def heads(rows: Array) -> Array:
    return rows.reshape(rows.shape[0], n_heads, -1).swapaxes(0, 1)

  packed_HxTxe = heads(rows_RxD[n_prefix:])
  n_tokens, head_width = packed_HxTxe.shape[1:]
  blocks = (n_heads, n_tokens // window, window, head_width)
  return _Heads(heads(rows_RxD[:n_prefix]), packed_HxTxe.reshape(blocks))


def _from_heads(prefix_HxPxe: Array, packed_HxTxe: Array) -> Float[Array, "R D"]:
  rows_HxRxe = jnp.concatenate([prefix_HxPxe, packed_HxTxe], axis=1)
  return rows_HxRxe.swapaxes(0, 1).reshape(rows_HxRxe.shape[1], -1)


def _previous(rows_HxGxWxe: Array) -> Array:
  """The block before each block; zeros before the first block."""
  return jnp.pad(rows_HxGxWxe[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))


def _flat(rows_HxGxWxX: Array) -> Array:
  """Joins the blocks into one row of tokens, [H, G, W, ..] to [H, T, ..]."""
  n_heads, n_blocks, window, last = rows_HxGxWxX.shape
  return rows_HxGxWxX.reshape(n_heads, n_blocks * window, last)


def _products(left: _Heads, right: _Heads) -> _Parts:
  """Scalar products of each packed row of `left` with the rows of `right` that it may
  attend to."""
  return _Parts(
    prefix=jnp.einsum("hte,hpe->htp", _flat(left.packed), right.prefix),
    previous=jnp.einsum("hgwe,hgve->hgwv", left.packed, _previous(right.packed)),
    current=jnp.einsum("hgwe,hgve->hgwv", left.packed, right.packed),
  )


def _joined(parts: _Parts) -> Float[Array, "H T S"]:
  """Joins the parts along the keys, for one softmax over all; inverse of `_split`."""
  return jnp.concatenate(
    [parts.prefix, _flat(parts.previous), _flat(parts.current)], axis=-1
  )


def _weighted(weights_HxTxS: Array, rows: _Heads) -> Float[Array, "H T e"]:
  """Sums rows for each packed token, with the token's weights."""
  n_prefix = rows.prefix.shape[1]
  window = rows.packed.shape[2]
  weights = _split(weights_HxTxS, n_prefix, window)
  from_prefix_HxTxe = jnp.einsum("htp,hpe->hte", weights.prefix, rows.prefix)
  from_current_HxGxWxe = jnp.einsum("hgwv,hgve->hgwe", weights.current, rows.packed)
  sums_HxTxe = from_prefix_HxTxe + _flat(from_current_HxGxWxe)
  previous_HxGxWxe = _previous(rows.packed)
  from_previous_HxGxWxe = jnp.einsum(
    "hgwv,hgve->hgwe", weights.previous, previous_HxGxWxe
  )
  return sums_HxTxe + _flat(from_previous_HxGxWxe)


def _split(weights_HxTxS: Array, n_prefix: int, window: int) -> _Parts:
  """Cuts the weights of packed tokens into parts by where the keys are; inverse of
  `_joined`."""
  n_heads, n_tokens, _ = weights_HxTxS.shape
  blocks = (n_heads, n_tokens // window, window, window)
  current_start = n_prefix + window
  return _Parts(
    prefix=weights_HxTxS[..., :n_prefix],
    previous=weights_HxTxS[..., n_prefix:current_start].reshape(blocks),
    current=weights_HxTxS[..., current_start:].reshape(blocks),
  )


def _softmax(scores: Array) -> Array:
  """Softmax over the last axis, in float32 for any compute type."""
  return jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(scores.dtype)


def _softmax_backward(weights: Array, gradient: Array) -> Array:
  """Gradient of the scores, w (g - sum w g), from the weights w and their gradient g."""
  weights_f32 = weights.astype(jnp.float32)
  gradient = gradient.astype(jnp.float32)
  mean = jnp.sum(weights_f32 * gradient, axis=-1, keepdims=True)
  return (weights_f32 * (gradient - mean)).astype(weights.dtype)
