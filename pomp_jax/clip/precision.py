"""How exactly matrix products and convolutions are computed.

XLA's default on float32 inputs is TF32 on GPUs (11 bits of the products' inputs) and a single
bfloat16 pass (8 bits) on TPUs. What is asked for here is recorded in the program, whatever runs it.
CPUs compute in float32 either way. Imports jax alone.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# The values of `config.clip.dtype`, from exact to fast.
DTYPES = ("float32", "tensorfloat32", "bfloat16")


class Precision(NamedTuple):
  """How a tower computes.

  Attributes:
    dtype: of activations and products' inputs.
    products: of products of these, a name that `jax.default_matmul_precision` takes.
  """

  dtype: Any
  products: str


def precision_of(dtype: Any) -> Precision:
  """The precision that a name in DTYPES means, or a NumPy type.

  `float32`: products of float32 in float32 (on TPUs six bfloat16 passes). `tensorfloat32`: float32
  with faster products (TF32 on GPUs, three bfloat16 passes on TPUs). `bfloat16`: bfloat16, summed
  in float32.

  Raises:
    TypeError: no such type.
  """
  if isinstance(dtype, str) and dtype == "tensorfloat32":
    return Precision(jnp.float32, "high")
  dtype = jnp.dtype(dtype)
  return Precision(dtype.type, "default" if dtype == jnp.bfloat16 else "highest")


def with_products(products: str, function: Callable) -> Callable:
  """The function, its matrix products and convolutions in a precision; so are their gradients.

  Those of a `custom_vjp` are not: its backward function is traced by itself, and is to be wrapped
  by itself.

  Args:
    products: of `Precision`.
    function: anything that is traced.
  """

  @functools.wraps(function)
  def precise(*arguments, **more):
    with jax.default_matmul_precision(products):
      return function(*arguments, **more)

  return precise
