"""The frozen text tower, with the prompt put in as embeddings.

One contract for every implementation:

  (params, prefix [P,D], suffix [C,L,D], lengths [C]) -> features [C,E]

Row c of the batch is the sequence prefix, suffix[c, :lengths[c]]; its feature is read at the
last of these positions (EOT), whatever pads after it. Features are not normalised.
Shapes: C classes, P shared prefix tokens, L own tokens of a class, D width, E embedding.
"""

from collections.abc import Callable
import importlib
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from pomp_jax.annotations import Array, Float, Int32
from pomp_jax.clip.memory import KEEP_ALL, MemoryPlan
from pomp_jax.clip.shared import shared_text_tower

TEXT_TOWERS = ("shared", "reference")

TextTower = Callable[
  [Any, Float[Array, "P D"], Float[Array, "C L D"], Int32[Array, " C"]], Float[Array, "C E"]
]


def text_tower(
  kind: str,
  config: Any,
  dtype: DTypeLike = jnp.float32,
  token_budget: int | None = None,
  memory: MemoryPlan = KEEP_ALL,
) -> TextTower:
  """The implementation called `kind`; all of them take FlaxCLIP's parameters as they are.

  Args:
    kind: `shared` (the prefix once, names packed; see `clip.shared`) or `reference`.
    config: the text tower's HuggingFace configuration, or what has its fields.
    dtype: compute type of the layers, see `clip.precision`; parameters stay float32.
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
  # HuggingFace's Flax modules are looked for only where they are used.
  return importlib.import_module("pomp_jax.clip.reference").reference_text_tower(config, dtype)


def project(params: Any, eot_CxD: Float[Array, "C D"], dtype: DTypeLike) -> Float[Array, "C E"]:
  """The text projection (no bias), its result float32 whatever the compute type."""
  kernel_DxE = params["text_projection"]["kernel"].astype(dtype)
  return (eot_CxD.astype(dtype) @ kernel_DxE).astype(jnp.float32)


def token_embeddings(
  params: Any, ids: Int32[Array | np.ndarray, "..."]
) -> Float[Array | np.ndarray, "... D"]:
  """The embeddings of token ids, positions not yet added; NumPy from NumPy, without a device."""
  return params["text_model"]["embeddings"]["token_embedding"]["embedding"][ids]
