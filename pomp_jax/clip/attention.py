"""Attention of the fast text tower with a custom VJP: of prefix and packed tokens; and
plain one.

Packed tokens are cut into blocks of W. A token attends to the prefix, its own block and
the one before, masked to its own class. Shapes: P prefix and T packed tokens, R = P +
T, D width, H heads of width e, G blocks of W tokens.
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

  `scale` multiplies the queries; 1 / sqrt(D / heads) if None.
  """
  split = lambda rows: rows.reshape(*rows.shape[:2], n_heads, -1)
  query, key, value = split(query), split(key), split(value)
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  scores = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key)
  weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(value.dtype)
  attended = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
  return attended.reshape(*attended.shape[:2], -1)


class Masks(NamedTuple):
  """Masks of a packed token's class, up to the token itself: of the block before, and
  of its own.

  Packed tokens of no class attend to one another, so that no softmax is empty.
  """

  before: Bool[Array, "G W W"]
  own: Bool[Array, "G W W"]


def masks_of(row_T: Int32[Array, " T"], window: int) -> Masks:
  """Builds the masks from the class of each packed token; T is a multiple of the
  window."""
  row_GxW = row_T.reshape(-1, window)
  before_GxW = jnp.concatenate([jnp.full((1, window), -1, row_T.dtype), row_GxW[:-1]])
  own_GxWxW = row_GxW[:, :, None] == row_GxW[:, None, :]
  return Masks(
    row_GxW[:, :, None] == before_GxW[:, None, :],
    own_GxWxW & np.tri(window, dtype=bool),
  )


def packed_attention(
  n_heads: int,
  n_prefix: int,
  query_RxD: Array,
  key_RxD: Array,
  value_RxD: Array,
  masks: Masks,
) -> Float[Array, "R D"]:
  """Attention between its projections: of the prefix on itself, and of the packed
  tokens.

  Queries are scaled by 1 / sqrt(e). Residuals: queries, keys, values and softmax
  weights.
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
  query, key, value = (
    _to_heads(rows, n_heads, n_prefix, window)
    for rows in (query_RxD, key_RxD, value_RxD)
  )
  scores_HxPxP = jnp.einsum("hpe,hqe->hpq", query.prefix, key.prefix)
  prefix_HxPxP = _softmax(
    jnp.where(np.tri(n_prefix, dtype=bool), scores_HxPxP, -jnp.inf)
  )
  shared, before, own = _products(query, key)
  before, own = (
    jnp.where(mask, scores, -jnp.inf)
    for mask, scores in zip(masks, (before, own), strict=True)
  )
  weights_HxTxS = _softmax(
    jnp.concatenate([shared, _flat(before), _flat(own)], axis=-1)
  )
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

  d_prefix_HxPxP = _softmax_backward(
    prefix_HxPxP, jnp.einsum("hpe,hqe->hpq", gradient.prefix, value.prefix)
  )
  shared, before, own = _products(gradient, value)
  d_scores_HxTxS = _softmax_backward(
    weights_HxTxS, jnp.concatenate([shared, _flat(before), _flat(own)], axis=-1)
  )

  def transposed(prefix_HxPxP: Array, weights_HxTxS: Array, rows: _Heads) -> Array:
    """Gradients of keys or values: weights^T rows, of the prefix and of the packed
    tokens."""
    shared, before, own = _split(weights_HxTxS, n_prefix, window)
    prefix_HxPxe = jnp.einsum("hpq,hpe->hqe", prefix_HxPxP, rows.prefix)
    prefix_HxPxe += jnp.einsum("htp,hte->hpe", shared, _flat(rows.packed))
    own_HxGxWxe = jnp.einsum("hgwv,hgwe->hgve", own, rows.packed)
    before_HxGxWxe = jnp.einsum("hgwv,hgwe->hgve", before, rows.packed)
    after_HxGxWxe = jnp.pad(before_HxGxWxe[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    return _from_heads(prefix_HxPxe, _flat(own_HxGxWxe + after_HxGxWxe))

  return (
    _from_heads(d_prefix_HxPxP @ key.prefix, _weighted(d_scores_HxTxS, key)),
    transposed(d_prefix_HxPxP, d_scores_HxTxS, query),
    transposed(prefix_HxPxP, weights_HxTxS, gradient),
    None,
  )


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


def _products(left: _Heads, right: _Heads) -> tuple[Array, Array, Array]:
  """Of packed rows with the prefix [H, T, P], the block before and the own one [H,
  G, W, W]."""
  return (
    jnp.einsum("hte,hpe->htp", _flat(left.packed), right.prefix),
    jnp.einsum("hgwe,hgve->hgwv", left.packed, _before(right.packed)),
    jnp.einsum("hgwe,hgve->hgwv", left.packed, right.packed),
  )


def _weighted(weights_HxTxS: Array, rows: _Heads) -> Float[Array, "H T e"]:
  """Sums of rows by the weights of the packed tokens."""
  shared, before, own = _split(
    weights_HxTxS, rows.prefix.shape[1], rows.packed.shape[2]
  )
  return (
    jnp.einsum("htp,hpe->hte", shared, rows.prefix)
    + _flat(jnp.einsum("hgwv,hgve->hgwe", own, rows.packed))
    + _flat(jnp.einsum("hgwv,hgve->hgwe", before, _before(rows.packed)))
  )


def _split(
  weights_HxTxS: Array, n_prefix: int, window: int
) -> tuple[Array, Array, Array]:
  """Weights on the prefix [H, T, P], on the block before and on the own one [H, G,
  W, W]."""
  n_heads, n_tokens, _ = weights_HxTxS.shape
  blocks = (n_heads, n_tokens // window, window, window)
  return (
    weights_HxTxS[..., :n_prefix],
    weights_HxTxS[..., n_prefix : n_prefix + window].reshape(blocks),
    weights_HxTxS[..., n_prefix + window :].reshape(blocks),
  )


def _softmax(scores: Array) -> Array:
  """Softmax over the last axis, in float32 for any compute type."""
  return jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(scores.dtype)


def _softmax_backward(weights: Array, gradient: Array) -> Array:
  weights_f32, gradient = weights.astype(jnp.float32), gradient.astype(jnp.float32)
  mean = jnp.sum(weights_f32 * gradient, axis=-1, keepdims=True)
  return (weights_f32 * (gradient - mean)).astype(weights.dtype)
