"""Attention of the fast text tower, with a custom VJP; and plain attention.

Packed tokens are cut into blocks of W. A token attends to the prefix, its own block and
the one before, masked to its own class. Shapes: P prefix and T packed tokens, R = P +
T, D width, H heads of width e, G blocks of W tokens, S = P + 2 W tokens that a packed
one may attend to.
"""

import functools
from typing import Any, NamedTuple

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
  """Softmax attention of several heads, without a mask; the softmax in float32.

  Args:
    n_heads: heads, a divisor of D.
    query: projected queries.
    key: projected keys.
    value: projected values.
    scale: factor on the queries; 1 / sqrt(D / heads) if None.
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
  """Which tokens a packed token attends to: those of its class, up to itself.

  Packed tokens of no class attend to one another, so that no softmax is empty.
  """

  before: Bool[Array, "G W W"]  # of the block before
  own: Bool[Array, "G W W"]  # of its own block


def masks_of(row_T: Int32[Array, " T"], window: int) -> Masks:
  """Builds the masks from the class of each packed token.

  T is a multiple of the window.
  """
  row_GxW = row_T.reshape(-1, window)
  no_block_1xW = jnp.full((1, window), -1, row_T.dtype)
  before_GxW = jnp.concatenate([no_block_1xW, row_GxW[:-1]])
  own_GxWxW = row_GxW[:, :, None] == row_GxW[:, None, :]
  before_GxWxW = row_GxW[:, :, None] == before_GxW[:, None, :]
  return Masks(before=before_GxWxW, own=own_GxWxW & np.tri(window, dtype=bool))


def packed_attention(
  n_heads: int,
  n_prefix: int,
  query_RxD: Array,
  key_RxD: Array,
  value_RxD: Array,
  masks: Masks,
) -> Float[Array, "R D"]:
  """Attention of the prefix on itself, and of the packed tokens, between projections.

  Residuals of the backward pass are queries, keys, values and softmax weights.

  Args:
    n_heads: heads, a divisor of D.
    n_prefix: P, the first rows.
    query_RxD: projected queries, scaled by 1 / sqrt(e).
    key_RxD: projected keys.
    value_RxD: projected values.
    masks: result of `masks_of`.
  """
  # The backward pass is traced later, outside of the context that sets the precision.
  products = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # made at run time
  return _attention(products, n_heads, n_prefix, query_RxD, key_RxD, value_RxD, masks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(products: str, *inputs: Any) -> Array:
  return _attention_forward(products, *inputs)[0]


def _attention_forward(
  products: str,
  n_heads: int,
  n_prefix: int,
  query_RxD: Array,
  key_RxD: Array,
  value_RxD: Array,
  masks: Masks,
) -> tuple[Array, Any]:
  del products
  window = masks.own.shape[-1]
  query = _to_heads(query_RxD, n_heads, n_prefix, window)
  key = _to_heads(key_RxD, n_heads, n_prefix, window)
  value = _to_heads(value_RxD, n_heads, n_prefix, window)

  # The prefix is causal, and sees no packed token.
  scores_HxPxP = jnp.einsum("hpe,hqe->hpq", query.prefix, key.prefix)
  is_before_PxP = np.tri(n_prefix, dtype=bool)
  prefix_HxPxP = _softmax(jnp.where(is_before_PxP, scores_HxPxP, -jnp.inf))

  scores = _products(query, key)
  before_HxGxWxW = jnp.where(masks.before, scores.before, -jnp.inf)
  own_HxGxWxW = jnp.where(masks.own, scores.own, -jnp.inf)
  weights_HxTxS = _softmax(_joined(_Parts(scores.prefix, before_HxGxWxW, own_HxGxWxW)))
  attended_RxD = _from_heads(
    prefix_HxPxP @ value.prefix, _weighted(weights_HxTxS, value)
  )
  return attended_RxD, (query, key, value, prefix_HxPxP, weights_HxTxS)


def _gradients(
  n_heads: int, n_prefix: int, residuals: Any, gradient_RxD: Array
) -> tuple:
  query, key, value, prefix_HxPxP, weights_HxTxS = residuals
  window = query.packed.shape[2]
  gradient = _to_heads(gradient_RxD, n_heads, n_prefix, window)

  d_weights_HxPxP = jnp.einsum("hpe,hqe->hpq", gradient.prefix, value.prefix)
  d_prefix_HxPxP = _softmax_backward(prefix_HxPxP, d_weights_HxPxP)
  d_weights_HxTxS = _joined(_products(gradient, value))
  d_scores_HxTxS = _softmax_backward(weights_HxTxS, d_weights_HxTxS)

  def transposed(prefix_HxPxP: Array, weights_HxTxS: Array, rows: _Heads) -> Array:
    """Gradients of keys or values: the transposed weights times rows."""
    weights = _split(weights_HxTxS, n_prefix, window)
    prefix_HxPxe = jnp.einsum("hpq,hpe->hqe", prefix_HxPxP, rows.prefix)
    prefix_HxPxe += jnp.einsum("htp,hte->hpe", weights.prefix, _flat(rows.packed))
    own_HxGxWxe = jnp.einsum("hgwv,hgwe->hgve", weights.own, rows.packed)
    # What a block gives to the one before it is added there: moved up by one.
    before_HxGxWxe = jnp.einsum("hgwv,hgwe->hgve", weights.before, rows.packed)
    after_HxGxWxe = jnp.pad(before_HxGxWxe[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    return _from_heads(prefix_HxPxe, _flat(own_HxGxWxe + after_HxGxWxe))

  d_query_RxD = _from_heads(d_prefix_HxPxP @ key.prefix, _weighted(d_scores_HxTxS, key))
  d_key_RxD = transposed(d_prefix_HxPxP, d_scores_HxTxS, query)
  d_value_RxD = transposed(prefix_HxPxP, weights_HxTxS, gradient)
  return d_query_RxD, d_key_RxD, d_value_RxD, None


_attention.defvjp(
  _attention_forward,
  lambda products, *inputs: jax.default_matmul_precision(products)(_gradients)(*inputs),
)


class _Heads(NamedTuple):
  """Rows cut into heads, and the packed ones into blocks."""

  prefix: Float[Array, "H P e"]
  packed: Float[Array, "H G W e"]


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


def _before(rows_HxGxWxe: Array) -> Array:
  """The block before each block; zeros before the first."""
  return jnp.pad(rows_HxGxWxe[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))


def _flat(rows_HxGxWxX: Array) -> Array:
  """Blocks of tokens as one row of tokens, [H, G, W, ..] to [H, T, ..]."""
  n_heads, n_blocks, window, last = rows_HxGxWxX.shape
  return rows_HxGxWxX.reshape(n_heads, n_blocks * window, last)


class _Parts(NamedTuple):
  """Numbers of packed tokens by what they attend to."""

  prefix: Float[Array, "H T P"]
  before: Float[Array, "H G W W"]  # the block before
  own: Float[Array, "H G W W"]  # the own block


def _products(left: _Heads, right: _Heads) -> _Parts:
  """Products of the packed rows of one with the rows of another."""
  return _Parts(
    prefix=jnp.einsum("hte,hpe->htp", _flat(left.packed), right.prefix),
    before=jnp.einsum("hgwe,hgve->hgwv", left.packed, _before(right.packed)),
    own=jnp.einsum("hgwe,hgve->hgwv", left.packed, right.packed),
  )


def _joined(parts: _Parts) -> Float[Array, "H T S"]:
  """The parts side by side, for one softmax over all; the inverse of `_split`."""
  return jnp.concatenate([parts.prefix, _flat(parts.before), _flat(parts.own)], axis=-1)


def _weighted(weights_HxTxS: Array, rows: _Heads) -> Float[Array, "H T e"]:
  """Sums of rows by the weights of the packed tokens."""
  n_prefix = rows.prefix.shape[1]
  window = rows.packed.shape[2]
  weights = _split(weights_HxTxS, n_prefix, window)
  of_prefix = jnp.einsum("htp,hpe->hte", weights.prefix, rows.prefix)
  of_own = jnp.einsum("hgwv,hgve->hgwe", weights.own, rows.packed)
  total = of_prefix + _flat(of_own)
  of_before = jnp.einsum("hgwv,hgve->hgwe", weights.before, _before(rows.packed))
  return total + _flat(of_before)


def _split(weights_HxTxS: Array, n_prefix: int, window: int) -> _Parts:
  """Cuts the weights of packed tokens by what they attend to."""
  n_heads, n_tokens, _ = weights_HxTxS.shape
  blocks = (n_heads, n_tokens // window, window, window)
  n_before = n_prefix + window
  return _Parts(
    prefix=weights_HxTxS[..., :n_prefix],
    before=weights_HxTxS[..., n_prefix:n_before].reshape(blocks),
    own=weights_HxTxS[..., n_before:].reshape(blocks),
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
