"""Label maps of regions: the class of the highest sum over regions of score times mask.

Computed on the device for all prompts of an image, a block of pixels at a time, so that
neither all soft masks nor the scores of all pixels are in memory. Shapes: P prompts, R
regions of an image of H x W pixels, h, w sides of the masks' grid, C classes.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int32, Num
import numpy as np

from pomp_jax.rooms.regions.dense import Taps, padded_sides, resize, taps

# Numbers of a block of pixels in memory under one prompt: scores of classes, weights of
# regions.
_MAX_NUMBERS = 2**23
# Few shapes, for fewer compilations: regions are padded to powers of two from this
# number on, and columns of a block are multiples of the other.
_REGIONS, _COLUMNS = 16, 128
# Rows of a block divide the height that `padded_sides` makes.
_MOST_ROWS = 128


def label_maps_of_regions(
  scores: Sequence[Float[np.ndarray, "R C"]],
  masks: Num[np.ndarray, "R h w"] | Bool[np.ndarray, "R h w"],
  height: int,
  width: int,
) -> Int32[np.ndarray, "P H W"]:
  """The class of the highest sum over regions of score * mask at each pixel, as in
  MaskFormer.

  -1 where all masks are 0. Soft (see `masks.ONE`) or hard masks are interpolated as by
  torch's bilinear `interpolate` without antialiasing. Scores, under each prompt, are finite.
  """
  n_regions, *sides = masks.shape
  if not n_regions:
    return np.full((len(scores), height, width), -1, np.int32)
  if masks.dtype == bool and sides == [height, width] and masks.sum(axis=0).max() <= 1:
    # The regions of a label image do not overlap: no sums.
    inside, owners = masks.any(axis=0), masks.argmax(axis=0)
    return np.stack(
      [np.where(inside, own.argmax(axis=1)[owners], -1) for own in scores]
    ).astype(np.int32)
  n_rows = max(_REGIONS, 1 << (n_regions - 1).bit_length())
  soft = masks.dtype == np.float16
  grid = np.zeros((n_rows, *padded_sides(*sides)), np.float16 if soft else np.uint8)
  grid[:n_regions, : sides[0], : sides[1]] = masks
  of_prompts = np.zeros((len(scores), n_rows, scores[0].shape[1]), np.float32)
  of_prompts[:, :n_regions] = np.stack(scores)
  rows, columns = _block(max(of_prompts.shape[1:]), width)
  out = padded_sides(height)[0], -(-width // columns) * columns
  labels = _label_maps(
    of_prompts,
    grid,
    np.array(sides),
    np.array([height, width]),
    out=out,
    block=(rows, columns),
  )
  return np.asarray(labels)[:, :height, :width]


def _block(n_numbers: int, width: int) -> tuple[int, int]:
  """Rows and columns of the pixels that are computed together."""
  most = max(_MAX_NUMBERS // (_COLUMNS * n_numbers), 1)  # multiples of _COLUMNS pixels
  columns = min(most, -(-width // _COLUMNS))
  rows = min(1 << (most // columns).bit_length() - 1, _MOST_ROWS)
  return rows, _COLUMNS * columns


@functools.partial(jax.jit, static_argnames=("out", "block"))
def _label_maps(
  scores_PxRxC,
  masks_Rxhxw,
  sides_2,
  out_sides_2,
  *,
  out: tuple[int, int],
  block: tuple[int, int],
):
  """Label maps [P, *out]; blocks in the padding of the image are not computed.

  Masks keep their scale, since a factor on all weights changes no argmax.
  """
  lines = [taps(n, sides_2[i], out_sides_2[i], xp=jnp) for i, n in enumerate(out)]
  n_blocks_2 = -(-out_sides_2 // np.array(block))

  def of_block(number, labels_PxHxW):
    starts = divmod(number, n_blocks_2[1])
    starts = [start * length for start, length in zip(starts, block, strict=True)]
    rows, columns = (
      Taps(*(jax.lax.dynamic_slice_in_dim(part, start, length) for part in line))
      for line, start, length in zip(lines, starts, block, strict=True)
    )
    weights_Rxhxw = resize(resize(masks_Rxhxw, 1, rows), 2, columns)
    weights_PixelsxR = weights_Rxhxw.reshape(len(weights_Rxhxw), -1).T

    def of_prompt(scores_RxC):
      sums = jnp.matmul(
        weights_PixelsxR, scores_RxC, precision=jax.lax.Precision.HIGHEST
      )
      return jnp.argmax(sums, axis=1).astype(jnp.int32)

    found = jax.lax.map(of_prompt, scores_PxRxC)
    found = jnp.where(jnp.any(weights_PixelsxR > 0, axis=1), found, -1)
    found_Pxhxw = found.reshape(-1, *block)
    return jax.lax.dynamic_update_slice(labels_PxHxW, found_Pxhxw, (0, *starts))

  labels = jnp.full((len(scores_PxRxC), *out), -1, jnp.int32)
  return jax.lax.fori_loop(0, jnp.prod(n_blocks_2), of_block, labels)
