"""The frozen text tower, with the prompt put in as embeddings.

One contract for every implementation:

  (params, prefix [P,D], suffix [C,L,D], lengths [C]) -> features [C,E]

Row c of the batch is the sequence prefix, suffix[c, :lengths[c]]; its feature is read at the
last of these positions (EOT), whatever pads after it. Features are not normalised.
Shapes: C classes, P shared prefix tokens, L own tokens of a class, D width, E embedding.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32
import numpy as np
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_flax_clip import FlaxCLIPEncoder

from pomp_jax.clip.load import Clip, Params
from pomp_jax.clip.shared import KEEP_ALL, MemoryPlan, shared_text_tower
from pomp_jax.clip.tokens import tokenize

TEXT_TOWERS = ("shared", "reference")

TextTower = Callable[
  [Params, Float[Array, "P D"], Float[Array, "C L D"], Int32[Array, " C"]], Float[Array, "C E"]
]


def text_tower(
  kind: str,
  config: CLIPTextConfig,
  dtype: DTypeLike = jnp.float32,
  token_budget: int | None = None,
  memory: MemoryPlan = KEEP_ALL,
) -> TextTower:
  """The implementation called `kind`; all of them take FlaxCLIP's parameters as they are.

  Args:
    kind: `shared` (the prefix once, names packed; see `clip.shared`) or `reference`.
    config: the text tower's configuration.
    dtype: compute type of the layers; parameters stay float32.
    token_budget: how many own tokens all rows together may have. `shared` leaves out the rows
      beyond it (`clip.shared.kept_rows` says which); `reference` pads and needs no budget.
    memory: what `shared` keeps for the backward pass.

  Raises:
    ValueError: an unknown kind.
  """
  if kind not in TEXT_TOWERS:
    raise ValueError(f"unknown text tower {kind!r}; accepted: {', '.join(TEXT_TOWERS)}")
  if kind == "shared":
    return shared_text_tower(
      config, dtype, token_budget=token_budget, n_chunks=memory.n_chunks, keep=memory.keep
    )
  return _reference(config, dtype)


def _reference(config: CLIPTextConfig, dtype: DTypeLike) -> TextTower:
  """HuggingFace FlaxCLIP's own modules over the full sequence of positions.

  The oracle that the others are held to: every class carries its own copy of the prefix and
  the padding up to the tower's last position, as the published code does.
  """
  encoder = FlaxCLIPEncoder(config, dtype=dtype)
  final_layer_norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype)

  def features(params, prefix_PxD, suffix_CxLxD, lengths_C):
    n_classes, n_suffix, _ = suffix_CxLxD.shape
    n_prefix = prefix_PxD.shape[0]
    padding = config.max_position_embeddings - n_prefix - n_suffix
    if padding < 0:
      raise ValueError(
        f"a prompt of {n_prefix} + {n_suffix} tokens does not fit the text tower's"
        f" {config.max_position_embeddings} positions"
      )
    model = params["text_model"]
    prefix_CxPxD = jnp.broadcast_to(prefix_PxD, (n_classes, *prefix_PxD.shape))
    tokens_CxTxD = jnp.concatenate([prefix_CxPxD, suffix_CxLxD], axis=1)
    tokens_CxTxD = jnp.pad(tokens_CxTxD, ((0, 0), (0, padding), (0, 0)))
    tokens_CxTxD += model["embeddings"]["position_embedding"]["embedding"]
    hidden_CxTxD = encoder.apply({"params": model["encoder"]}, tokens_CxTxD, return_dict=False)[0]
    eot_C = n_prefix + lengths_C - 1
    eot_CxD = jnp.take_along_axis(hidden_CxTxD, eot_C[:, None, None], axis=1)[:, 0]
    eot_CxD = final_layer_norm.apply({"params": model["final_layer_norm"]}, eot_CxD)
    return project(params, eot_CxD, dtype)

  return features


def project(params: Params, eot_CxD: Float[Array, "C D"], dtype: DTypeLike) -> Float[Array, "C E"]:
  """The text projection (no bias), its result float32 whatever the compute type."""
  kernel_DxE = params["text_projection"]["kernel"].astype(dtype)
  return (eot_CxD.astype(dtype) @ kernel_DxE).astype(jnp.float32)


def token_embeddings(
  params: Params, ids: Int32[Array | np.ndarray, "..."]
) -> Float[Array | np.ndarray, "... D"]:
  """The embeddings of token ids, positions not yet added; NumPy from NumPy, without a device."""
  return params["text_model"]["embeddings"]["token_embedding"]["embedding"][ids]


def sos_embedding(clip: Clip) -> Float[Array, " D"]:
  """The embedding of the start token, which opens every prompt."""
  return jnp.asarray(token_embeddings(clip.params, np.array(clip.tokenizer.bos_token_id, np.int32)))


def encode_texts(
  clip: Clip, texts: Sequence[str], tower: TextTower | None = None
) -> Float[Array, "N E"]:
  """Features of plain sentences: a prompt with no context and the sentence as its name.

  Args:
    clip: the frozen CLIP.
    texts: N sentences, as they are (no "." is added).
    tower: an implementation; `reference` in float32 if not given.

  Returns:
    Features [N, E], not normalised: HuggingFace's `get_text_features`.
  """
  tower = tower or text_tower("reference", clip.config.text_config)
  ids_NxL, lengths_N = tokenize(texts, clip.tokenizer, clip.config.text_config)
  suffix_NxLxD = token_embeddings(clip.params, ids_NxL)
  prefix_1xD = sos_embedding(clip)[None]
  return jax.jit(tower)(clip.text_params, prefix_1xD, suffix_NxLxD, lengths_N)
