"""Rendering styles of the pictures that the embedded CLIP is trained on: photos, and
five others.

Shape suffixes as in `pomp_jax.world.render`, whose parts these styles use.
"""

import numpy as np

from pomp_jax.world import render as world

STYLES = {
  "photo": world.PHOTO,
  # Upright, centred, evenly lit, without clutter, as in a catalogue.
  "plate": world.Style(
    0.62, 0.7 - 0.62, offset=0.05, angle=0.03, light=0.03, noise=0.008
  ),
  "close-up": world.Style(0.95, 1.25 - 0.95, offset=0.15),  # the object fills the frame
  # An outline in the object's colour on paper faintly washed with the ground's.
  "sketch": world.Style(light=0.05, noise=0.008),
  "blurry": world.PHOTO,  # a photo out of focus
  "pile": world.PHOTO,  # three to five small instances
}
_MAX_INSTANCES = 5
_CHUNK = 128  # images rendered at once


def render(
  key_B: np.ndarray, attributes_BxA: np.ndarray, style_B: np.ndarray
) -> np.ndarray:
  """Renders images: uint8 [B, S, S, 3]; `style_B` are indices into STYLES, the rest
  as there."""
  size = world.IMAGE_SIZE
  images = np.empty((len(key_B), size, size, 3), np.uint8)
  for s, name in enumerate(STYLES):
    of_style = np.flatnonzero(style_B == s)
    for start in range(0, len(of_style), _CHUNK):
      at = of_style[start : start + _CHUNK]
      images[at] = _draw(key_B[at], attributes_BxA[at], name)
  return images


def _draw(key_B: np.ndarray, attributes_BxA: np.ndarray, name: str) -> np.ndarray:
  style, size = STYLES[name], world.IMAGE_SIZE
  x, y, scale, angle = world._place(key_B, style)
  places = (
    _pile(key_B, x, y, scale, angle) if name == "pile" else [(x, y, scale, angle)]
  )
  distance, u, v = world.object_field(attributes_BxA[:, 2], *places[0], size)
  for place in places[1:]:
    other = world.object_field(attributes_BxA[:, 2], *place, size)
    nearer = other[0] < distance
    distance, u, v = (
      np.where(nearer, new, old)
      for new, old in zip(other, (distance, u, v), strict=True)
    )
  clutter = world.clutter(key_B, size) * (name not in ("plate", "sketch"))
  thing, ground = world.object_and_ground(key_B, attributes_BxA, u, v, clutter)
  ink_B = np.full(len(key_B), 0 if name == "sketch" else 0.8, np.float32)
  if name == "sketch":
    ground = 0.8 + 0.2 * ground
    # Full colour on the outline and along the pattern, a faint wash elsewhere.
    line = np.clip(1.6 - np.abs(distance + 1), 0, 1)[..., None]
    pale = 0.45 + 0.55 * thing
    thing = pale + line * (thing * 0.8 - pale)
  image = world._inked(thing, ground, distance, ink_B)
  image *= world.light(key_B, style.light, size)[..., None]
  image = image.reshape(len(key_B), size, size, 3)
  if name == "blurry":
    full_B = np.ones(len(key_B), np.float32)
    image = world._blur(world._blur(image, full_B), full_B)
  return world._pixels(key_B, image, style)


def _pile(key_B, x, y, scale, angle) -> list[tuple[np.ndarray, ...]]:
  """Centres x, y, scales and angles [B] of the instances; missing ones hide behind
  the first."""
  count_B = np.floor(world.uniform(key_B, 4, 3, 6))
  start = world.uniform(key_B, 5, 0, 2 * np.pi)
  places: list[tuple[np.ndarray, ...]] = []
  for i in range(_MAX_INSTANCES):
    around = start + 2 * np.pi * i / count_B
    radius = world.uniform(key_B, 20 + i, 0.42, 0.56)
    small, turn = (
      world.uniform(key_B, 30 + i, 0.3, 0.4),
      world.uniform(key_B, 40 + i, -0.5, 0.5),
    )
    values = radius * np.cos(around), radius * np.sin(around), small, turn
    first = places[0] if places else (x, y, scale, angle)
    here_B = i < count_B
    places.append(
      tuple(np.where(here_B, new, own) for new, own in zip(values, first, strict=True))
    )
  return places
