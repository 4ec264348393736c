"""Label maps without regions: patch features of a frozen ViT, under class matrices.

Shapes: B images, N windows of an image, h and w patches of a window, H and W sides of
an image in pixels, S names of all classes, n chunks of K names, C classes, E embedding,
Q neighbours of a pixel, D dilations.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import itertools
import math
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32, UInt8
import numpy as np

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.config import ConfigError
from pomp_jax.encoder import Encoder, map_rows
from pomp_jax.prompt.mesh import split_rows
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.class_matrix import ClassMatrix
from pomp_jax.rooms.regions.dense_tower import RECIPES, dense_tower

# Images are padded to multiples of this many pixels, for fewer compilations.
_BUCKET = 128
# Most pixels of a map of scores. A larger image, which no published set has, is scored
# at a smaller size, and its labels are enlarged.
_MAX_PIXELS = 2**21
# Most scores in memory, names times pixels: more names are scored in chunks.
_MAX_SCORES = 2**28
_DILATIONS = (8, 16)  # distances of the neighbours in PAMR, pixels
# Longest side of a resized image, as in mmsegmentation's configs of the recipes.
_LONGEST = 2048


class PixelMap(NamedTuple):
  """Class of each pixel of an image, and its probability among all names if known."""

  labels_HxW: Int32[np.ndarray, "H W"]
  probability_HxW: Float32[np.ndarray, "H W"] | None = None


class _Windows(NamedTuple):
  """A resized image and its windows."""

  image_HxWx3: UInt8[np.ndarray, "H W 3"]
  corners_Nx2: Int[np.ndarray, "N 2"]  # first row and column of each window
  sides: tuple[int, int]  # height and width of a window


class _Padded(NamedTuple):
  """A resized image with its windows and patches, padded to few different shapes."""

  patches_NxhxwxE: Any
  corners_Nx2: Any
  n_windows: int  # number of windows without the padding
  image_HxWx3: Any
  coverage_HxW: Any  # number of windows that cover each pixel, at least 1
  shape_2: Any  # height and width without the padding


def check_patches(segment: fields.Segment, clip_config: ClipConfig) -> None:
  """Raises ConfigError unless the CLIP has patches that fit into image and window."""
  vit = clip_config.vit
  if vit is None:
    raise ConfigError("regions.source", "none", "regions: recipes need a ViT")
  for field in ("size", "window"):
    side = getattr(segment, field)
    if 0 < side < vit.patch_size:
      accepted = f"0, or a patch of {vit.patch_size} pixels or more"
      raise ConfigError(f"segment.{field}", side, accepted)


class DenseSegmenter:
  """Computes label maps of images of any size under several prompts.

  Patch features are computed once for all prompts.
  """

  def __init__(
    self,
    encoder: Encoder,
    segment: fields.Segment,
    *,
    dtype: str = "float32",
    chunk: int = 16,
  ):
    """Takes a CLIP; compiles on first use.

    Args:
      encoder: encoder of a CLIP with a ViT.
      segment: recipe, sizes and refinement.
      dtype: type that the tower computes in.
      chunk: windows that the tower takes at a time, rounded up to a multiple of the
        devices.
    """
    n_devices = encoder.mesh.size
    self._encoder = encoder
    self._segment = segment
    # Round up to a multiple of the devices, which share the windows of a chunk.
    self._chunk = -(-chunk // n_devices) * n_devices
    tower = dense_tower(encoder.clip, RECIPES[segment.recipe], dtype)
    self._tower = map_rows(encoder.mesh, tower, n_replicated=1)

  def label_maps(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], matrices: Sequence[ClassMatrix]
  ) -> Iterator[list[PixelMap]]:
    """Yields the label maps of each image, one under each class matrix."""
    windows_of_images = [self._cut(image) for image in images]
    patches_of_images = self._patch_features(windows_of_images)
    for image, windows, patches in zip(
      images, windows_of_images, patches_of_images, strict=True
    ):
      yield self._maps_of_image(image.shape[:2], windows, patches, matrices)

  def _maps_of_image(
    self,
    sides: tuple[int, int],
    windows: _Windows,
    patches_NxhxwxE: np.ndarray,
    matrices: Sequence[ClassMatrix],
  ) -> list[PixelMap]:
    """Computes the label maps of an image, one under each class matrix."""
    segment = self._segment
    # A very large image is scored at a smaller size, and its labels are enlarged.
    factor = min(1.0, (_MAX_PIXELS / math.prod(sides)) ** 0.5)
    height, width = (max(round(side * factor), 1) for side in sides)
    # Row and column of the smaller map for each row and column of the image.
    rows = np.arange(sides[0]) * height // sides[0]
    columns = np.arange(sides[1]) * width // sides[1]
    out = padded_sides(height, width)
    padded = _padded(windows, patches_NxhxwxE)
    n_pixels = max(math.prod(padded.image_HxWx3.shape[:2]), math.prod(out))
    maps = []
    for matrix in matrices:
      text_nxKxE, class_nxK = _chunks(matrix, max(_MAX_SCORES // n_pixels, 1))
      labels, probability = _label_map(
        padded,
        np.array([height, width]),
        text_nxKxE,
        class_nxK,
        segment.logit_scale or self._encoder.clip.logit_scale,
        segment.background_below,
        segment.pamr,
        sides=windows.sides,
        out=out,
        refine=segment.pamr > 0,
      )
      pixels = np.ix_(rows, columns)
      maps.append(PixelMap(np.asarray(labels)[pixels], np.asarray(probability)[pixels]))
    return maps

  def finder(
    self, pixels: Callable[[int], np.ndarray], matrices: Sequence[ClassMatrix]
  ) -> Callable[[Sequence[int]], Iterator[tuple[int, list[PixelMap]]]]:
    """Returns a function that yields the number of each image with its label maps.

    Args:
      pixels: reads an image by its number.
      matrices: the classes under each prompt.
    """

    def find(numbers: Sequence[int]) -> Iterator[tuple[int, list[PixelMap]]]:
      maps = self.label_maps([pixels(number) for number in numbers], matrices)
      return zip(numbers, maps, strict=True)

    return find

  def _cut(self, image: UInt8[np.ndarray, "_ _ 3"]) -> _Windows:
    """Resizes an image and places its windows.

    Windows are `segment.stride` pixels apart; the last ones end at the border.
    """
    segment = self._segment
    patch = self._encoder.clip.config.vision_config.patch_size
    old_height, old_width, _ = image.shape
    factor = 1.0
    if segment.size:
      shorter, longer = sorted((old_height, old_width))
      factor = min(segment.size / shorter, _LONGEST / longer)
    # A very narrow image is widened to one patch.
    height = max(int(old_height * factor + 0.5), patch)
    width = max(int(old_width * factor + 0.5), patch)
    if (height, width) != (old_height, old_width):
      resized = resize(image, 0, taps(height, old_height))
      resized = resize(resized, 1, taps(width, old_width))
      image = np.rint(resized).astype(np.uint8)

    window_height = min(segment.window or height, height)
    window_width = min(segment.window or width, width)
    top = _starts(height - window_height, segment.stride)
    left = _starts(width - window_width, segment.stride)
    corners_Nx2 = np.stack(np.meshgrid(top, left, indexing="ij"), axis=-1)
    return _Windows(
      image_HxWx3=image,
      corners_Nx2=corners_Nx2.reshape(-1, 2),
      sides=(window_height, window_width),
    )

  def _patch_features(
    self, images: Sequence[_Windows]
  ) -> list[Float[np.ndarray, "N h w E"]]:
    """Computes unit patch features of each image; equal windows share chunks."""
    patch = self._encoder.clip.config.vision_config.patch_size
    results: list = [None] * len(images)
    for sides in dict.fromkeys(windows.sides for windows in images):
      # Cut each window down to complete patches.
      height, width = (side // patch * patch for side in sides)
      members = [n for n, windows in enumerate(images) if windows.sides == sides]
      pixels = [
        images[number].image_HxWx3[y : y + height, x : x + width]
        for number in members
        for y, x in images[number].corners_Nx2
      ]
      features = self._tower_features(np.stack(pixels))
      n_windows = [len(images[number].corners_Nx2) for number in members]
      parts = np.split(features, np.cumsum(n_windows)[:-1])
      for number, part in zip(members, parts, strict=True):
        results[number] = part
    return results

  def _tower_features(self, pixels_NxHxWx3: np.ndarray) -> Float[np.ndarray, "N h w E"]:
    """Computes unit patch features of windows of one shape, a chunk at a time."""
    n_windows = len(pixels_NxHxWx3)
    features = []
    for start in range(0, n_windows, self._chunk):
      # The last chunk is filled with windows from the start.
      rows = np.arange(start, start + self._chunk) % n_windows
      placed = split_rows(pixels_NxHxWx3[rows], self._encoder.mesh)
      features.append(self._tower(self._encoder.vision_params, placed))
    # Fetch after all chunks are dispatched, so that the devices never wait.
    return np.concatenate([np.asarray(chunk) for chunk in features])[:n_windows]


def _starts(last: int, stride: int) -> np.ndarray:
  """First pixel of each window along a line, from 0 to `last`, that of the last one."""
  # Round the number of strides up; a window beyond the border is moved back to `last`.
  return np.minimum(np.arange(-(-last // stride) + 1) * stride, last)


_Array = TypeVar("_Array", np.ndarray, jax.Array)


class Taps(NamedTuple):
  """The two old pixels that each new pixel mixes, and the weight of the second."""

  low: Any  # number of the first old pixel
  high: Any  # number of the second old pixel
  weight: Any  # of `high`; `low` has 1 - weight


def taps(
  n_out: int,
  n_in: int | Int[Array, ""],
  length: int | Int[Array, ""] | None = None,
  xp: ModuleType = np,
) -> Taps:
  """Computes bilinear samples of a line, as torch's `interpolate` has them by default.

  The default has neither align_corners nor antialias.

  Args:
    n_out: number of new pixels.
    n_in: number of old pixels; may be traced if xp is jax.numpy.
    length: number of new pixels over which the old pixels are spread; n_out if None.
      Later new pixels repeat the last old pixel. May be traced if xp is jax.numpy.
    xp: numpy or jax.numpy.
  """
  if length is None:
    length = n_out
  position = xp.maximum((xp.arange(n_out) + 0.5) * (n_in / length) - 0.5, 0)
  low = xp.minimum(xp.floor(position), n_in - 1).astype(int)
  high = xp.minimum(low + 1, n_in - 1)
  return Taps(low, high, xp.minimum(position - low, 1))


def resize(array: _Array, axis: int, taps: Taps) -> _Array:
  """Resamples one axis of an array.

  Args:
    array: numbers of any shape.
    axis: axis that changes its length.
    taps: samples of the axis, as the function `taps` computes them.
  """
  n_axes_behind = array.ndim - axis % array.ndim - 1
  weight = taps.weight.reshape(-1, *[1] * n_axes_behind).astype(np.float32)
  low = array.take(taps.low, axis)
  high = array.take(taps.high, axis)
  return low * (1 - weight) + high * weight


class _Chunks(NamedTuple):
  """Names of all classes in n chunks of K names, the last one padded."""

  text_nxKxE: Float32[np.ndarray, "n K E"]  # text features
  class_nxK: Int[np.ndarray, "n K"]  # class of each name; -1 for a row of padding


def _chunks(matrix: ClassMatrix, most: int) -> _Chunks:
  """Divides the names of a class matrix into the fewest chunks of equal length.

  Args:
    matrix: classes with their names, under one prompt.
    most: largest number of names in a chunk.
  """
  n_names, width = matrix.features.shape
  # Both quotients are rounded up, so the last chunk may need padding.
  n_chunks = -(-n_names // most)
  chunk_size = -(-n_names // n_chunks)
  padding = n_chunks * chunk_size - n_names

  n_classes = len(matrix.starts)
  n_names_C = np.diff(matrix.starts, append=n_names)
  class_S = np.repeat(np.arange(n_classes), n_names_C)
  text = np.pad(matrix.features, ((0, padding), (0, 0)))
  classes = np.pad(class_S, (0, padding), constant_values=-1)
  return _Chunks(
    text_nxKxE=text.reshape(n_chunks, chunk_size, width),
    class_nxK=classes.reshape(n_chunks, chunk_size),
  )


def padded_sides(*sides: int) -> tuple[int, ...]:
  """Rounds the sides of an image up to multiples of 128 pixels."""
  return tuple(_BUCKET * -(-side // _BUCKET) for side in sides)


def _padded(windows: _Windows, patches_NxhxwxE: np.ndarray) -> _Padded:
  """Pads patches, windows and image to few different shapes, for fewer compilations."""
  n_windows = len(patches_NxhxwxE)
  # Round the number of windows up to a power of two.
  padding = (1 << (n_windows - 1).bit_length()) - n_windows
  patches = np.pad(patches_NxhxwxE, ((0, padding), (0, 0), (0, 0), (0, 0)))
  corners_Nx2 = np.pad(windows.corners_Nx2, ((0, padding), (0, 0)))

  height, width = windows.image_HxWx3.shape[:2]
  padded_height, padded_width = padded_sides(height, width)
  margins = ((0, padded_height - height), (0, padded_width - width), (0, 0))
  image = np.pad(windows.image_HxWx3, margins)

  coverage = np.zeros((padded_height, padded_width), np.float32)
  window_height, window_width = windows.sides
  for y, x in windows.corners_Nx2:
    coverage[y : y + window_height, x : x + window_width] += 1
  return _Padded(
    patches_NxhxwxE=jnp.asarray(patches),
    corners_Nx2=corners_Nx2,
    n_windows=n_windows,
    image_HxWx3=image,
    coverage_HxW=np.maximum(coverage, 1),
    shape_2=np.array([height, width]),
  )


@functools.partial(jax.jit, static_argnames=("sides", "out", "refine"))
def _label_map(
  padded: _Padded,
  out_shape_2: Int[Array, "2"],
  text_nxKxE: Float[Array, "n K E"],
  class_nxK: Int[Array, "n K"],
  scale: Float[Array, ""],
  below: Float[Array, ""],
  steps: Int[Array, ""],
  *,
  sides: tuple[int, int],
  out: tuple[int, int],
  refine: bool,
) -> tuple[Int32[Array, "H W"], Float32[Array, "H W"]]:
  """Computes the class of each pixel and its probability, with the map's padding.

  The cosines of each window's patches are resized to the window, averaged where windows
  overlap, resized to the label map, refined, and turned into a softmax over all names.
  A class counts by its best name, so a pixel gets the class of its best name.

  Args:
    padded: image, windows and patches.
    out_shape_2: height and width of the label map without its padding.
    text_nxKxE: text features in chunks.
    class_nxK: class of each name, -1 for padding.
    scale: factor of the cosines.
    below: probability below which a pixel is of class 0.
    steps: steps of `pamr`.
    sides: height and width of a window.
    out: height and width of the label map.
    refine: whether to refine the scores by `pamr`.
  """
  scores_of_names = functools.partial(
    _scores_of_names,
    padded,
    out_shape_2=out_shape_2,
    steps=steps,
    sides=sides,
    out=out,
    refine=refine,
  )

  def add_chunk(
    so_far: tuple[Float[Array, "H W"], Int[Array, "H W"], Float[Array, "H W"]],
    chunk: tuple[Float[Array, "K E"], Int[Array, " K"]],
  ) -> tuple[tuple[Float[Array, "H W"], Int[Array, "H W"], Float[Array, "H W"]], None]:
    """Updates the highest logit, its class, and the sum of exp(logit - highest)."""
    best_HxW, label_HxW, total_HxW = so_far
    text_KxE, class_K = chunk
    is_padding_Kx1x1 = class_K[:, None, None] < 0
    logits_KxHxW = jnp.where(
      is_padding_Kx1x1, -jnp.inf, scale * scores_of_names(text_KxE)
    )
    higher_HxW = jnp.maximum(best_HxW, logits_KxHxW.max(axis=0))
    # The sum so far is relative to the previous highest logit.
    total_HxW *= jnp.exp(best_HxW - higher_HxW)
    total_HxW += jnp.exp(logits_KxHxW - higher_HxW).sum(axis=0)
    label_of_chunk_HxW = class_K[logits_KxHxW.argmax(axis=0)]
    is_better_HxW = higher_HxW > best_HxW
    label_HxW = jnp.where(is_better_HxW, label_of_chunk_HxW, label_HxW)
    return (higher_HxW, label_HxW, total_HxW), None

  start = (jnp.full(out, -jnp.inf), jnp.zeros(out, class_nxK.dtype), jnp.zeros(out))
  (_, labels, total), _ = jax.lax.scan(add_chunk, start, (text_nxKxE, class_nxK))
  # The softmax of the highest logit: exp(highest - highest) over the sum.
  probability = 1 / total
  labels = jnp.where(probability < below, 0, labels)
  return labels.astype(jnp.int32), probability


def _scores_of_names(
  padded: _Padded,
  text_KxE: Float[Array, "K E"],
  *,
  out_shape_2: Int[Array, "2"],
  steps: Int[Array, ""],
  sides: tuple[int, int],
  out: tuple[int, int],
  refine: bool,
) -> Float[Array, "K _ _"]:
  """Computes the cosines of every pixel of the label map with each name.

  Args:
    padded: image, windows and patches.
    text_KxE: text features of K names.
    out_shape_2: height and width of the label map without its padding.
    steps: steps of `pamr`.
    sides: height and width of a window.
    out: height and width of the label map.
    refine: whether to refine the cosines by `pamr`.

  Returns:
    Cosines [K, *out].
  """
  n_names = len(text_KxE)
  window_height, window_width = sides
  _, n_patch_rows, n_patch_columns, _ = padded.patches_NxhxwxE.shape
  window_rows = taps(window_height, n_patch_rows, xp=jnp)
  window_columns = taps(window_width, n_patch_columns, xp=jnp)

  def add_window(
    number: Int[Array, ""], total_KxHxW: Float[Array, "K H W"]
  ) -> Float[Array, "K H W"]:
    """Adds the cosines of a window's patches, resized to the window."""
    patches_hxwxE = padded.patches_NxhxwxE[number]
    with jax.default_matmul_precision("highest"):
      cosine_KxHxW = jnp.einsum("hwe,ke->khw", patches_hxwxE, text_KxE)
    cosine_KxHxW = resize(cosine_KxHxW, 1, window_rows)
    cosine_KxHxW = resize(cosine_KxHxW, 2, window_columns)
    top, left = padded.corners_Nx2[number]
    corner = (0, top, left)
    total_of_window = jax.lax.dynamic_slice(total_KxHxW, corner, cosine_KxHxW.shape)
    total_of_window += cosine_KxHxW
    return jax.lax.dynamic_update_slice(total_KxHxW, total_of_window, corner)

  # Average over the windows that cover a pixel, at the size of the resized image.
  total_KxHxW = jnp.zeros((n_names, *padded.coverage_HxW.shape), jnp.float32)
  total_KxHxW = jax.lax.fori_loop(0, padded.n_windows, add_window, total_KxHxW)
  scores_KxHxW = total_KxHxW / padded.coverage_HxW

  # Resize from the resized image to the label map.
  out_height, out_width = out
  rows = taps(out_height, padded.shape_2[0], out_shape_2[0], xp=jnp)
  columns = taps(out_width, padded.shape_2[1], out_shape_2[1], xp=jnp)
  scores_KxHxW = resize(scores_KxHxW, 1, rows)
  scores_KxHxW = resize(scores_KxHxW, 2, columns)
  if not refine:
    return scores_KxHxW
  image_HxWx3 = padded.image_HxWx3.astype(jnp.float32)
  image_HxWx3 = resize(image_HxWx3, 0, rows)
  image_HxWx3 = resize(image_HxWx3, 1, columns)
  return pamr(scores_KxHxW, image_HxWx3, out_shape_2, steps)


def pamr(
  scores_SxHxW: Float[Array, "S H W"],
  image_HxWx3: Float[Array, "H W 3"],
  shape_2: Int[Array, "2"],
  steps: int | Int[Array, ""],
) -> Float[Array, "S H W"]:
  """Fits scores to edges by pixel-adaptive mask refinement (Araslanov & Roth, 2020).

  In each step, the scores of a pixel become the weighted mean of its neighbours'
  scores. A pixel has eight neighbours at each dilation. Neighbours of a similar colour
  have larger weights, see `_pamr_weights`.

  Args:
    scores_SxHxW: scores of each name.
    image_HxWx3: colours on any scale.
    shape_2: height and width without the padding, which is below and to the right.
    steps: number of steps; may be traced.
  """
  _, height, width = scores_SxHxW.shape
  # Rows and columns of maps that are enlarged by a margin, in which the border repeats.
  margin = max(_DILATIONS)
  rows = jnp.clip(jnp.arange(-margin, height + margin), 0, shape_2[0] - 1)
  columns = jnp.clip(jnp.arange(-margin, width + margin), 0, shape_2[1] - 1)
  image_3xHxW = jnp.moveaxis(image_HxWx3, -1, 0)
  weights_QxHxW = _pamr_weights(image_3xHxW, rows, columns)

  def step(_: Int[Array, ""], maps: Float[Array, "S H W"]) -> Float[Array, "S H W"]:
    mean_SxHxW = jnp.zeros_like(maps)
    for weight_HxW, neighbour_SxHxW in zip(
      weights_QxHxW, _neighbours(maps, rows, columns), strict=True
    ):
      mean_SxHxW += weight_HxW * neighbour_SxHxW
    return mean_SxHxW

  return jax.lax.fori_loop(0, steps, step, scores_SxHxW)


def _pamr_weights(
  image_3xHxW: Float[Array, "3 H W"],
  rows: Int[Array, " H_and_margins"],
  columns: Int[Array, " W_and_margins"],
) -> Float[Array, "Q H W"]:
  """Computes the weights of each pixel's Q neighbours, which sum to 1.

  The weights are the softmax over the neighbours of a mean over the channels: of
  -|colour difference| / (1e-8 + 0.1 deviation). The standard deviation is over the colours of
  the neighbours and the pixel's own colour, which counts once for each dilation.

  Args:
    image_3xHxW: colours on any scale.
    rows: see `_neighbours`.
    columns: see `_neighbours`.
  """
  around_Qx3xHxW = jnp.stack(list(_neighbours(image_3xHxW, rows, columns)))
  n_dilations = len(_DILATIONS)
  centre_Dx3xHxW = jnp.broadcast_to(image_3xHxW, (n_dilations, *image_3xHxW.shape))
  colours = jnp.concatenate([around_Qx3xHxW, centre_Dx3xHxW])
  deviation_3xHxW = jnp.std(colours, axis=0, ddof=1)
  difference_Qx3xHxW = jnp.abs(around_Qx3xHxW - image_3xHxW)
  difference_Qx3xHxW = difference_Qx3xHxW / (1e-8 + 0.1 * deviation_3xHxW)
  return jax.nn.softmax(-difference_Qx3xHxW.mean(axis=1), axis=0)


def _neighbours(
  maps: Float[Array, "*X H W"],
  rows: Int[Array, " H_and_margins"],
  columns: Int[Array, " W_and_margins"],
) -> Iterator[Float[Array, "*X H W"]]:
  """Yields a map for each neighbour: at every pixel, the value of this neighbour.

  There are eight neighbours at each of the distances `_DILATIONS`. The maps are slices
  of one enlarged array, whose margin repeats the border.

  Args:
    maps: values of each pixel.
    rows: index of a row of `maps` for each row of the enlarged array; the margin is as
      wide as the longest dilation.
    columns: index of a column of `maps` for each column of the enlarged array.
  """
  margin = max(_DILATIONS)
  *_, height, width = maps.shape
  enlarged = maps[..., rows, :][..., columns]
  for dilation, y, x in itertools.product(_DILATIONS, (-1, 0, 1), (-1, 0, 1)):
    if y == 0 and x == 0:
      continue
    top = margin + dilation * y
    left = margin + dilation * x
    yield enlarged[..., top : top + height, left : left + width]
