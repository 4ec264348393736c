"""The precision of matrix products and convolutions.

XLA's default on float32 inputs is TF32 on GPUs (11 bits of the products' inputs), one
bfloat16 pass (8 bits) on TPUs, float32 on CPUs. A precision that is set here is part of
the compiled program.
"""

from typing import Any

import jax.numpy as jnp

# The values of `config.clip.dtype`, from exact to fast.
DTYPES = ("float32", "tensorfloat32", "bfloat16")


def precision_of(dtype: Any) -> tuple[Any, str]:
  """Type of activations, and `jax.default_matmul_precision`, of a name in DTYPES or a
  NumPy type.

  `float32`: products in float32 (on TPUs six bfloat16 passes). `tensorfloat32`: float32
  with faster products (TF32 on GPUs, three bfloat16 passes on TPUs). `bfloat16`:
  bfloat16, summed in float32.
  """
  if isinstance(dtype, str) and dtype == "tensorfloat32":
    return jnp.float32, "high"
  dtype = jnp.dtype(dtype)
  return dtype.type, "default" if dtype == jnp.bfloat16 else "highest"
