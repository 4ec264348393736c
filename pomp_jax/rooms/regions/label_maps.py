"""Label maps of regions: a pixel gets the class with the highest sum of score * mask.

The device computes the maps under all prompts of an image, a block of pixels at a time.
Neither all soft masks nor the scores of all pixels are in memory at once. Shapes: P
prompts, R regions of an image of H x W pixels, h, w sides of the masks' grid, C
classes.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Num
import numpy as np

from pomp_jax.rooms.regions.dense import Taps, padded_sides, resize, taps

# Limit on the numbers of a block of pixels in memory: scores of classes under one
# prompt, or weights of regions.
_MAX_NUMBERS = 2**23
# Arrays are padded to a few shapes, for fewer compilations.
_REGIONS = 16  # the number of regions becomes this, or a larger power of two
_COLUMNS = 128  # the number of a block's columns is a multiple of this
# Most rows of a block. Powers of two up to this divide the heights of `padded_sides`.
_MOST_ROWS = 128


def label_maps_of_regions(
  scores: Sequence[Float[np.ndarray, "R C"]],
  masks: Num[np.ndarray, "R h w"] | Bool[np.ndarray, "R h w"],
  height: int,
  width: int,
) -> Int32[np.ndarray, "P H W"]:
  """Finds the class with the highest sum of score * mask at each pixel, as MaskFormer.

  Args:
    scores: finite scores of the regions under each of P prompts.
    masks: soft masks (see `masks.ONE`) or hard masks. They are interpolated like
      torch's bilinear `interpolate` without antialiasing.
    height: height of the image in pixels, H.
    width: width of the image in pixels, W.

  Returns:
    Classes, -1 where all masks are 0.
  """
  n_regions, *sides = masks.shape
  if not n_regions:
    return np.full((len(scores), height, width), -1, np.int32)
  has_size_of_image = masks.dtype == bool and sides == [height, width]
  if has_size_of_image and masks.sum(axis=0).max() <= 1:
    return _maps_of_disjoint(scores, masks)
  # Round the number of regions up to a power of two.
  n_rows = max(_REGIONS, 1 << (n_regions - 1).bit_length())
  dtype = np.float16 if masks.dtype == np.float16 else np.uint8
  padded_masks = np.zeros((n_rows, *padded_sides(*sides)), dtype)
  padded_masks[:n_regions, : sides[0], : sides[1]] = masks
  padded_scores = np.zeros((len(scores), n_rows, scores[0].shape[1]), np.float32)
  padded_scores[:, :n_regions] = np.stack(scores)
  rows, columns = _block(max(padded_scores.shape[1:]), width)
  [out_height] = padded_sides(height)
  # Round the width up to whole blocks. The rows of a block divide the padded height.
  out_width = -(-width // columns) * columns
  labels = _label_maps(
    padded_scores,
    padded_masks,
    np.array(sides),
    np.array([height, width]),
    out=(out_height, out_width),
    block=(rows, columns),
  )
  return np.asarray(labels)[:, :height, :width]


def _maps_of_disjoint(
  scores: Sequence[np.ndarray], masks_RxHxW: np.ndarray
) -> np.ndarray:
  """Label maps of masks that do not overlap: a pixel's only region gives its class."""
  is_inside_HxW = masks_RxHxW.any(axis=0)
  owner_HxW = masks_RxHxW.argmax(axis=0)
  maps = [
    np.where(is_inside_HxW, scores_RxC.argmax(axis=1)[owner_HxW], -1)
    for scores_RxC in scores
  ]
  return np.stack(maps).astype(np.int32)


def _block(n_numbers: int, width: int) -> tuple[int, int]:
  """Rows and columns of a block.

  Args:
    n_numbers: numbers of a pixel: regions or classes, whichever are more.
    width: width of the image in pixels.
  """
  # Count the width of a block in runs of _COLUMNS pixels.
  most_runs = max(_MAX_NUMBERS // (_COLUMNS * n_numbers), 1)
  runs = min(most_runs, -(-width // _COLUMNS))
  # Round the rows that fit down to a power of two.
  rows = min(1 << (most_runs // runs).bit_length() - 1, _MOST_ROWS)
  return rows, _COLUMNS * runs


@functools.partial(jax.jit, static_argnames=("out", "block"))
def _label_maps(
  scores_PxRxC: Float[Array, "P R C"],
  masks_Rxhxw: Num[Array, "R h w"],
  sides_2: Int[Array, "2"],
  out_sides_2: Int[Array, "2"],
  *,
  out: tuple[int, int],
  block: tuple[int, int],
) -> Int32[Array, "P H W"]:
  """Computes label maps, a block of pixels at a time.

  Blocks that lie in the padding of the image are skipped. Masks keep the scale of
  `masks.ONE`: a factor common to all weights does not change the argmax.

  Args:
    scores_PxRxC: scores of the padded regions under each prompt.
    masks_Rxhxw: padded masks.
    sides_2: height and width of the masks without their padding.
    out_sides_2: height and width of the image.
    out: height and width of the label maps, with padding; multiples of `block`.
    block: rows and columns of a block.

  Returns:
    Label maps [P, *out], -1 where all masks are 0.
  """
  n_prompts, n_regions, _ = scores_PxRxC.shape
  block_rows, block_columns = block
  # Round up: the last blocks may reach into the padding.
  n_blocks_2 = -(-out_sides_2 // np.array(block))
  out_height, out_width = out
  rows = taps(out_height, sides_2[0], out_sides_2[0], xp=jnp)
  columns = taps(out_width, sides_2[1], out_sides_2[1], xp=jnp)

  def add_block(
    number: Int[Array, ""], labels_PxHxW: Int32[Array, "P H W"]
  ) -> Int32[Array, "P H W"]:
    """Writes the labels of one block; blocks are numbered row by row."""
    block_row, block_column = divmod(number, n_blocks_2[1])
    top = block_row * block_rows
    left = block_column * block_columns
    weights = resize(masks_Rxhxw, 1, _part_of_taps(rows, top, block_rows))
    weights = resize(weights, 2, _part_of_taps(columns, left, block_columns))
    weights_PixelsxR = weights.reshape(n_regions, -1).T

    def classes_under(scores_RxC: Float[Array, "R C"]) -> Int32[Array, " Pixels"]:
      sums_PixelsxC = jnp.matmul(
        weights_PixelsxR, scores_RxC, precision=jax.lax.Precision.HIGHEST
      )
      return jnp.argmax(sums_PixelsxC, axis=1).astype(jnp.int32)

    # Take one prompt at a time: _MAX_NUMBERS allows for the sums of one.
    classes_PxPixels = jax.lax.map(classes_under, scores_PxRxC)
    is_inside_Pixels = jnp.any(weights_PixelsxR > 0, axis=1)
    classes_PxPixels = jnp.where(is_inside_Pixels, classes_PxPixels, -1)
    classes_of_block = classes_PxPixels.reshape(n_prompts, block_rows, block_columns)
    return jax.lax.dynamic_update_slice(labels_PxHxW, classes_of_block, (0, top, left))

  labels_PxHxW = jnp.full((n_prompts, out_height, out_width), -1, jnp.int32)
  return jax.lax.fori_loop(0, jnp.prod(n_blocks_2), add_block, labels_PxHxW)


def _part_of_taps(line: Taps, start: Int[Array, ""], length: int) -> Taps:
  """Slices the samples of `length` new pixels of a line, from a traced `start` on."""
  low = jax.lax.dynamic_slice_in_dim(line.low, start, length)
  high = jax.lax.dynamic_slice_in_dim(line.high, start, length)
  weight = jax.lax.dynamic_slice_in_dim(line.weight, start, length)
  return Taps(low, high, weight)
