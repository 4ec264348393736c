"""Torch's bicubic resampling as matrix products.

`jax.image.resize(method="bicubic")` uses Keys' kernel with a = -0.5, torch a = -0.75.
"""

import jax.numpy as jnp

from pomp_jax.array_types import Array, Float, Int

_A = -0.75


def bicubic_matrix(
  n_out: int,
  n_in: int,
  low: int | Int[Array, ""] = 0,
  high: int | Int[Array, ""] | None = None,
  scale: float | None = None,
) -> Float[Array, "n_out n_in"]:
  """Matrix that resizes the pixels [low, high) of a line to n_out pixels.

  Each row has the weights of the old pixels in one new pixel. A product with the matrix
  equals `torch.nn.functional.interpolate(mode="bicubic")` of the range along one axis.
  An image takes two such matrices, one for each axis. Pixels of the range outside of
  [0, n_in) have no columns, so their weight is missing from a row's sum of 1.

  Args:
    n_out: number of new pixels.
    n_in: number of old pixels.
    low: first old pixel of the range; may be traced.
    high: end of the range, exclusive; n_in if None; may be traced.
    scale: torch's `scale_factor` (recompute_scale_factor False); n_out / (high - low)
      if None.
  """
  if high is None:
    high = n_in
  step = 1 / scale if scale else (high - low) / n_out
  position = (jnp.arange(n_out) + 0.5) * step - 0.5
  first = jnp.floor(position)
  t = position - first
  # Four taps at the distances 1 + t, t, 1 - t and 2 - t.
  weights = [_far(t + 1), _near(t), _near(1 - t), _far(2 - t)]
  matrix = jnp.zeros((n_out, n_in))
  for k, weight in enumerate(weights):
    # Taps outside the range repeat its border.
    tap = jnp.clip(first.astype(jnp.int32) + (k - 1) + low, low, high - 1)
    is_tap = tap[:, None] == jnp.arange(n_in)
    matrix += jnp.where(is_tap, weight[:, None], 0)
  return matrix


def _near(x: Float[Array, " n_out"]) -> Float[Array, " n_out"]:
  """The kernel (Keys, 1981) at distances from 0 to 1."""
  return ((_A + 2) * x - (_A + 3)) * x * x + 1


def _far(x: Float[Array, " n_out"]) -> Float[Array, " n_out"]:
  """The kernel at distances from 1 to 2."""
  return _A * (((x - 5) * x + 8) * x - 4)
