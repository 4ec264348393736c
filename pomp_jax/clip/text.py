"""The frozen text tower, with the prompt put in as embeddings.

One contract for every implementation:

  (params, prefix [P,D], suffix [C,L,D], lengths [C]) -> features [C,E]

Row c of the batch is the sequence prefix, suffix[c, :lengths[c]]; its feature is read at the
last of these positions (EOT), whatever pads after it. Features are not normalised.
Shapes: C classes, P shared prefix tokens, L own tokens of a class, D width, E embedding.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from pomp_jax.annotations import Array, Float, Int32

TextTower = Callable[
  [Any, Float[Array, "P D"], Float[Array, "C L D"], Int32[Array, " C"]], Float[Array, "C E"]
]


def project(params: Any, eot_CxD: Float[Array, "C D"], dtype: DTypeLike) -> Float[Array, "C E"]:
  """The text projection (no bias), its result float32 whatever the compute type."""
  kernel_DxE = params["text_projection"]["kernel"].astype(dtype)
  return (eot_CxD.astype(dtype) @ kernel_DxE).astype(jnp.float32)


def token_embeddings(
  params: Any, ids: Int32[Array | np.ndarray, "..."]
) -> Float[Array | np.ndarray, "... D"]:
  """The embeddings of token ids, positions not yet added; NumPy from NumPy, without a device."""
  return params["text_model"]["embeddings"]["token_embedding"]["embedding"][ids]
