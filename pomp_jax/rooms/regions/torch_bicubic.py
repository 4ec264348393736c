"""Torch's bicubic resampling as matrix products.

`jax.image.resize(method="bicubic")` has the kernel of a = -0.5; torch has a = -0.75.
"""

import jax.numpy as jnp

from pomp_jax.array_types import Array, Float

_A = -0.75


def bicubic_matrix(
  n_out: int, n_in: int, low=0, high=None, scale: float | None = None
) -> Float[Array, "n_out n_in"]:
  """Weights of pixels [low, high) of a line of n_in in each of n_out new pixels.

  Equal to `torch.nn.functional.interpolate(mode="bicubic")` of that range along one
  axis; two of them resize an image. The ends, 0 and n_in by default, may be traced;
  pixels outside of [0, n_in) have no columns, so their weight is missing from the row's
  sum of 1. `scale` is torch's `scale_factor` (recompute_scale_factor False); n_out /
  (high - low) if None.
  """
  high = n_in if high is None else high
  step = 1 / scale if scale else (high - low) / n_out
  position = (jnp.arange(n_out) + 0.5) * step - 0.5
  first = jnp.floor(position)
  t = position - first
  # The kernel (Keys, 1981) at distances 0 to 1, and 1 to 2.
  near = lambda x: ((_A + 2) * x - (_A + 3)) * x * x + 1
  far = lambda x: _A * (((x - 5) * x + 8) * x - 4)
  weights = [far(t + 1), near(t), near(1 - t), far(2 - t)]
  matrix = jnp.zeros((n_out, n_in))
  for k, weight in enumerate(weights):
    # Taps outside the range repeat its border.
    tap = jnp.clip(first.astype(jnp.int32) + (k - 1) + low, low, high - 1)
    matrix += jnp.where(tap[:, None] == jnp.arange(n_in), weight[:, None], 0)
  return matrix
