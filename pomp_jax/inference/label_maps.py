"""Label maps of regions: the class of the highest sum over regions of score times mask.

Computed on the device for all prompts of an image, some rows of pixels at a time, so that neither
all soft masks nor the scores of all pixels are in memory.

Shapes: P prompts, R regions of an image of H x W pixels, h, w sides of the masks' grid, C classes.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int32, UInt8
import numpy as np

from pomp_jax.inference.segmentation import padded_sides, resize, taps

# The number of regions is rounded upwards to a multiple.
_REGIONS = 16
# Scores of one prompt that are in memory together: pixels times classes.
_MAX_SCORES = 2**23
# Rows computed together divide the height that `padded_sides` makes.
_MOST_ROWS = 128


def label_maps_of_regions(
  scores: Sequence[Float[np.ndarray, "R C"]],
  masks: UInt8[np.ndarray, "R h w"] | Bool[np.ndarray, "R h w"],
  height: int,
  width: int,
) -> Int32[np.ndarray, "P H W"]:
  """The class of the highest sum over regions of score * mask at each pixel, as in MaskFormer.

  Args:
    scores: scores of the regions under each prompt.
    masks: masks over the image, 255 times the probability of each cell; or hard ones. They are
      interpolated as by torch's bilinear `interpolate` without antialiasing.
    height: H.
    width: W.

  Returns:
    Classes; -1 where no mask has a weight.
  """
  n_regions, *sides = masks.shape
  if not n_regions:
    return np.full((len(scores), height, width), -1, np.int32)
  # Few shapes, for fewer compilations; regions beyond have empty masks.
  n_rows = _REGIONS * -(-n_regions // _REGIONS)
  grid = np.zeros((n_rows, *padded_sides(*sides)), np.uint8)
  grid[:n_regions, : sides[0], : sides[1]] = masks
  of_prompts = np.zeros((len(scores), n_rows, scores[0].shape[1]), np.float32)
  of_prompts[:, :n_regions] = np.stack(scores)
  out = padded_sides(height, width)
  labels = _label_maps(of_prompts, grid, np.array(sides), np.array([height, width]), out=out)
  return np.asarray(labels)[:, :height, :width]


@functools.partial(jax.jit, static_argnames="out")
def _label_maps(scores_PxRxC, masks_Rxhxw, sides_2, out_sides_2, *, out: tuple[int, int]):
  """[P, *out], with the padding of the image. A factor on all weights does not matter."""
  height, width = out
  rows, columns = (taps(n, sides_2[i], out_sides_2[i], xp=jnp) for i, n in enumerate(out))
  n_classes = scores_PxRxC.shape[2]
  n_rows = 1 << max(_MAX_SCORES // (width * n_classes), 1).bit_length() - 1
  n_rows = min(n_rows, _MOST_ROWS)

  def of_rows(rows):
    weights_Rxhxw = resize(resize(masks_Rxhxw, 1, rows), 2, columns)
    weights_PixelsxR = weights_Rxhxw.reshape(len(weights_Rxhxw), -1).T

    def of_prompt(scores_RxC):
      sums = jnp.matmul(weights_PixelsxR, scores_RxC, precision=jax.lax.Precision.HIGHEST)
      return jnp.argmax(sums, axis=1).astype(jnp.int32)

    labels_PxPixels = jax.lax.map(of_prompt, scores_PxRxC)
    return jnp.where(jnp.any(weights_PixelsxR > 0, axis=1), labels_PxPixels, -1)

  parts = jax.tree.map(lambda array: array.reshape(-1, n_rows), rows)
  labels = jax.lax.map(of_rows, parts)
  return jnp.moveaxis(labels, 1, 0).reshape(len(scores_PxRxC), height, width)
