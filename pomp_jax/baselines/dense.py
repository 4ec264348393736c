"""A learned linear layer that starts as the published codes' do.

Shapes: n_in and n_out, its widths.
"""

import jax
import jax.numpy as jnp

from pomp_jax.annotations import Array, Float


def init_dense(key: jax.Array, n_in: int, n_out: int) -> dict[str, jax.Array]:
  """Kernel [n_in, n_out] and bias [n_out], uniform in +- 1 / sqrt(n_in), PyTorch's default."""
  kernel_key, bias_key = jax.random.split(key)
  bound = n_in**-0.5
  return {
    "kernel": jax.random.uniform(kernel_key, (n_in, n_out), minval=-bound, maxval=bound),
    "bias": jax.random.uniform(bias_key, (n_out,), minval=-bound, maxval=bound),
  }


def dense(params: dict[str, jax.Array], x: Float[Array, "... I"]) -> Float[Array, "... O"]:
  """x @ kernel + bias."""
  product = jnp.matmul(x, params["kernel"], precision=jax.lax.Precision.HIGHEST)
  return product + params["bias"]
