"""Scenes of three to five objects on one ground, with masks, boxes and labels.

The classes are those of the ground, in training scenes base classes only. Objects have
their size in the CLIP's training pictures; later ones are in front. A scene depends on
seed, split and number. Shapes: S side in pixels, P = S * S pixels, R objects of a
scene, N classes.
"""

from typing import Any, NamedTuple

import numpy as np

from pomp_jax.rooms.regions.masks import boxes_of_masks, run_lengths_of
from pomp_jax.world import render
from pomp_jax.world.names import COLOURS, class_attributes, class_names, mix

SIZE = 120  # S
# Random stream of each split; the splits of single objects have others.
_STREAMS = {"train": 20, "test": 22}
_MAX_OBJECTS = 5
_ATTEMPTS = 40  # positions tried in a scene
_SCALES = (0.55, 0.85)  # of the frame of a training picture
_MIN_DISTANCE = 1.1  # between centres, of the sum of two objects' scales
_MIN_VISIBLE = 0.3  # of an object's pixels; others are dropped


class Scene(NamedTuple):
  """One scene."""

  image: np.ndarray  # uint8 [S,S,3], sRGB
  masks: np.ndarray  # bool [R,S,S], visible pixels of each object
  # float32 [R,4] around the masks: x0, y0, x1, y1 in pixels, ends exclusive
  boxes: np.ndarray
  labels: np.ndarray  # int32 [R], classes

  def label_map(self) -> np.ndarray:
    """Class of each pixel, -1 on the ground: int32 [S,S]."""
    labels = np.full(self.image.shape[:2], -1, np.int32)
    for mask, label in zip(self.masks, self.labels, strict=True):
      labels[mask] = label
    return labels


class Scenes:
  """Scenes of a split; `names` of the N classes and their `groups`, first "base",
  then "novel"."""

  def __init__(self, split: str, n_scenes: int, n_classes: int = 2400, seed: int = 0):
    """Opens "train" (base classes only) or "test".

    Each of the 12 grounds has as many of the classes, a multiple of 48, three quarters
    of them base, the same for all seeds. The classes of a smaller number are among
    those of a larger one.
    """
    novel_per_ground = n_classes // (4 * len(COLOURS))
    self._keys = render.image_keys(seed, _STREAMS[split], np.arange(n_scenes))
    parts = {"base": 3 * novel_per_ground, "novel": novel_per_ground}
    picked = {group: _classes(group, n) for group, n in parts.items()}
    self.names = tuple(
      class_names(g)[c] for g, classes in picked.items() for c in classes
    )
    self.groups = tuple(g for g, classes in picked.items() for _ in classes)
    attributes = [class_attributes(group)[classes] for group, classes in picked.items()]
    self._attributes_NxA = np.concatenate(attributes)
    shown = (
      np.array(self.groups) == "base"
      if split != "test"
      else np.ones(len(self.names), bool)
    )
    grounds_N = self._attributes_NxA[:, 3]
    self._of_ground = [
      np.flatnonzero(shown & (grounds_N == g)) for g in range(len(COLOURS))
    ]

  def __len__(self) -> int:
    return len(self._keys)

  def scene(self, index: int) -> Scene:
    """Renders one scene; IndexError if there is no such one."""
    key = self._keys[index : index + 1]
    classes = self._of_ground[_integers(key, 0, len(COLOURS))[0]]
    objects, x, y, scale, angle = _places(key)
    labels = classes[_integers(objects, 4, len(classes))]
    image, masks, visible = _draw(
      key, objects, self._attributes_NxA[labels], x, y, scale, angle
    )
    masks, labels = masks[visible], labels[visible].astype(np.int32)
    return Scene(image, masks, boxes_of_masks(masks), labels)

  def annotations(self) -> dict[str, Any]:
    """All scenes in the form of a COCO JSON file, with RLE; ids count from 1."""
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(self.names)]
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for index in range(len(self)):
      scene = self.scene(index)
      number = index + 1
      images.append(
        {"id": number, "file_name": f"{index:06}.png", "height": SIZE, "width": SIZE}
      )
      for mask, box, label in zip(
        scene.masks, scene.boxes, scene.labels.tolist(), strict=True
      ):
        row = {
          "id": len(rows) + 1,
          "image_id": number,
          "category_id": label + 1,
          "iscrowd": 0,
        }
        row |= {
          "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
          "area": int(mask.sum()),
        }
        rows.append(row | {"segmentation": run_lengths_of(mask)})
    return {"images": images, "annotations": rows, "categories": categories}


def _classes(group: str, per_ground: int) -> np.ndarray:
  """Classes of a group, the same number of each ground, chosen by a hash: sorted int
  [n]."""
  grounds = class_attributes(group)[:, 3]
  order = np.argsort(mix(np.arange(len(grounds), dtype=np.uint64)), kind="stable")
  of_ground = [order[grounds[order] == g] for g in range(len(COLOURS))]
  return np.sort(np.concatenate([own[:per_ground] for own in of_ground]))


def _uniform(
  keys: np.ndarray, channel: int, low: float = 0.0, high: float = 1.0
) -> np.ndarray:
  """Random numbers of the channels that the renderer's objects do not use."""
  return render._uniform(keys, 80 + channel, low, high)


def _integers(keys: np.ndarray, channel: int, n: int) -> np.ndarray:
  """Random integers in [0, n)."""
  return (_uniform(keys, channel).astype(np.float64) * n).astype(np.int64)


def _places(key: np.ndarray):
  """Keys of the objects, their centres and scales in units of half the scene, and
  angles: [R]."""
  tries = mix(key ^ mix(np.arange(1, _ATTEMPTS + 1, dtype=np.uint64)))
  scale = _uniform(tries, 1, *_SCALES) * np.float32(render.IMAGE_SIZE / SIZE)
  x, y = (_uniform(tries, channel, -1.0, 1.0) * (1 - scale) for channel in (2, 3))
  count = 3 + _integers(key, 1, _MAX_OBJECTS - 2)[0]
  placed: list[int] = []
  for i in range(_ATTEMPTS):
    distance = np.hypot(x[placed] - x[i], y[placed] - y[i])
    apart = distance > _MIN_DISTANCE * (scale[placed] + scale[i])
    if len(placed) < count and apart.all():
      placed.append(i)
  keep = np.array(placed)
  angle = _uniform(tries, 5, -0.2, 0.2)
  return tries[keep], x[keep], y[keep], scale[keep], angle[keep]


def _draw(key, objects, attributes_RxA, x_R, y_R, scale_R, angle_R):
  """The image, the visible masks, and whether enough of each object is visible."""
  distance, u, v = render._field(attributes_RxA[:, 2], x_R, y_R, scale_R, angle_R, SIZE)
  things, _ = render._object_and_ground(objects, attributes_RxA, u, v, 0 * u)
  clutter = render._clutter(key, SIZE)
  _, ground = render._object_and_ground(key, attributes_RxA[:1], u[:1], v[:1], clutter)
  image, owner_P = ground[0], np.full(SIZE * SIZE, -1)
  for i, (thing, own) in enumerate(zip(things, distance, strict=True)):
    image = image + np.clip(0.5 - own, 0, 1)[:, None] * (thing - image)
    image *= 1 - 0.8 * np.clip(1.3 - np.abs(own), 0, 1)[:, None]  # a dark outline
    owner_P[own < 0] = i
  image = image * render._light(key, render.PHOTO.light, SIZE)[0][:, None]
  start = int(mix(key)[0] % np.uint64(render._NOISE_SIZE))
  image += np.float32(0.035) * render._NOISE[start : start + image.size].reshape(
    image.shape
  )
  masks = owner_P.reshape(SIZE, SIZE) == np.arange(len(objects))[:, None, None]
  visible = masks.sum((1, 2)) >= _MIN_VISIBLE * (distance < 0).sum(1)
  pixels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
  return pixels.reshape(SIZE, SIZE, 3), masks, visible
