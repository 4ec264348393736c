"""Renders images from attributes, a style and random keys, in NumPy.

An image depends only on its 64-bit key, its attributes and the style, not on the batch.
Only the rounding of sines may differ between processors. An object is about 2 units
across and centred at the origin of its coordinates, u to the right and v down. Shapes:
B images of S by S pixels, A = 4 attributes (colour, texture, shape, ground), P = S * S.
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from pomp_jax.world.names import SHAPES, TEXTURES, mix

# Function (u, v) -> whether the points are inside a part of a shape: bool, shaped as u.
_Part = Callable[[np.ndarray, np.ndarray], np.ndarray]

IMAGE_SIZE = 40  # S, pixels


class Style(NamedTuple):
  """Properties of pictures. Random properties are uniform within their range."""

  scale: float = 0.6  # least size of an object's unit; half of the image is 1
  scales: float = 0.78 - 0.6  # largest scale less the least
  offset: float = 0.1  # largest shift of the object from the centre, x or y
  angle: float = 0.2  # largest rotation, radians
  light: float = 0.22  # strength of the lighting gradient
  noise: float = 0.035  # least standard deviation of the noise
  noises: float = 0.0  # largest deviation of the noise less the least


# An object with a dark outline under a lighting gradient, soft clutter, sensor noise.
PHOTO = Style()
# Only for evaluation: warm or cold light, blur, low contrast, and no dark outline in
# half of the pictures.
SHIFTED = Style(0.5, 0.9 - 0.5, angle=0.35, light=0.4, noise=0.02, noises=0.1 - 0.02)

_ATLAS_SIZE = 128  # samples along each side of a shape's tabulated distance field
_ATLAS_REACH = 1.6  # the field covers [-reach, reach] in u and v

# sRGB colours in the order of names.COLOURS.
_PALETTE = np.array(
  [
    (226, 50, 50),
    (142, 36, 62),
    (244, 140, 36),
    (248, 222, 70),
    (52, 172, 76),
    (146, 150, 52),
    (28, 154, 148),
    (124, 200, 244),
    (52, 70, 170),
    (150, 80, 190),
    (140, 140, 140),
    (244, 244, 244),
  ],
  np.float32,
)
_PALETTE = _PALETTE / np.float32(255)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_CHUNK = 128  # images rendered at once, so that intermediates fit in the cache

# Keys of the random channels of an image. Each random property reads its own channel.
_CHANNEL_KEYS = mix(np.arange(96, dtype=np.uint64) << np.uint64(20))


def uniform(
  key_B: np.ndarray, channel: int, low: float | int = 0.0, high: float | int = 1.0
) -> np.ndarray:
  """Draws a uniform number for each image: float32 [B].

  Args:
    key_B: keys of the images, uint64 [B].
    channel: number of the random channel, below 96; each property has its own.
    low: least value.
    high: end of the range, exclusive.
  """
  bits = mix(key_B ^ _CHANNEL_KEYS[channel]) >> np.uint64(40)
  unit = bits.astype(np.float32) / np.float32(1 << 24)
  return (low + (high - low) * unit).astype(np.float32)


def image_keys(seed: int, stream: int, indices: np.ndarray) -> np.ndarray:
  """Keys of images in a random stream: uint64 [B].

  Args:
    seed: random seed of the pictures.
    stream: number of the stream; images of two streams or seeds have different keys.
    indices: numbers of the images in the stream [B].
  """
  root = mix(np.array([seed], np.uint64))
  root = mix(root ^ mix(np.array([stream], np.uint64) + np.uint64(0x57)))
  return mix(root ^ np.asarray(indices).astype(np.uint64))


_NOISE_SIZE = 128 * 128 * 3  # numbers in the table of noise, before its repetition


def _tabulate_noise() -> np.ndarray:
  """Table of noise with mean 0 and deviation 1, about normal: sums of four uniforms.

  Drawing noise for each pixel would take longer than all other steps of rendering, so
  each picture reads the table from a random start. The table has two equal halves, so
  that enough numbers follow every start in the first half.
  """
  numbers = np.arange(4 * _NOISE_SIZE, dtype=np.uint64).reshape(4, -1)
  bits = mix(numbers) >> np.uint64(40)
  uniforms = bits.astype(np.float32) / np.float32(1 << 24)
  # Four uniforms have the mean 2 and the variance 1/3.
  normal = ((uniforms.sum(0) - 2) * np.sqrt(3)).astype(np.float32)
  return np.tile(normal, 2)


_NOISE = _tabulate_noise()


def _polygon(*corners: tuple[float | int, float | int]) -> _Part:
  """A polygon; a point is inside by the even-odd rule."""

  def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    within = np.zeros(u.shape, bool)
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
      u0, v0 = start
      u1, v1 = end
      if v0 == v1:
        continue  # no horizontal ray crosses this edge
      crosses = (v0 > v) != (v1 > v)
      crossing_u = u0 + (v - v0) * (u1 - u0) / (v1 - v0)
      within ^= crosses & (u < crossing_u)
    return within

  return inside


def _radial(radii: list[float]) -> _Part:
  """A polygon whose corners have these distances from the origin, at equal angles.

  The first corner is straight up.
  """
  corners = []
  for i, radius in enumerate(radii):
    angle = 2 * np.pi * i / len(radii) - np.pi / 2
    corners.append((radius * np.cos(angle), radius * np.sin(angle)))
  return _polygon(*corners)


def _disc(u0: float | int, v0: float | int, radius: float) -> _Part:
  return lambda u, v: (u - u0) ** 2 + (v - v0) ** 2 < radius**2


def _box(u0: float, v0: float, u1: float, v1: float) -> _Part:
  return lambda u, v: (u > u0) & (u < u1) & (v > v0) & (v < v1)


# A point is inside a shape if it is inside one of the shape's parts.
_PARTS: dict[str, list[_Part]] = {
  "disc": [_disc(0, 0, 0.92)],
  "hexagon": [_radial(6 * [1.02])],
  "ring": [lambda u, v: _disc(0, 0, 1.0)(u, v) & ~_disc(0, 0, 0.42)(u, v)],
  "crescent moon": [
    lambda u, v: _disc(0.1, 0, 1.05)(u, v) & ~_disc(0.62, 0, 0.78)(u, v)
  ],
  "square": [_box(-0.82, -0.82, 0.82, 0.82)],
  "house": [
    _polygon((0, -1.1), (1.1, -0.12), (-1.1, -0.12)),
    _box(-0.76, -0.2, 0.76, 0.95),
  ],
  "bell": [
    _polygon((-0.62, -0.35), (0.62, -0.35), (1.02, 0.62), (-1.02, 0.62)),
    _disc(0, -0.35, 0.62),
    _disc(0, 0.76, 0.3),
    _disc(0, -0.98, 0.17),
  ],
  "star": [_radial(5 * [1.18, 0.52])],
  "flower": [
    *(_disc(0.66 * np.cos(a), 0.66 * np.sin(a), 0.4) for a in np.arange(6) * np.pi / 3),
    _disc(0, 0, 0.5),
  ],
  "cross": [_box(-1.05, -0.37, 1.05, 0.37), _box(-0.37, -1.05, 0.37, 1.05)],
  "lightning bolt": [
    _polygon(
      (0.25, -1.2),
      (-0.8, 0.18),
      (-0.12, 0.18),
      (-0.4, 1.2),
      (0.8, -0.32),
      (0.1, -0.32),
      (0.75, -1.2),
    )
  ],
  "heart": [
    _disc(-0.48, -0.38, 0.56),
    _disc(0.48, -0.38, 0.56),
    _polygon((-0.98, -0.12), (0, -0.5), (0.98, -0.12), (0, 1.08)),
  ],
  "leaf": [
    lambda u, v: _disc(-0.75, 0, 1.25)(u, v) & _disc(0.75, 0, 1.25)(u, v),
    _box(-0.1, 0.8, 0.1, 1.3),
  ],
  "triangle": [_polygon((0, -1.1), (1.1, 0.82), (-1.1, 0.82))],
  "arrow": [_polygon((0, -1.15), (0.98, 0), (-0.98, 0)), _box(-0.4, -0.1, 0.4, 1.1)],
  "fish": [
    lambda u, v: ((u + 0.22) / 0.92) ** 2 + (v / 0.62) ** 2 < 1,
    _polygon((0.35, 0), (1.2, -0.68), (1.2, 0.68)),
  ],
  "mushroom": [
    lambda u, v: ((u / 1.1) ** 2 + ((v + 0.05) / 1.0) ** 2 < 1) & (v < -0.02),
    _box(-0.34, -0.1, 0.34, 1.0),
  ],
}


def _distance(inside: np.ndarray) -> np.ndarray:
  """Signed distance to the outline in samples, negative inside: float32 [v, u]."""
  edge = inside & ~ndimage.binary_erosion(inside)
  distance = ndimage.distance_transform_edt(~edge).astype(np.float32)
  # Edge samples are the outermost samples inside. The outline is half a sample outside
  # of the edge samples.
  return np.where(inside, -distance - 0.5, distance - 0.5)


@functools.cache
def atlas() -> np.ndarray:
  """Tabulates signed distances to the outlines of all shapes: float32 [shapes, v, u].

  Distances are in units of the object, negative inside.
  """
  step = 2 * _ATLAS_REACH / _ATLAS_SIZE
  axis = (np.arange(_ATLAS_SIZE) + 0.5) * step - _ATLAS_REACH
  u, v = np.meshgrid(axis, axis)
  distances = []
  for shape in SHAPES:
    inside = np.any([part(u, v) for part in _PARTS[shape]], axis=0)
    distances.append(_distance(inside) * np.float32(step))
  return np.stack(distances)


def _axis(size: int) -> np.ndarray:
  """Centres of the pixels along a side, from -1 to 1: float32 [S]."""
  return (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1


def _fract(x: np.ndarray) -> np.ndarray:
  return x - np.floor(x)


def _wave(x: np.ndarray) -> np.ndarray:
  """Stripe profile of period 1 in [0, 1]: a steepened, clipped triangle wave."""
  return np.clip((np.abs(2 * _fract(x) - 1) - 0.5) * 3 + 0.5, 0, 1)


def _dots(x: np.ndarray, y: np.ndarray, radius: float, sharpness: int) -> np.ndarray:
  """Discs in the middle of unit squares, in [0, 1]."""
  dx = _fract(x) - 0.5
  dy = _fract(y) - 0.5
  distance = np.sqrt(dx * dx + dy * dy)
  return np.clip((radius - distance) * sharpness + 0.5, 0, 1)


# Functions (u, v, random phase p) -> how much of the second tone each point has, in [0,
# 1], shaped as u.
_PATTERNS = {
  "plain": lambda u, v, p: np.zeros_like(u),
  "shaded": lambda u, v, p: np.clip(0.5 + 0.6 * v, 0, 1),
  "striped": lambda u, v, p: _wave(1.25 * v + p),
  "ribbed": lambda u, v, p: _wave(2.2 * u + p),
  "dotted": lambda u, v, p: _dots(2.0 * u + p, 2.0 * v + p, 0.32, 7),
  "spotted": lambda u, v, p: _dots(
    1.2 * u + 0.5 * np.floor(1.2 * v + p) + p, 1.2 * v + p, 0.3, 10
  ),
  "checkered": lambda u, v, p: np.abs(
    (_fract(0.9 * u + p) > 0.5) - (_fract(0.9 * v + p) > 0.5) * 1.0
  ),
  "plaid": lambda u, v, p: (
    0.5 * (_fract(1.1 * u + p) > 0.55) + 0.5 * (_fract(1.1 * v + p) > 0.55)
  ),
  "ringed": lambda u, v, p: _wave(1.5 * np.sqrt(u * u + v * v) + p),
  "swirled": lambda u, v, p: _wave(
    3 * np.arctan2(v, u) / np.float32(2 * np.pi) + 0.7 * np.sqrt(u * u + v * v) + p
  ),
  "wavy": lambda u, v, p: _wave(1.5 * v + 0.3 * np.sin(4.5 * u) + p),
  "zigzag": lambda u, v, p: _wave(1.5 * v + 1.2 * np.abs(_fract(0.8 * u) - 0.5) + p),
}


class Field(NamedTuple):
  """Where the pixels of an image lie relative to its object."""

  distance: np.ndarray  # [B, P], distance to the outline in pixels, negative inside
  u: np.ndarray  # [B, P], coordinate of the object, to the right
  v: np.ndarray  # [B, P], coordinate of the object, downwards


def object_field(
  shape_B: np.ndarray,
  x_B: np.ndarray,
  y_B: np.ndarray,
  scale_B: np.ndarray,
  angle_B: np.ndarray,
  size: int,
) -> Field:
  """Computes the field of one object in each image.

  Args:
    shape_B: shapes, indices into `names.SHAPES`.
    x_B: centres of the objects, to the right; the image reaches from -1 to 1.
    y_B: centres of the objects, downwards.
    scale_B: sizes of the objects' units; half of the image's side is 1.
    angle_B: rotations of the objects in radians.
    size: side of the images in pixels, S.
  """
  dx_BxP = np.tile(_axis(size), size) - x_B[:, None]
  dy_BxP = np.repeat(_axis(size), size) - y_B[:, None]
  cos_Bx1 = (np.cos(angle_B) / scale_B)[:, None]
  sin_Bx1 = (np.sin(angle_B) / scale_B)[:, None]
  u = cos_Bx1 * dx_BxP + sin_Bx1 * dy_BxP
  v = cos_Bx1 * dy_BxP - sin_Bx1 * dx_BxP
  unit_in_pixels = scale_B[:, None] * (size / 2)
  distance = atlas()[shape_B[:, None], _atlas_cell(v), _atlas_cell(u)] * unit_in_pixels
  # Beyond the table, the clipped cell is nearer to the shape than the point. Add an
  # image's side, so that the point is far outside.
  is_beyond = np.maximum(np.abs(u), np.abs(v)) > _ATLAS_REACH
  distance += is_beyond * np.float32(size)
  return Field(distance, u, v)


def _atlas_cell(coordinate: np.ndarray) -> np.ndarray:
  """Row or column of the atlas nearest to a coordinate of an object."""
  half = np.float32(_ATLAS_SIZE / 2)
  per_unit = np.float32(half / _ATLAS_REACH)
  cell = coordinate * per_unit + half
  return np.clip(cell, 0, _ATLAS_SIZE - 1).astype(np.int32)


def _place(
  key_B: np.ndarray, style: Style
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Draws centres x and y, scales and angles [B] of the objects."""
  scale = style.scale + style.scales * uniform(key_B, 0)
  angle = uniform(key_B, 1, -1, 1) * style.angle
  x = uniform(key_B, 2, -1, 1) * style.offset
  y = uniform(key_B, 3, -1, 1) * style.offset
  return x, y, scale, angle


def _blur(image_BxSxSx3: np.ndarray, weight_B: np.ndarray) -> np.ndarray:
  """Blurs images over three pixels (1/4, 1/2, 1/4); a weight of 0 is no blur."""
  weight = weight_B[:, None, None, None]
  for axis in (1, 2):
    at = np.arange(image_BxSxSx3.shape[axis])
    # Repeat the pixels at the border.
    before = image_BxSxSx3.take(np.clip(at - 1, 0, at[-1]), axis)
    after = image_BxSxSx3.take(np.clip(at + 1, 0, at[-1]), axis)
    change = 0.25 * (before + after) - 0.5 * image_BxSxSx3
    image_BxSxSx3 = image_BxSxSx3 + weight * change
  return image_BxSxSx3


def object_and_ground(
  key_B: np.ndarray,
  attributes_BxA: np.ndarray,
  u_BxP: np.ndarray,
  v_BxP: np.ndarray,
  clutter_BxP: np.ndarray,
  depth: float = 0.16,
) -> tuple[np.ndarray, np.ndarray]:
  """Colours the textured object, and the ground with its clutter, without lighting.

  Args:
    key_B: keys of the images, uint64 [B].
    attributes_BxA: colour, texture, shape and ground, indices into `names.WORDS`.
    u_BxP: coordinate of the object at each pixel, to the right.
    v_BxP: coordinate of the object at each pixel, downwards.
    clutter_BxP: strength of the clutter at each pixel, in [0, 1].
    depth: brightness that full clutter adds to a dark ground, or subtracts from a light
      ground.

  Returns:
    sRGB [B, P, 3] of the object, as if it filled the image, and of the ground.
  """
  colours_B, textures_B, _, grounds_B = attributes_BxA.T
  colour_Bx3 = _PALETTE[colours_B] + _tint(key_B, 50)
  # The second tone is always darker than the colour: a small vision tower learns dark
  # patterns more easily.
  tone_Bx3 = colour_Bx3 * 0.38
  pattern_BxP = np.empty_like(u_BxP)
  phase_B = uniform(key_B, 6, 0, 0.3)
  for texture in np.unique(textures_B):
    rows = np.flatnonzero(textures_B == texture)
    pattern = _PATTERNS[TEXTURES[texture]]
    pattern_BxP[rows] = pattern(u_BxP[rows], v_BxP[rows], phase_B[rows, None])
  darkening_Bx1x3 = (tone_Bx3 - colour_Bx3)[:, None]
  object_BxPx3 = colour_Bx3[:, None] + pattern_BxP[..., None] * darkening_Bx1x3

  ground_Bx3 = _PALETTE[grounds_B] + _tint(key_B, 53)
  sign_B = np.sign(0.5 - ground_Bx3 @ _LUMA)  # 1 for a dark ground, -1 for a light one
  change_BxP = clutter_BxP * (depth * sign_B)[:, None]
  ground_BxPx3 = ground_Bx3[:, None] + change_BxP[..., None]
  return object_BxPx3, ground_BxPx3


def _tint(key_B: np.ndarray, channel: int) -> np.ndarray:
  """Draws a random variation of a colour from three channels: [B, 3]."""
  return np.stack([uniform(key_B, channel + c, -0.06, 0.06) for c in range(3)], axis=1)


def clutter(key_B: np.ndarray, size: int) -> np.ndarray:
  """Draws two soft blobs behind the object: float32 [B, P] in [0, 1]."""
  total = 0
  for channel in (60, 64):  # the first random channel of each blob
    x = uniform(key_B, channel, -1, 1)[:, None]
    y = uniform(key_B, channel + 1, -1, 1)[:, None]
    width = uniform(key_B, channel + 2, 0.15, 0.45)[:, None]
    columns_BxS = np.exp(-(((_axis(size) - x) / width) ** 2))
    rows_BxS = np.exp(-(((_axis(size) - y) / width) ** 2))
    blob_BxSxS = rows_BxS[:, :, None] * columns_BxS[:, None, :]
    total = total + blob_BxSxS.reshape(len(key_B), -1)
  return np.minimum(total, 1)


def light(key_B: np.ndarray, strength: float, size: int) -> np.ndarray:
  """Computes a lighting gradient of random direction: factors float32 [B, P].

  Args:
    key_B: keys of the images, uint64 [B].
    strength: change of the factor from the middle to the border; 0 for none.
    size: side of the images in pixels, S.
  """
  x_P = np.tile(_axis(size), size)
  y_P = np.repeat(_axis(size), size)
  direction_B = uniform(key_B, 7, 0, 2 * np.pi)
  level_B = 1 + strength * uniform(key_B, 8, -0.7, 0.5)
  slope_x_B = strength * np.cos(direction_B)
  slope_y_B = strength * np.sin(direction_B)
  return level_B[:, None] + slope_x_B[:, None] * x_P + slope_y_B[:, None] * y_P


def noise(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Draws the sensor noise of one photo: key uint64 [1] -> float32 of a shape."""
  start = int(mix(key)[0] % np.uint64(_NOISE_SIZE))
  return np.float32(PHOTO.noise) * _noise_from(start, shape)


def _noise_from(start: int | np.integer, shape: tuple[int, ...]) -> np.ndarray:
  """Noise of deviation 1, read from the table at a start."""
  return _NOISE[start : start + math.prod(shape)].reshape(shape)


def _inked(
  thing: np.ndarray, ground: np.ndarray, distance: np.ndarray, ink_B: np.ndarray
) -> np.ndarray:
  """Puts the object on its ground and draws the outline: [B, P, 3].

  The outline is black with an ink of 1, and invisible with an ink of 0.
  """
  coverage_BxP = np.clip(0.5 - distance, 0, 1)  # 1 inside, soft over one pixel
  image = ground + coverage_BxP[..., None] * (thing - ground)
  outline_BxP = ink_B[:, None] * np.clip(1.3 - np.abs(distance), 0, 1)
  return image * (1 - outline_BxP[..., None])


def _pixels(key_B: np.ndarray, image_BxSxSx3: np.ndarray, style: Style) -> np.ndarray:
  """Adds noise in place, and converts to bytes: uint8 [B, S, S, 3]."""
  sigma_B = style.noise + style.noises * uniform(key_B, 13)
  start_B = (mix(key_B ^ _CHANNEL_KEYS[14]) % np.uint64(_NOISE_SIZE)).astype(np.int64)
  for image, sigma, start in zip(image_BxSxSx3, sigma_B, start_B, strict=True):
    image += sigma * _noise_from(start, image.shape)
  return np.clip(image_BxSxSx3 * 255 + 0.5, 0, 255).astype(np.uint8)


def _draw(key_B: np.ndarray, attributes_BxA: np.ndarray, style: Style) -> np.ndarray:
  """Renders images of one chunk: uint8 [B, S, S, 3]."""
  is_shifted = style == SHIFTED
  x_B, y_B, scale_B, angle_B = _place(key_B, style)
  field = object_field(attributes_BxA[:, 2], x_B, y_B, scale_B, angle_B, IMAGE_SIZE)
  thing, ground = object_and_ground(
    key_B,
    attributes_BxA,
    field.u,
    field.v,
    clutter(key_B, IMAGE_SIZE),
    depth=0.28 if is_shifted else 0.16,
  )
  ink_B = np.full(len(key_B), 0.8, np.float32)
  if is_shifted:
    ink_B[uniform(key_B, 9) < 0.5] = 0
  image = _inked(thing, ground, field.distance, ink_B)
  image *= light(key_B, style.light, IMAGE_SIZE)[..., None]
  if is_shifted:
    image = _shift_colours(key_B, image)
  image = image.reshape(len(key_B), IMAGE_SIZE, IMAGE_SIZE, 3)
  if is_shifted:
    image = _blur(image, uniform(key_B, 12))
  return _pixels(key_B, image, style)


def _shift_colours(key_B: np.ndarray, image: np.ndarray) -> np.ndarray:
  """Makes the light warm or cold, and lowers the contrast: [B, P, 3]."""
  warm_Bx3 = uniform(key_B, 10, -0.1, 0.1)[:, None] * np.array([1, 0, -1], np.float32)
  contrast = uniform(key_B, 11, 0.6, 1)[:, None, None]
  return 0.5 + contrast * (image + warm_Bx3[:, None] - 0.5)


def render(key_B: np.ndarray, attributes_BxA: np.ndarray, style: Style) -> np.ndarray:
  """Renders images, a chunk at a time so that intermediates fit in the cache.

  Args:
    key_B: keys of the images from `image_keys`, uint64 [B].
    attributes_BxA: colour, texture, shape and ground, indices into `names.WORDS`.
    style: properties of the pictures, `PHOTO` or `SHIFTED`.

  Returns:
    sRGB, uint8 [B, S, S, 3].
  """
  n_images = len(key_B)
  image_BxSxSx3 = np.empty((n_images, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
  for start in range(0, n_images, _CHUNK):
    chunk = slice(start, start + _CHUNK)
    image_BxSxSx3[chunk] = _draw(key_B[chunk], attributes_BxA[chunk], style)
  return image_BxSxSx3
