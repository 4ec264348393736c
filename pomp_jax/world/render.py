"""Renders images from attributes, a style and random keys, in NumPy.

An image is a function of its 64-bit key, whatever the batch; processors may round sines
otherwise. An object is about 2 units across and centred at the origin, with u to the
right and v down. Shapes: B images, A = 4 attributes (colour, texture, shape, ground), P
= S * S pixels.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from pomp_jax.world.names import SHAPES, TEXTURES, mix

# Whether points (u, v) are inside a part of a shape: bool, shaped as u.
_Part = Callable[[np.ndarray, np.ndarray], np.ndarray]

IMAGE_SIZE = 40  # S, pixels


class Style(NamedTuple):
  """Properties of pictures; those that vary have a range from the least value."""

  scale: float = 0.6
  scales: float = 0.78 - 0.6  # range
  offset: float = 0.1  # largest
  angle: float = 0.2  # largest
  light: float = 0.22  # strength of its gradient
  noise: float = 0.035
  noises: float = 0.0  # range


# One inked object under a lighting gradient, soft clutter behind it, sensor noise.
PHOTO = Style()
# Only for tests: warm or cold light, blur, low contrast, half of the time without dark
# outline.
SHIFTED = Style(0.5, 0.9 - 0.5, angle=0.35, light=0.4, noise=0.02, noises=0.1 - 0.02)

_ATLAS_SIZE = 128  # samples along each side of a shape's tabulated distance field
_ATLAS_REACH = 1.6  # the field covers [-reach, reach] in u and v

# sRGB, in the order of names.COLOURS.
_PALETTE = np.array(
  [
    (226, 50, 50), (142, 36, 62), (244, 140, 36), (248, 222, 70),
    (52, 172, 76), (146, 150, 52), (28, 154, 148), (124, 200, 244),
    (52, 70, 170), (150, 80, 190), (140, 140, 140), (244, 244, 244),
  ],
  np.float32,
) / 255  # fmt: skip
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# images rendered at once, so that intermediates fit in the processor's cache
_CHUNK = 128

# Keys of an image's random channels, one a property.
_CHANNEL_KEYS = mix(np.arange(96, dtype=np.uint64) << np.uint64(20))


def _uniform(key_B: np.ndarray, channel: int, low=0.0, high=1.0) -> np.ndarray:
  """Uniform numbers in [low, high) of a channel: float32 [B]."""
  bits = mix(key_B ^ _CHANNEL_KEYS[channel]) >> np.uint64(40)
  return (low + (high - low) * (bits.astype(np.float32) / np.float32(1 << 24))).astype(
    np.float32
  )


def image_keys(seed: int, stream: int, indices: np.ndarray) -> np.ndarray:
  """Keys of images in a stream: uint64 [B]; streams and seeds do not overlap."""
  root = mix(np.array([seed], np.uint64))
  root = mix(root ^ mix(np.array([stream], np.uint64) + np.uint64(0x57)))
  return mix(root ^ np.asarray(indices).astype(np.uint64))


_NOISE_SIZE = 128 * 128 * 3
# Noise of mean 0 and deviation 1, approximately normal (Irwin-Hall of four); two equal
# halves. Each picture reads its noise from a random start. Drawing it per pixel would
# cost more than all else.
_UNIFORM = mix(np.arange(4 * _NOISE_SIZE, dtype=np.uint64).reshape(4, -1)) >> np.uint64(
  40
)
_NOISE = _UNIFORM.astype(np.float32) / np.float32(1 << 24)
_NOISE = np.tile(((_NOISE.sum(0) - 2) * np.sqrt(3)).astype(np.float32), 2)


def _polygon(*corners) -> _Part:
  """Even-odd rule."""

  def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    within = np.zeros(u.shape, bool)
    for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
      if v0 != v1:
        within ^= ((v0 > v) != (v1 > v)) & (u < u0 + (v - v0) * (u1 - u0) / (v1 - v0))
    return within

  return inside


def _radial(radii: list[float]) -> _Part:
  """Polygon whose corners have these radii around the origin, starting upwards."""
  angles = [2 * np.pi * i / len(radii) - np.pi / 2 for i in range(len(radii))]
  return _polygon(
    *((r * np.cos(a), r * np.sin(a)) for r, a in zip(radii, angles, strict=True))
  )


def _disc(u0, v0, radius) -> _Part:
  return lambda u, v: (u - u0) ** 2 + (v - v0) ** 2 < radius**2


def _box(u0, v0, u1, v1) -> _Part:
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
    *(_disc(0, -0.35, 0.62), _disc(0, 0.76, 0.3), _disc(0, -0.98, 0.17)),
  ],
  "star": [_radial(5 * [1.18, 0.52])],
  "flower": [
    *(_disc(0.66 * np.cos(a), 0.66 * np.sin(a), 0.4) for a in np.arange(6) * np.pi / 3),
    _disc(0, 0, 0.5),
  ],
  "cross": [_box(-1.05, -0.37, 1.05, 0.37), _box(-0.37, -1.05, 0.37, 1.05)],
  "lightning bolt": [
    _polygon(
      *((0.25, -1.2), (-0.8, 0.18), (-0.12, 0.18), (-0.4, 1.2)),
      *((0.8, -0.32), (0.1, -0.32), (0.75, -1.2)),
    )
  ],
  "heart": [
    *(_disc(-0.48, -0.38, 0.56), _disc(0.48, -0.38, 0.56)),
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
  """Signed distance in samples, negative inside: float32, from bool [v, u]."""
  edge = inside & ~ndimage.binary_erosion(inside)
  distance = ndimage.distance_transform_edt(~edge).astype(np.float32)
  # Edge samples are the outermost inside ones. The outline is half a step outside them.
  return np.where(inside, -distance - 0.5, distance - 0.5)


@functools.cache
def atlas() -> np.ndarray:
  """Signed distances (object units, negative inside): float32 [shapes, v, u]."""
  step = 2 * _ATLAS_REACH / _ATLAS_SIZE
  axis = (np.arange(_ATLAS_SIZE) + 0.5) * step - _ATLAS_REACH
  u, v = np.meshgrid(axis, axis)
  inside = [np.any([part(u, v) for part in _PARTS[shape]], axis=0) for shape in SHAPES]
  return np.stack([_distance(one) * np.float32(step) for one in inside])


def _axis(size: int) -> np.ndarray:
  """Centres of the pixels along a side, from -1 to 1: float32 [S]."""
  return (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1


def _fract(x: np.ndarray) -> np.ndarray:
  return x - np.floor(x)


def _wave(x: np.ndarray) -> np.ndarray:
  """Stripe profile of period 1 in [0, 1]: a steepened, clipped triangle wave."""
  return np.clip((np.abs(2 * _fract(x) - 1) - 0.5) * 3 + 0.5, 0, 1)


def _dots(x, y, radius, sharpness) -> np.ndarray:
  dx, dy = _fract(x) - 0.5, _fract(y) - 0.5
  return np.clip((radius - np.sqrt(dx * dx + dy * dy)) * sharpness + 0.5, 0, 1)


# Amount of the second tone at each point, in [0, 1], shaped as u, at a random phase p.
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


def _field(shape_B, x_B, y_B, scale_B, angle_B, size: int):
  """Signed distance (pixels) to the object, and object coordinates u, v: [B, P]
  each."""
  half = np.float32(_ATLAS_SIZE / 2)
  per_unit = np.float32(half / _ATLAS_REACH)
  turn_x, turn_y = ((turn(angle_B) / scale_B)[:, None] for turn in (np.cos, np.sin))
  dx = np.tile(_axis(size), size) - x_B[:, None]
  dy = np.repeat(_axis(size), size) - y_B[:, None]
  u, v = turn_x * dx + turn_y * dy, turn_x * dy - turn_y * dx
  column, row = (
    np.clip(c * per_unit + half, 0, _ATLAS_SIZE - 1).astype(np.int32) for c in (u, v)
  )
  distance = atlas()[shape_B[:, None], row, column] * (scale_B[:, None] * (size / 2))
  # Beyond the table, the clipped cell is nearer than the point.
  distance += (np.maximum(np.abs(u), np.abs(v)) > _ATLAS_REACH) * np.float32(size)
  return distance, u, v


def _place(key_B: np.ndarray, style: Style):
  """Centres x, y, scales and angles [B] of the objects."""
  scale = style.scale + style.scales * _uniform(key_B, 0)
  angle = _uniform(key_B, 1, -1, 1) * style.angle
  x, y = (_uniform(key_B, channel, -1, 1) * style.offset for channel in (2, 3))
  return x, y, scale, angle


def _blur(image_BxSxSx3: np.ndarray, weight_B: np.ndarray) -> np.ndarray:
  """Binomial blur of three pixels, weighted [B] from 0 (none) to 1 (full)."""
  weight = weight_B[:, None, None, None]
  for axis in (1, 2):
    at = np.arange(image_BxSxSx3.shape[axis])
    before, after = (
      image_BxSxSx3.take(np.clip(at + s, 0, at[-1]), axis) for s in (-1, 1)
    )
    image_BxSxSx3 = image_BxSxSx3 + weight * (
      0.25 * (before + after) - 0.5 * image_BxSxSx3
    )
  return image_BxSxSx3


def _object_and_ground(key_B, attributes_BxA, u, v, clutter, depth=0.16):
  """Unlit colours [B, P, 3] of the textured object, and of the ground with its
  clutter."""
  colour_Bx3 = _PALETTE[attributes_BxA[:, 0]] + _tint(key_B, 50)
  ground_Bx3 = _PALETTE[attributes_BxA[:, 3]] + _tint(key_B, 53)
  # Patterns are always darker than the colour, which a small vision tower learns more
  # easily.
  tone_Bx3 = colour_Bx3 * 0.38
  pattern_BxP = np.empty_like(u)
  phase_B = _uniform(key_B, 6, 0, 0.3)
  for t in np.unique(attributes_BxA[:, 1]):
    at = np.flatnonzero(attributes_BxA[:, 1] == t)
    pattern_BxP[at] = _PATTERNS[TEXTURES[t]](u[at], v[at], phase_B[at, None])
  thing = (
    colour_Bx3[:, None] + pattern_BxP[..., None] * (tone_Bx3 - colour_Bx3)[:, None]
  )
  depth_B = depth * np.sign(0.5 - ground_Bx3 @ _LUMA)
  return thing, ground_Bx3[:, None] + (clutter * depth_B[:, None])[..., None]


def _tint(key_B: np.ndarray, channel: int) -> np.ndarray:
  """Random variation of a colour: [B, 3]."""
  return np.stack([_uniform(key_B, channel + c, -0.06, 0.06) for c in range(3)], axis=1)


def _clutter(key_B: np.ndarray, size: int) -> np.ndarray:
  """Two soft blobs behind the object: float32 [B, P] in [0, 1]."""
  total = 0
  for i in (60, 64):
    x, y = _uniform(key_B, i, -1, 1)[:, None], _uniform(key_B, i + 1, -1, 1)[:, None]
    width = _uniform(key_B, i + 2, 0.15, 0.45)[:, None]
    ex, ey = (np.exp(-(((_axis(size) - centre) / width) ** 2)) for centre in (x, y))
    total = total + (ey[:, :, None] * ex[:, None, :]).reshape(len(key_B), -1)
  return np.minimum(total, 1)


def _light(key_B: np.ndarray, strength: float, size: int) -> np.ndarray:
  """Brightness of each pixel: float32 [B, P]."""
  x_P, y_P = np.tile(_axis(size), size), np.repeat(_axis(size), size)
  direction = _uniform(key_B, 7, 0, 2 * np.pi)
  level = 1 + strength * _uniform(key_B, 8, -0.7, 0.5)
  slope_x, slope_y = strength * np.cos(direction), strength * np.sin(direction)
  return level[:, None] + slope_x[:, None] * x_P + slope_y[:, None] * y_P


def _inked(thing, ground, distance, ink_B) -> np.ndarray:
  """The object on its ground, with an outline that is dark at an ink of 1: [B, P,
  3]."""
  image = ground + np.clip(0.5 - distance, 0, 1)[..., None] * (thing - ground)
  return image * (
    1 - (ink_B[:, None] * np.clip(1.3 - np.abs(distance), 0, 1))[..., None]
  )


def _pixels(key_B: np.ndarray, image_BxSxSx3: np.ndarray, style: Style) -> np.ndarray:
  """Adds noise: uint8 [B, S, S, 3]."""
  sigma_B = style.noise + style.noises * _uniform(key_B, 13)
  start_B = (mix(key_B ^ _CHANNEL_KEYS[14]) % np.uint64(_NOISE_SIZE)).astype(np.int64)
  for image, sigma, start in zip(image_BxSxSx3, sigma_B, start_B, strict=True):
    image += sigma * _NOISE[start : start + image.size].reshape(image.shape)
  return np.clip(image_BxSxSx3 * 255 + 0.5, 0, 255).astype(np.uint8)


def _draw(key_B, attributes_BxA, style):
  distance, u, v = _field(attributes_BxA[:, 2], *_place(key_B, style), IMAGE_SIZE)
  clutter, shifted = _clutter(key_B, IMAGE_SIZE), style == SHIFTED
  depth, ink_B = (0.28 if shifted else 0.16), np.full(len(key_B), 0.8, np.float32)
  thing, ground = _object_and_ground(key_B, attributes_BxA, u, v, clutter, depth)
  if shifted:
    ink_B[_uniform(key_B, 9) < 0.5] = 0
  image = _inked(thing, ground, distance, ink_B)
  image *= _light(key_B, style.light, IMAGE_SIZE)[..., None]
  if shifted:
    warm = _uniform(key_B, 10, -0.1, 0.1)[:, None] * np.array([1, 0, -1], np.float32)
    contrast = _uniform(key_B, 11, 0.6, 1)[:, None, None]
    image = 0.5 + contrast * (image + warm[:, None] - 0.5)
  image = image.reshape(len(key_B), IMAGE_SIZE, IMAGE_SIZE, 3)
  return _pixels(key_B, _blur(image, _uniform(key_B, 12)) if shifted else image, style)


def render(key_B: np.ndarray, attributes_BxA: np.ndarray, style: Style) -> np.ndarray:
  """Renders images: uint8 [B, S, S, 3], sRGB.

  `key_B` are of `image_keys`, the attributes indices into `names.WORDS`.
  """
  image = np.empty((len(key_B), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
  for start in range(0, len(key_B), _CHUNK):
    part = slice(start, start + _CHUNK)
    image[part] = _draw(key_B[part], attributes_BxA[part], style)
  return image
