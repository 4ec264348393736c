"""The frozen text tower by name, its contract, and the memory that its backward pass may take.

  (params, prefix [P,D], suffix [C,L,D], lengths [C]) -> features [C,E]

Row c is the sequence prefix, suffix[c, :lengths[c]]. Its feature is read at the last of these
positions (EOT), and padding after it has no effect. Features are not normalised.
Shapes: C classes, P shared prefix tokens, L own tokens of a class, T own tokens of all rows, M
context vectors, J layers with a context, D width, E embedding.
"""

import importlib.util
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from pomp_jax.array_types import Array, Float, Int32
from pomp_jax.clip.bidirectional import bidirectional_text_tower
from pomp_jax.clip.packed import shared_text_tower
from pomp_jax.errors import InputError

TEXT_TOWERS = ("shared", "reference")
WITHOUT_FLAX = "'shared', or FlaxCLIP (pip install 'transformers<5')"


@runtime_checkable
class TextTower(Protocol):
  """A text tower, whichever its implementation."""

  def __call__(
    self,
    params: Any,
    prefix_PxD: Float[Array, "P D"],
    suffix_CxLxD: Float[Array, "C L D"],
    lengths_C: Int32[Array, " C"],
    deep_JxMxD: Float[Array, "J-1 M D"] | None = None,
    /,
  ) -> Float[Array, "C E"]:
    """Features of C sequences, float32; `deep_JxMxD` is MaPLe's, and only `shared` takes it."""


class MemoryPlan(NamedTuple):
  """Parts that the rows are computed in, one after the other, and one of `packed.REMAT`."""

  n_chunks: int = 1
  remat: str = "none"


def text_tower(
  kind: str,
  config: Any,
  dtype: Any = jnp.float32,
  token_budget: int | None = None,
  memory: MemoryPlan | None = None,
) -> TextTower:
  """Builds the implementation called `kind`; each takes FlaxCLIP's parameters as they are.

  `shared` computes the prefix once and packs names, see `clip.packed`. `reference` is HuggingFace's
  modules over all positions, see `clip.reference`: InputError where transformers has none (5 and
  newer). `config` is HuggingFace's, or an object with its fields. `dtype` is the compute type, see
  `clip.precision`; parameters stay float32. `token_budget` is T, the most own tokens of all rows:
  `shared` drops the rows beyond it (`clip.packed.kept_rows`), `reference` ignores it. `memory` has
  chunks and rematerialisation of `shared`, neither if None. A bidirectional configuration has the
  tower of `clip.bidirectional`.
  """
  n_chunks, remat = memory or MemoryPlan()
  if getattr(config, "bidirectional", False):
    if kind != "shared":
      raise InputError(f"text_tower: got {kind!r}, expected 'shared': this CLIP is no FlaxCLIP")
    return bidirectional_text_tower(config, dtype, n_chunks=n_chunks, remat=remat)
  if kind == "shared":
    return shared_text_tower(
      config, dtype, token_budget=token_budget, n_chunks=n_chunks, remat=remat
    )
  if not has_flax_clip():
    raise InputError(f"text_tower: got 'reference', expected {WITHOUT_FLAX}")
  from pomp_jax.clip.reference import reference_text_tower

  return reference_text_tower(config, dtype)


def has_flax_clip() -> bool:
  """Whether the installed transformers has the modules of the `reference` tower."""
  return importlib.util.find_spec("transformers.models.clip.modeling_flax_clip") is not None


def token_embeddings(
  params: Any, ids: Int32[Array | np.ndarray, "..."]
) -> Float[Array | np.ndarray, "... D"]:
  """Embeddings of token ids without positions; NumPy parameters give NumPy, without a device."""
  rows = token_table(params)[ids]
  # A table that is mapped into memory may be stored in half precision.
  return rows if rows.dtype == jnp.float32 else rows.astype(jnp.float32)


def token_table(params: Any) -> Any:
  """Embeddings of all tokens [V,D]; on the host a long table stays in its file, as it is stored."""
  return params["text_model"]["embeddings"]["token_embedding"]["embedding"]


def with_embeddings(params: Any, embeddings_VxD: Float[Array | np.ndarray, "V D"]) -> Any:
  """Parameters of the text tower with other token embeddings."""
  model = params["text_model"]
  embeddings = model["embeddings"] | {"token_embedding": {"embedding": embeddings_VxD}}
  return params | {"text_model": model | {"embeddings": embeddings}}


def plan_memory(config: Any, n_prefix: int, n_tokens: int, limit_bytes: float) -> MemoryPlan:
  """The fastest plan whose activations stay below a limit, by a rough estimate for one device."""
  needed = activation_bytes(config, n_prefix, n_tokens)
  if needed <= limit_bytes:
    return MemoryPlan()
  return MemoryPlan(math.ceil(needed / limit_bytes), "chunks")


def activation_bytes(config: Any, n_prefix: int, n_tokens: int) -> float:
  """Rough size of all residuals without rematerialisation, for P and T tokens.

  For each token and layer about nine vectors of width D (inputs of the norms, query, key, value,
  the result of attention), the MLP's hidden vector, and the attention weights.
  """
  floats = 9 * config.hidden_size + config.intermediate_size
  floats += config.num_attention_heads * (n_prefix + 16)
  return 4.0 * floats * config.num_hidden_layers * n_tokens
