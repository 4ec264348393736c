"""Label maps without regions: dense features of a frozen ViT in windows, under class
matrices.

Shapes: B images, N windows of an image, h and w patches of a window, H and W sides of
an image in pixels, S names of all classes, C classes, E embedding, Q neighbours of a
pixel.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import itertools
import math
from typing import Any, NamedTuple

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
# Most pixels with scores of their own. Labels of larger images, of no published set,
# are enlarged.
_MAX_PIXELS = 2**21
# Largest number of scores in memory, names times pixels. More names are computed in
# chunks.
_MAX_SCORES = 2**28
# Distances of the neighbours in PAMR, pixels.
_DILATIONS = (8, 16)
# Longest side of a resized image, as in mmsegmentation's configs of the recipes.
_LONGEST = 2048


class PixelMap(NamedTuple):
  """Classes of an image's pixels; their probabilities among all names, where these
  are known."""

  labels_HxW: Int32[np.ndarray, "H W"]
  probability_HxW: Float32[np.ndarray, "H W"] | None = None


class _Windows(NamedTuple):
  """A resized image, the corners y0, x0 of its windows, and their height and width."""

  image_HxWx3: UInt8[np.ndarray, "H W 3"]
  corners_Nx2: Int[np.ndarray, "N 2"]
  sides: tuple[int, int]


def check_patches(segment: fields.Segment, clip_config: ClipConfig) -> None:
  """Raises ConfigError unless a CLIP has patches, and an image and a window hold
  one."""
  if (vit := clip_config.vit) is None:
    raise ConfigError("regions.source", "none", "regions: recipes need a ViT")
  patch = vit.patch_size
  for field in ("size", "window"):
    if 0 < (side := getattr(segment, field)) < patch:
      raise ConfigError(
        f"segment.{field}", side, f"0, or a patch of {patch} pixels or more"
      )


class DenseSegmenter:
  """Label maps of images of any size under several prompts; patch features are
  computed once."""

  def __init__(
    self,
    encoder: Encoder,
    segment: fields.Segment,
    *,
    dtype: str = "float32",
    chunk: int = 16,
  ):
    """Takes a CLIP with a ViT; compiles on first use. The tower takes `chunk`
    windows at a time."""
    self._encoder, self._segment = encoder, segment
    self._chunk = -(-chunk // encoder.mesh.size) * encoder.mesh.size
    tower = dense_tower(encoder.clip, RECIPES[segment.recipe], dtype)
    self._tower = map_rows(encoder.mesh, tower, n_replicated=1)

  def label_maps(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], matrices: Sequence[ClassMatrix]
  ) -> Iterator[list[PixelMap]]:
    """Yields for each image its label maps, one under each class matrix."""
    segment = self._segment
    scale = segment.logit_scale or self._encoder.clip.logit_scale
    cut = [self._cut(image) for image in images]
    for image, windows, patches in zip(
      images, cut, self._patch_features(cut), strict=True
    ):
      factor = min(1.0, (_MAX_PIXELS / image[..., 0].size) ** 0.5)
      height, width = (max(round(side * factor), 1) for side in image.shape[:2])
      rows, columns = (
        np.arange(old) * new // old
        for old, new in zip(image.shape[:2], (height, width), strict=True)
      )
      out = padded_sides(height, width)
      n_pixels = max(
        math.prod(padded_sides(*windows.image_HxWx3.shape[:2])), math.prod(out)
      )
      padded = _padded(windows, patches)
      found = [
        _label_map(
          padded,
          np.array([height, width]),
          *_chunks(matrix, max(_MAX_SCORES // n_pixels, 1)),
          scale,
          segment.background_below,
          segment.pamr,
          sides=windows.sides,
          out=out,
          refine=segment.pamr > 0,
        )
        for matrix in matrices
      ]
      yield [
        PixelMap(*(np.asarray(part)[rows[:, None], columns] for part in own))
        for own in found
      ]

  def finder(
    self, pixels: Callable[[int], np.ndarray], matrices: Sequence[ClassMatrix]
  ) -> Callable[[Sequence[int]], Iterator[tuple[int, list[PixelMap]]]]:
    """Returns a function from numbers of images, read by `pixels`, to them and
    `label_maps`."""
    return lambda block: zip(
      block, self.label_maps([pixels(row) for row in block], matrices), strict=True
    )

  def _cut(self, image: UInt8[np.ndarray, "_ _ 3"]) -> _Windows:
    """Resizes an image and places its windows."""
    segment, patch = self._segment, self._encoder.clip.config.vision_config.patch_size
    short, long = sorted(image.shape[:2])
    factor = min(segment.size / short, _LONGEST / long) if segment.size else 1
    # A very narrow image becomes one patch wide.
    new = [max(int(side * factor + 0.5), patch) for side in image.shape[:2]]
    if image.shape[:2] != tuple(new):
      for axis, side in enumerate(new):
        image = resize(image, axis, taps(side, image.shape[axis]))
      image = np.rint(image).astype(np.uint8)
    sides = tuple(min(segment.window or side, side) for side in image.shape[:2])
    # Windows cover the image; the last of a line ends at the border.
    stride, rest = segment.stride, np.subtract(image.shape[:2], sides)
    y, x = (
      np.minimum(np.arange(-(-length // stride) + 1) * stride, length)
      for length in rest
    )
    corners_Nx2 = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    return _Windows(image, corners_Nx2, sides)

  def _patch_features(
    self, cut: Sequence[_Windows]
  ) -> list[Float[np.ndarray, "N h w E"]]:
    """Unit patch features; windows of the same sides share chunks."""
    patch = self._encoder.clip.config.vision_config.patch_size
    results: list = [None] * len(cut)
    for sides in dict.fromkeys(one.sides for one in cut):
      height, width = (side // patch * patch for side in sides)
      members = [number for number, one in enumerate(cut) if one.sides == sides]
      pixels = np.stack(
        [
          cut[number].image_HxWx3[y : y + height, x : x + width]
          for number in members
          for y, x in cut[number].corners_Nx2
        ]
      )
      features = []
      for start in range(0, len(pixels), self._chunk):
        rows = np.arange(start, start + self._chunk) % len(pixels)
        placed = split_rows(pixels[rows], self._encoder.mesh)
        features.append(self._tower(self._encoder.vision_params, placed))
      ends = np.cumsum([len(cut[number].corners_Nx2) for number in members])
      parts = np.split(
        np.concatenate([*map(np.asarray, features)])[: ends[-1]], ends[:-1]
      )
      for number, part in zip(members, parts, strict=True):
        results[number] = part
    return results


class Taps(NamedTuple):
  """Two old pixels of each new one, and the second one's weight."""

  low: Any
  high: Any
  weight: Any


def taps(n_out: int, n_in, length=None, xp=np) -> Taps:
  """Bilinear samples of a line, as torch's `interpolate` without align_corners and
  antialias.

  The n_in old pixels are spread over the first `length` of the n_out new ones, over all
  if None. The others repeat the last. n_in and length may be traced if xp is jax.numpy.
  """
  length = n_out if length is None else length
  position = xp.maximum((xp.arange(n_out) + 0.5) * (n_in / length) - 0.5, 0)
  low = xp.minimum(xp.floor(position), n_in - 1).astype(int)
  return Taps(low, xp.minimum(low + 1, n_in - 1), xp.minimum(position - low, 1))


def resize(array, axis: int, taps: Taps):
  """Resamples one axis of an array."""
  weight = taps.weight.reshape(-1, *[1] * (array.ndim - axis % array.ndim - 1)).astype(
    np.float32
  )
  return (
    array.take(taps.low, axis) * (1 - weight) + array.take(taps.high, axis) * weight
  )


def _chunks(matrix: ClassMatrix, most: int) -> tuple[np.ndarray, np.ndarray]:
  """Text features [n,K,E] in n chunks of `most` names or fewer, and their classes;
  -1: no name."""
  n_names = len(matrix.features)
  n_chunks = -(-n_names // most)
  padding = n_chunks * -(-n_names // n_chunks) - n_names
  class_S = np.repeat(
    np.arange(len(matrix.starts)), np.diff(matrix.starts, append=n_names)
  )
  text = np.pad(matrix.features, ((0, padding), (0, 0)))
  classes = np.pad(class_S, (0, padding), constant_values=-1)
  return text.reshape(n_chunks, -1, text.shape[1]), classes.reshape(n_chunks, -1)


def padded_sides(*sides: int) -> tuple[int, ...]:
  """The sides of an image rounded upwards to multiples of 128 pixels."""
  return tuple(_BUCKET * -(-side // _BUCKET) for side in sides)


def _padded(cut: _Windows, patches_NxhxwxE: np.ndarray) -> tuple:
  """Patches, windows and image of `_label_map`, padded to few different shapes."""
  n_windows = len(patches_NxhxwxE)
  padding = (1 << (n_windows - 1).bit_length()) - n_windows
  patches = jnp.asarray(np.pad(patches_NxhxwxE, ((0, padding), *[(0, 0)] * 3)))
  corners_Nx2 = np.pad(cut.corners_Nx2, ((0, padding), (0, 0)))
  shape = cut.image_HxWx3.shape[:2]
  padded = padded_sides(*shape)
  margins = [(0, new - old) for new, old in zip(padded, shape, strict=True)]
  image = np.pad(cut.image_HxWx3, (*margins, (0, 0)))
  covered = np.zeros(padded, np.float32)
  for y, x in cut.corners_Nx2:
    covered[y : y + cut.sides[0], x : x + cut.sides[1]] += 1
  return patches, corners_Nx2, n_windows, image, np.maximum(covered, 1), np.array(shape)


@functools.partial(jax.jit, static_argnames=("sides", "out", "refine"))
def _label_map(
  cut: tuple,
  out_shape_2,
  text_nxKxE,
  class_nxK,
  scale,
  below,
  steps,
  *,
  sides,
  out,
  refine,
):
  """Classes of the pixels of the original image and their probabilities, with its
  padding.

  Cosines of each window's patches are resized to the window, averaged where windows
  overlap, resized to the original image, refined, and their softmax over all names is
  taken. The highest among the names of a class counts, so that the class of the highest
  name is the pixel's.
  """
  patches_NxhxwxE, corners_Nx2, n_windows, image_HxWx3, covered_HxW, shape_2 = cut
  line = [taps(n, shape_2[i], out_shape_2[i], xp=jnp) for i, n in enumerate(out)]

  def scores_of(text_KxE):
    def add(number, total_KxHxW):
      with jax.default_matmul_precision("highest"):
        cosine = jnp.einsum("hwe,ke->khw", patches_NxhxwxE[number], text_KxE)
      for axis in (1, 2):
        cosine = resize(cosine, axis, taps(sides[axis - 1], cosine.shape[axis], xp=jnp))
      corner = 0, *corners_Nx2[number]
      old = jax.lax.dynamic_slice(total_KxHxW, corner, cosine.shape)
      return jax.lax.dynamic_update_slice(total_KxHxW, old + cosine, corner)

    scores = jnp.zeros((len(text_KxE), *covered_HxW.shape), jnp.float32)
    scores = jax.lax.fori_loop(0, n_windows, add, scores) / covered_HxW
    scores = resize(resize(scores, 1, line[0]), 2, line[1])
    if refine:
      image = image_HxWx3.astype(jnp.float32)
      scores = pamr(
        scores, resize(resize(image, 0, line[0]), 1, line[1]), out_shape_2, steps
      )
    return scores

  def join(found, chunk):
    """Highest logit of the chunks so far, its class, and the softmax's sum relative
    to it."""
    best_HxW, label_HxW, total_HxW = found
    text_KxE, class_K = chunk
    logits = jnp.where(
      class_K[:, None, None] < 0, -jnp.inf, scale * scores_of(text_KxE)
    )
    higher_HxW = jnp.maximum(best_HxW, logits.max(axis=0))
    total_HxW *= jnp.exp(best_HxW - higher_HxW)
    total_HxW += jnp.exp(logits - higher_HxW).sum(axis=0)
    own_HxW = class_K[logits.argmax(axis=0)]
    return (
      higher_HxW,
      jnp.where(higher_HxW > best_HxW, own_HxW, label_HxW),
      total_HxW,
    ), None

  start = jnp.full(out, -jnp.inf), jnp.zeros(out, class_nxK.dtype), jnp.zeros(out)
  (_, labels, total), _ = jax.lax.scan(join, start, (text_nxKxE, class_nxK))
  probability = 1 / total
  return jnp.where(probability < below, 0, labels).astype(jnp.int32), probability


def pamr(
  scores_SxHxW: Float[Array, "S H W"],
  image_HxWx3: Float[Array, "H W 3"],
  shape_2: Int[Array, "2"],
  steps,
) -> Float[Array, "S H W"]:
  """Pixel-adaptive mask refinement (PAMR; Araslanov & Roth, 2020): fits scores to
  edges.

  Each pixel's scores become, `steps` times, a weighted mean of its neighbours', the eight of each
  dilation. Their weights are the softmax of -|colour difference| / (1e-8 + 0.1 deviation), a mean
  over the channels. The deviation is that of the neighbours, with the pixel once a dilation. Beyond
  the border the border repeats. Colours are on any scale; `shape_2` has height and width without
  the padding below and to the right; `steps` may be traced.
  """
  _, n_rows, n_columns = scores_SxHxW.shape
  margin = max(_DILATIONS)
  steps_of = [
    (dilation * y, dilation * x)
    for dilation, y, x in itertools.product(_DILATIONS, (-1, 0, 1), (-1, 0, 1))
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
      yield around[
        ..., margin + y : margin + y + n_rows, margin + x : margin + x + n_columns
      ]

  image_3xHxW = jnp.moveaxis(image_HxWx3, -1, 0)
  around_Qx3xHxW = jnp.stack([*neighbours(image_3xHxW)])
  own = jnp.broadcast_to(image_3xHxW, (len(_DILATIONS), *image_3xHxW.shape))
  deviation = jnp.std(jnp.concatenate([around_Qx3xHxW, own]), axis=0, ddof=1)
  difference = jnp.abs(around_Qx3xHxW - image_3xHxW) / (1e-8 + 0.1 * deviation)
  weights_QxHxW = jax.nn.softmax(-difference.mean(axis=1), axis=0)

  def step(_, maps):
    return sum(
      w * moved for w, moved in zip(weights_QxHxW, neighbours(maps), strict=True)
    )

  return jax.lax.fori_loop(0, steps, step, scores_SxHxW)
