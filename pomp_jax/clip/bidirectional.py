"""The text tower of SigLIP and CLIPA: every position attends to all, and the last is the feature.

Neither a shared prefix nor dropped padding is exact here: a class has all 64 or 32 positions, where
the packed tower computes 4 to 6. The contract is that of `clip.text` for classes whose own tokens,
padding included, reach the last position.

Shapes: C classes, P prefix tokens, L own tokens of a class, S = P + L positions, D width, E
embedding.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pomp_jax.array_types import Array, Float
from pomp_jax.clip.layers import attention
from pomp_jax.clip.packed import Tower, in_chunks, layer, layer_norm
from pomp_jax.clip.precision import precision_of, with_products


def bidirectional_text_tower(
  config: Any, dtype: Any = jnp.float32, *, n_chunks: int = 1, remat: str = "none"
) -> Callable[..., Float[Array, "C E"]]:
  """Builds the tower of `clip.text.TextTower` for classes that fill all positions.

  Args: see `clip.packed.shared_text_tower`.

  Raises:
    ValueError: in a call, classes of another length than the positions less the prefix, or MaPLe's
      context of deeper layers.
  """
  dtype, products = precision_of(dtype)

  def features(
    params: Any, prefix_PxD: Any, suffix_CxLxD: Any, lengths_C: Array, deep: Any = None
  ) -> Array:
    n_prefix, n_suffix = prefix_PxD.shape[0], suffix_CxLxD.shape[1]
    if deep is not None or n_prefix + n_suffix != config.max_position_embeddings:
      raise ValueError(
        f"prompt of {n_prefix} + {n_suffix} tokens: expected {config.max_position_embeddings}, all"
        " positions of the text tower, and no context of deeper layers"
      )
    compute = functools.partial(_features, Tower(config, dtype, remat, params), prefix_PxD)
    if n_chunks > 1:
      return in_chunks(compute, remat, n_chunks, suffix_CxLxD, lengths_C)
    return compute(suffix_CxLxD, lengths_C)

  return with_products(products, features)


def _features(
  tower: Tower, prefix_PxD: Any, suffix_CxLxD: Any, lengths_C: Array
) -> Float[Array, "C E"]:
  del lengths_C
  config, params = tower.config, tower.params
  n_classes, _, width = suffix_CxLxD.shape
  model, n_positions = params["text_model"], config.max_position_embeddings
  prefix_CxPxD = jnp.broadcast_to(prefix_PxD, (n_classes, *prefix_PxD.shape))
  hidden_CxSxD = jnp.concatenate([prefix_CxPxD, suffix_CxLxD], axis=1)
  hidden_CxSxD += jnp.asarray(model["embeddings"]["position_embedding"]["embedding"])
  hidden = hidden_CxSxD.reshape(-1, width).astype(jnp.float32)

  def attend(query: Array, key: Array, value: Array) -> Array:
    split = lambda rows: rows.reshape(n_classes, n_positions, width)
    attended = attention(config.num_attention_heads, split(query), split(key), split(value), 1.0)
    return attended.reshape(-1, width)

  for i in range(config.num_hidden_layers):
    # Only the last position of the last layer's output is read.
    last = i == config.num_hidden_layers - 1
    select = (lambda rows: rows[n_positions - 1 :: n_positions]) if last else (lambda rows: rows)
    weights = model["encoder"]["layers"][str(i)]
    compute = functools.partial(layer, tower, weights, attend=attend, select=select)
    hidden = (jax.checkpoint(compute) if tower.remat == "layers" else compute)(hidden)
  hidden = layer_norm(config.layer_norm_eps, tower.dtype, hidden, **model["final_layer_norm"])
  projection = params["text_projection"]
  features = hidden @ projection["kernel"].astype(tower.dtype)
  return (features + projection.get("bias", 0)).astype(jnp.float32)
