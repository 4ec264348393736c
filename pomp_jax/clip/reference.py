"""The reference text tower: HuggingFace FlaxCLIP's own modules, which tests compare the
fast tower with.

Shapes: C classes, P prefix tokens, L own tokens of a class, T positions, D width, E
embedding.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_flax_clip import FlaxCLIPEncoder

from pomp_jax.array_types import Array, Float
from pomp_jax.clip.precision import precision_of


def reference_text_tower(
  config: CLIPTextConfig, dtype: Any = jnp.float32
) -> Callable[..., Float[Array, "C E"]]:
  """Builds a `clip.text.TextTower` that computes all positions of every class.

  Every class has its own copy of the prefix, and padding up to the last position, as in
  the published code.

  Args:
    config: sizes of the text tower.
    dtype: compute type, see `clip.precision`.

  Raises:
    ValueError: by the tower, when it is called with a prompt longer than its positions.
  """
  dtype, products = precision_of(dtype)
  encoder = FlaxCLIPEncoder(config, dtype=dtype)
  final_layer_norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype)

  def features(
    params: Any, prefix_PxD: Any, suffix_CxLxD: Any, lengths_C: Array
  ) -> Array:
    model = params["text_model"]
    position_TxD = model["embeddings"]["position_embedding"]["embedding"]
    tokens_CxTxD = _padded(prefix_PxD, suffix_CxLxD, config.max_position_embeddings)
    tokens_CxTxD += position_TxD
    encoder_outputs = encoder.apply(
      {"params": model["encoder"]}, tokens_CxTxD, return_dict=False
    )
    hidden_CxTxD = encoder_outputs[0]

    n_prefix = prefix_PxD.shape[0]
    eot_Cx1x1 = (n_prefix + lengths_C - 1)[:, None, None]
    eot_CxD = jnp.take_along_axis(hidden_CxTxD, eot_Cx1x1, axis=1)[:, 0]
    normed_CxD: Any = final_layer_norm.apply(
      {"params": model["final_layer_norm"]}, eot_CxD
    )
    kernel_DxE = params["text_projection"]["kernel"].astype(dtype)
    features_CxE = normed_CxD.astype(dtype) @ kernel_DxE
    return features_CxE.astype(jnp.float32)

  return jax.default_matmul_precision(products)(features)


def _padded(prefix_PxD: Any, suffix_CxLxD: Any, n_positions: int) -> Array:
  """Joins the prefix, each class's own tokens and zeros to embeddings [C,T,D].

  Raises:
    ValueError: the prompt has more than T = `n_positions` tokens.
  """
  n_classes, n_suffix, width = suffix_CxLxD.shape
  n_prefix = prefix_PxD.shape[0]
  n_padding = n_positions - n_prefix - n_suffix
  if n_padding < 0:
    raise ValueError(
      f"prompt of {n_prefix} + {n_suffix} tokens: expected at most {n_positions}, the"
      " text tower's positions"
    )
  prefix_CxPxD = jnp.broadcast_to(prefix_PxD, (n_classes, n_prefix, width))
  tokens = jnp.concatenate([prefix_CxPxD, suffix_CxLxD], axis=1)
  return jnp.pad(tokens, ((0, 0), (0, n_padding), (0, 0)))
