"""The precision of matrix products and convolutions.

XLA's default on float32 inputs is TF32 on GPUs (11 bits of the products' inputs), one
bfloat16 pass (8 bits) on TPUs, float32 on CPUs. A precision that is set here is part of
the compiled program.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

# The values of `config.clip.dtype`, from exact to fast.
DTYPES = ("float32", "tensorfloat32", "bfloat16")


class Precision(NamedTuple):
  """How a tower computes."""

  dtype: Any  # of the activations
  products: str  # a value of `jax.default_matmul_precision`


def precision_of(dtype: Any) -> Precision:
  """How a tower computes in a type of `config.clip.dtype`, or of NumPy.

  - `float32`: products in float32, which are six bfloat16 passes on TPUs.
  - `tensorfloat32`: float32 with faster products, TF32 on GPUs and three bfloat16 passes
    on TPUs.
  - `bfloat16`: activations in bfloat16, products summed in float32.

  Args:
    dtype: one of DTYPES, or a type of NumPy or JAX.
  """
  if isinstance(dtype, str) and dtype == "tensorfloat32":
    return Precision(jnp.float32, "high")
  dtype = jnp.dtype(dtype)
  if dtype == jnp.bfloat16:
    return Precision(dtype.type, "default")
  return Precision(dtype.type, "highest")
