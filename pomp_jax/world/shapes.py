"""Outlines of the world's objects: one tabulated signed distance field a shape.

Object coordinates: u to the right, v down, an object about 2 units across, centred at the origin.
"""

import functools

import numpy as np

from pomp_jax.world.names import SHAPES

ATLAS_SIZE = 128  # samples along each side of a tabulated field
ATLAS_REACH = 1.6  # the field covers [-reach, reach] in u and v


def _polygon(u: np.ndarray, v: np.ndarray, corners: list) -> np.ndarray:
  """Even-odd rule: bool, shaped as u."""
  inside = np.zeros(u.shape, bool)
  for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
    if v0 != v1:
      inside ^= ((v0 > v) != (v1 > v)) & (u < u0 + (v - v0) * (u1 - u0) / (v1 - v0))
  return inside


def _radial(n: int, radii: tuple[float, ...], turn: float = 0.0) -> list:
  """Corners around the origin with radii that cycle through `radii`, starting upwards."""
  corners = []
  for i in range(n * len(radii)):
    angle = 2 * np.pi * i / (n * len(radii)) - np.pi / 2 + turn
    radius = radii[i % len(radii)]
    corners.append((radius * np.cos(angle), radius * np.sin(angle)))
  return corners


def _disc(u, v, u0, v0, radius):
  return (u - u0) ** 2 + (v - v0) ** 2 < radius**2


def _box(u, v, u0, v0, u1, v1):
  return (u > u0) & (u < u1) & (v > v0) & (v < v1)


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
  """Whether points are inside a shape: bool, shaped as u and v."""
  match shape:
    case "disc":
      return _disc(u, v, 0, 0, 0.92)
    case "hexagon":
      return _polygon(u, v, _radial(6, (1.02,)))
    case "ring":
      return _disc(u, v, 0, 0, 1.0) & ~_disc(u, v, 0, 0, 0.42)
    case "crescent moon":
      return _disc(u, v, 0.1, 0, 1.05) & ~_disc(u, v, 0.62, 0, 0.78)
    case "square":
      return _box(u, v, -0.82, -0.82, 0.82, 0.82)
    case "house":
      roof = _polygon(u, v, [(0, -1.1), (1.1, -0.12), (-1.1, -0.12)])
      return roof | _box(u, v, -0.76, -0.2, 0.76, 0.95)
    case "bell":
      dome = _disc(u, v, 0, -0.35, 0.62)
      skirt = _polygon(u, v, [(-0.62, -0.35), (0.62, -0.35), (1.02, 0.62), (-1.02, 0.62)])
      return dome | skirt | _disc(u, v, 0, 0.76, 0.3) | _disc(u, v, 0, -0.98, 0.17)
    case "star":
      return _polygon(u, v, _radial(5, (1.18, 0.52)))
    case "flower":
      angles = np.arange(6) * np.pi / 3
      petals = [_disc(u, v, 0.66 * np.cos(a), 0.66 * np.sin(a), 0.4) for a in angles]
      return np.any(petals, axis=0) | _disc(u, v, 0, 0, 0.5)
    case "cross":
      return _box(u, v, -1.05, -0.37, 1.05, 0.37) | _box(u, v, -0.37, -1.05, 0.37, 1.05)
    case "lightning bolt":
      return _polygon(
        u, v,
        [(0.25, -1.2), (-0.8, 0.18), (-0.12, 0.18), (-0.4, 1.2), (0.8, -0.32), (0.1, -0.32),
         (0.75, -1.2)],
      )  # fmt: skip
    case "heart":
      lobes = _disc(u, v, -0.48, -0.38, 0.56) | _disc(u, v, 0.48, -0.38, 0.56)
      return lobes | _polygon(u, v, [(-0.98, -0.12), (0, -0.5), (0.98, -0.12), (0, 1.08)])
    case "leaf":
      blade = _disc(u, v, -0.75, 0, 1.25) & _disc(u, v, 0.75, 0, 1.25)
      return blade | _box(u, v, -0.1, 0.8, 0.1, 1.3)
    case "triangle":
      return _polygon(u, v, [(0, -1.1), (1.1, 0.82), (-1.1, 0.82)])
    case "arrow":
      head = _polygon(u, v, [(0, -1.15), (0.98, 0), (-0.98, 0)])
      return head | _box(u, v, -0.4, -0.1, 0.4, 1.1)
    case "fish":
      body = ((u + 0.22) / 0.92) ** 2 + (v / 0.62) ** 2 < 1
      return body | _polygon(u, v, [(0.35, 0), (1.2, -0.68), (1.2, 0.68)])
    case "mushroom":
      cap = ((u / 1.1) ** 2 + ((v + 0.05) / 1.0) ** 2 < 1) & (v < -0.02)
      return cap | _box(u, v, -0.34, -0.1, 0.34, 1.0)
  raise ValueError(f"no outline for the shape {shape!r}")


def _distance(inside: np.ndarray, step: float) -> np.ndarray:
  """Signed distance of every sample to the outline, negative inside, by brute force."""
  edge = np.zeros_like(inside)
  for axis in (0, 1):
    for shift in (-1, 1):
      edge |= inside & ~np.roll(inside, shift, axis)
  edge_Ex2 = np.argwhere(edge).astype(np.float32)
  size = len(inside)
  points_Px2 = np.indices((size, size)).reshape(2, -1).T.astype(np.float32)
  squared = np.concatenate(
    [((chunk[:, None] - edge_Ex2) ** 2).sum(-1).min(1) for chunk in np.array_split(points_Px2, 32)]
  )
  # Edge samples are the outermost inside ones. The outline is half a step outside them.
  distance = np.sqrt(squared).reshape(size, size)
  return (np.where(inside, -distance - 0.5, distance - 0.5) * step).astype(np.float32)


@functools.cache
def atlas() -> np.ndarray:
  """Signed distances (object units, negative inside): float32 [shapes, v, u]."""
  step = 2 * ATLAS_REACH / ATLAS_SIZE
  axis = (np.arange(ATLAS_SIZE) + 0.5) * step - ATLAS_REACH
  u, v = np.meshgrid(axis, axis)
  return np.stack([_distance(_inside(shape, u, v), step) for shape in SHAPES])
