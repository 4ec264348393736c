"""The implementations of the text tower by name; `clip.text` has the contract."""

import importlib
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from pomp_jax.clip.memory import KEEP_ALL, MemoryPlan
from pomp_jax.clip.packed import shared_text_tower
from pomp_jax.clip.text import TextTower

TEXT_TOWERS = ("shared", "reference")


def text_tower(
  kind: str,
  config: Any,
  dtype: DTypeLike = jnp.float32,
  token_budget: int | None = None,
  memory: MemoryPlan = KEEP_ALL,
) -> TextTower:
  """The implementation called `kind`; all of them take FlaxCLIP's parameters as they are.

  Args:
    kind: `shared` (the prefix once, names packed; see `clip.packed`) or `reference`.
    config: the text tower's HuggingFace configuration, or what has its fields.
    dtype: compute type of the layers, see `clip.precision`; parameters stay float32.
    token_budget: how many own tokens all rows together may have. `shared` leaves out the rows
      beyond it (`clip.packed.kept_rows` says which); `reference` pads and needs no budget.
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
