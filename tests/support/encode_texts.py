"""Plain sentences through a text tower, to compare with HuggingFace's `get_text_features`."""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float

from pomp_jax.clip.load import Clip
from pomp_jax.clip.reference import reference_text_tower
from pomp_jax.clip.text import TextTower, token_embeddings
from pomp_jax.clip.tokens import tokenize


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
  tower = tower or reference_text_tower(clip.config.text_config)
  ids_NxL, lengths_N = tokenize(texts, clip.tokenizer, clip.config.text_config)
  suffix_NxLxD = token_embeddings(clip.params, ids_NxL)
  prefix_1xD = clip.sos_embedding[None]
  return jax.jit(tower)(clip.text_params, prefix_1xD, suffix_NxLxD, lengths_N)
