"""Pixel-adaptive mask refinement (PAMR; Araslanov & Roth, 2020): scores are fitted to edges.

Shapes: S score maps, H and W of the image with its padding, Q neighbours.
"""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

DILATIONS = (8, 16)


def pamr(
  scores_SxHxW: Float[Array, "S H W"],
  image_HxWx3: Float[Array, "H W 3"],
  shape_2: Int[Array, "2"],
  steps,
  dilations: tuple[int, ...] = DILATIONS,
) -> Float[Array, "S H W"]:
  """Replaces each pixel's scores, `steps` times, by a weighted mean of its neighbours'.

  The neighbours are the eight of each dilation. Their weights are the softmax of
  -|colour difference| / (1e-8 + 0.1 deviation), a mean over the channels. The deviation is that of
  the neighbours, with the pixel once a dilation. Beyond the border the border repeats.

  Args:
    scores_SxHxW: score maps.
    image_HxWx3: colours on any scale.
    shape_2: height and width without the padding below and to the right.
    steps: number of steps; may be traced.
    dilations: distances of the neighbours in pixels.
  """
  _, n_rows, n_columns = scores_SxHxW.shape
  margin = max(dilations)
  steps_of = [
    (dilation * y, dilation * x)
    for dilation in dilations
    for y, x in itertools.product((-1, 0, 1), repeat=2)
    if (y, x) != (0, 0)
  ]
  rows, columns = (
    jnp.clip(jnp.arange(-margin, n + margin), 0, length - 1)
    for n, length in zip((n_rows, n_columns), shape_2, strict=True)
  )

  def neighbours(maps):
    """Maps [.., H, W] moved by each offset, without a copy of each."""
    around = maps[..., rows, :][..., columns]
    for y, x in steps_of:
      yield around[..., margin + y : margin + y + n_rows, margin + x : margin + x + n_columns]

  image_3xHxW = jnp.moveaxis(image_HxWx3, -1, 0)
  around_Qx3xHxW = jnp.stack([*neighbours(image_3xHxW)])
  own = jnp.broadcast_to(image_3xHxW, (len(dilations), *image_3xHxW.shape))
  deviation = jnp.std(jnp.concatenate([around_Qx3xHxW, own]), axis=0, ddof=1)
  difference = jnp.abs(around_Qx3xHxW - image_3xHxW) / (1e-8 + 0.1 * deviation)
  weights_QxHxW = jax.nn.softmax(-difference.mean(axis=1), axis=0)

  def step(_, maps):
    return sum(w * moved for w, moved in zip(weights_QxHxW, neighbours(maps), strict=True))

  return jax.lax.fori_loop(0, steps, step, scores_SxHxW)
