"""The precision of matrix products and convolutions.

For float32 inputs XLA's default is TF32 on GPUs (products read 11 bits of their
inputs), one bfloat16 pass on TPUs (8 bits), and float32 on CPUs. The precision is part
of a compiled program.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

# The values of `config.clip.dtype`, from exact to fast.
DTYPES = ("float32", "tensorfloat32", "bfloat16")


class Precision(NamedTuple):
  """How a tower computes."""

  dtype: Any  # type of the activations
  products: str  # a value of `jax.default_matmul_precision`


def precision_of(dtype: Any) -> Precision:
  """Returns the precision for a value of `config.clip.dtype`, or for a NumPy type.

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
