"""The reference text tower: HuggingFace FlaxCLIP's own modules, the oracle of the fast
one.

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
  """Builds the tower of `clip.text.TextTower` over the full sequence of positions.

  Every class has its copy of the prefix and padding to the last position, as in the
  published code.
  """
  dtype, products = precision_of(dtype)
  encoder = FlaxCLIPEncoder(config, dtype=dtype)
  final_layer_norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype)

  def features(
    params: Any, prefix_PxD: Any, suffix_CxLxD: Any, lengths_C: Array
  ) -> Array:
    n_classes, n_suffix, _ = suffix_CxLxD.shape
    n_prefix = prefix_PxD.shape[0]
    padding = config.max_position_embeddings - n_prefix - n_suffix
    if padding < 0:
      raise ValueError(
        f"prompt of {n_prefix} + {n_suffix} tokens: expected at most"
        f" {config.max_position_embeddings}, the text tower's positions"
      )
    model = params["text_model"]
    prefix_CxPxD = jnp.broadcast_to(prefix_PxD, (n_classes, *prefix_PxD.shape))
    tokens_CxTxD = jnp.concatenate([prefix_CxPxD, suffix_CxLxD], axis=1)
    tokens_CxTxD = jnp.pad(tokens_CxTxD, ((0, 0), (0, padding), (0, 0)))
    tokens_CxTxD += model["embeddings"]["position_embedding"]["embedding"]
    hidden_CxTxD = encoder.apply(
      {"params": model["encoder"]}, tokens_CxTxD, return_dict=False
    )[0]
    eot_C = n_prefix + lengths_C - 1
    eot_CxD = jnp.take_along_axis(hidden_CxTxD, eot_C[:, None, None], axis=1)[:, 0]
    normed_CxD: Any = final_layer_norm.apply(
      {"params": model["final_layer_norm"]}, eot_CxD
    )
    kernel_DxE = params["text_projection"]["kernel"].astype(dtype)
    return (normed_CxD.astype(dtype) @ kernel_DxE).astype(jnp.float32)

  return jax.default_matmul_precision(products)(features)
