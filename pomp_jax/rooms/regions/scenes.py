"""Scenes of three to five objects on one ground, with masks, boxes and labels.

An object has one of the classes with the scene's ground, in training scenes a base
class. Objects are as large as in the CLIP's training pictures; later objects are in
front. A scene depends on seed, split and number. Shapes: S side in pixels, P = S *
S pixels, R objects of a scene, N classes, A attributes of a class.
"""

from typing import Any, NamedTuple

import numpy as np

from pomp_jax.rooms.regions.masks import boxes_of_masks, run_lengths_of
from pomp_jax.world import render
from pomp_jax.world.names import COLOURS, class_attributes, class_names, mix

SIZE = 120  # S
# Random stream of each split; the splits with single objects have other streams.
_STREAMS = {"train": 20, "test": 22}
_MAX_OBJECTS = 5
_ATTEMPTS = 40  # positions tried in a scene
_SCALES = (0.55, 0.85)  # least and largest scale in the frame of a training picture
_MIN_DISTANCE = 1.1  # least distance of two centres, relative to the sum of the scales
_MIN_VISIBLE = 0.3  # least visible share of an object; other objects are dropped


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


class _Placed(NamedTuple):
  """Objects of a scene, from behind to the front."""

  keys: np.ndarray  # uint64 [R]
  x: np.ndarray  # float32 [R], centres; the scene reaches from -1 to 1
  y: np.ndarray
  scale: np.ndarray  # float32 [R]; 1 is half of the scene's side
  angle: np.ndarray  # float32 [R], radians


class Scenes:
  """Scenes of a split.

  `names` and `groups` are those of the N classes, first "base", then "novel".
  """

  def __init__(self, split: str, n_scenes: int, n_classes: int = 2400, seed: int = 0):
    """Opens a split.

    Each of the 12 grounds has N / 12 of the classes, three quarters of them base. The
    classes do not depend on the seed. Those of a smaller N are among those of a larger
    N.

    Args:
      split: "train", whose objects are of base classes only, or "test".
      n_scenes: number of scenes.
      n_classes: number of classes, N; a multiple of 48.
      seed: random seed of the scenes.
    """
    self._keys = render.image_keys(seed, _STREAMS[split], np.arange(n_scenes))
    novel_per_ground = n_classes // (4 * len(COLOURS))
    per_ground = {"base": 3 * novel_per_ground, "novel": novel_per_ground}
    names = []
    groups = []
    attributes = []
    for group, n in per_ground.items():
      classes = _classes(group, n)
      names += [class_names(group)[c] for c in classes]
      groups += [group] * len(classes)
      attributes.append(class_attributes(group)[classes])
    self.names = tuple(names)
    self.groups = tuple(groups)
    self._attributes_NxA = np.concatenate(attributes)
    in_split_N = np.full(len(names), True)
    if split == "train":
      in_split_N = np.array(groups) == "base"
    grounds_N = self._attributes_NxA[:, 3]
    self._classes_of_ground = [
      np.flatnonzero(in_split_N & (grounds_N == ground))
      for ground in range(len(COLOURS))
    ]

  def __len__(self) -> int:
    return len(self._keys)

  def scene(self, index: int) -> Scene:
    """Renders one scene; IndexError if there is no scene of that number."""
    key = self._keys[index : index + 1]
    ground = _integers(key, 0, len(COLOURS))[0]
    classes = self._classes_of_ground[ground]
    placed = _place(key)
    labels = classes[_integers(placed.keys, 4, len(classes))]
    image, masks, visible = _draw(key, placed, self._attributes_NxA[labels])
    masks = masks[visible]
    labels = labels[visible].astype(np.int32)
    return Scene(image, masks, boxes_of_masks(masks), labels)

  def annotations(self) -> dict[str, Any]:
    """All scenes in the form of a COCO JSON file, with RLE; ids count from 1."""
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for index in range(len(self)):
      image_id = index + 1
      images.append(
        {"id": image_id, "file_name": f"{index:06}.png", "height": SIZE, "width": SIZE}
      )
      scene = self.scene(index)
      for mask, box, label in zip(scene.masks, scene.boxes, scene.labels, strict=True):
        corner = box[:2]
        sides = box[2:] - corner
        objects.append(
          {
            "id": len(objects) + 1,
            "image_id": image_id,
            "category_id": int(label) + 1,
            "iscrowd": 0,
            "bbox": [*corner.tolist(), *sides.tolist()],
            "area": int(mask.sum()),
            "segmentation": run_lengths_of(mask),
          }
        )
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(self.names)]
    return {"images": images, "annotations": objects, "categories": categories}


def _classes(group: str, per_ground: int) -> np.ndarray:
  """Picks `per_ground` classes of each ground in a group by a hash: sorted int [n]."""
  grounds = class_attributes(group)[:, 3]
  order = np.argsort(mix(np.arange(len(grounds), dtype=np.uint64)), kind="stable")
  chosen = [
    order[grounds[order] == ground][:per_ground] for ground in range(len(COLOURS))
  ]
  return np.sort(np.concatenate(chosen))


def _uniform(
  keys: np.ndarray, channel: int, low: float = 0.0, high: float = 1.0
) -> np.ndarray:
  """Random numbers, from channels that the renderer's objects do not use."""
  return render.uniform(keys, 80 + channel, low, high)


def _integers(keys: np.ndarray, channel: int, n: int) -> np.ndarray:
  """Random integers in [0, n)."""
  return (_uniform(keys, channel).astype(np.float64) * n).astype(np.int64)


def _place(key: np.ndarray) -> _Placed:
  """Places three to five objects that do not cover one another much.

  Random places are tried in turn. A place is taken if it is far enough from all places
  that were taken before.
  """
  numbers = np.arange(1, _ATTEMPTS + 1, dtype=np.uint64)
  keys = mix(key ^ mix(numbers))
  least, largest = _SCALES
  # Convert the scales of the smaller training pictures to those of a scene.
  scale = _uniform(keys, 1, least, largest) * np.float32(render.IMAGE_SIZE / SIZE)
  # Draw centres so that the whole object is inside the scene.
  x = _uniform(keys, 2, -1.0, 1.0) * (1 - scale)
  y = _uniform(keys, 3, -1.0, 1.0) * (1 - scale)
  angle = _uniform(keys, 5, -0.2, 0.2)
  n_objects = 3 + _integers(key, 1, _MAX_OBJECTS - 2)[0]
  taken: list[int] = []
  for attempt in range(_ATTEMPTS):
    if len(taken) == n_objects:
      break
    distance = np.hypot(x[taken] - x[attempt], y[taken] - y[attempt])
    least_distance = _MIN_DISTANCE * (scale[taken] + scale[attempt])
    if (distance > least_distance).all():
      taken.append(attempt)
  rows = np.array(taken)
  return _Placed(
    keys=keys[rows], x=x[rows], y=y[rows], scale=scale[rows], angle=angle[rows]
  )


def _draw(
  key: np.ndarray, placed: _Placed, attributes_RxA: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws a scene from behind to the front.

  Returns:
    The image, uint8 [S,S,3]; the visible pixels of each object, bool [R,S,S]; whether
    enough of each object is visible, bool [R].
  """
  field = render.object_field(
    attributes_RxA[:, 2], placed.x, placed.y, placed.scale, placed.angle, SIZE
  )
  no_clutter = np.zeros_like(field.u)
  things_RxPx3, _ = render.object_and_ground(
    placed.keys, attributes_RxA, field.u, field.v, no_clutter
  )
  image_Px3 = _ground(key, attributes_RxA[:1], field)
  owner_P = np.full(SIZE * SIZE, -1)
  for i, (thing_Px3, distance_P) in enumerate(
    zip(things_RxPx3, field.distance, strict=True)
  ):
    coverage_P = np.clip(0.5 - distance_P, 0, 1)  # 1 inside, soft over one pixel
    image_Px3 = image_Px3 + coverage_P[:, None] * (thing_Px3 - image_Px3)
    outline_P = np.clip(1.3 - np.abs(distance_P), 0, 1)
    image_Px3 *= 1 - 0.8 * outline_P[:, None]
    owner_P[distance_P < 0] = i
  image_Px3 = image_Px3 * render.light(key, render.PHOTO.light, SIZE)[0][:, None]
  image_Px3 += render.noise(key, image_Px3.shape)
  pixels_Px3 = np.clip(image_Px3 * 255 + 0.5, 0, 255).astype(np.uint8)

  masks = owner_P.reshape(SIZE, SIZE) == np.arange(len(placed.keys))[:, None, None]
  n_visible_R = masks.sum((1, 2))
  n_inside_R = (field.distance < 0).sum(1)
  is_visible_R = n_visible_R >= _MIN_VISIBLE * n_inside_R
  return pixels_Px3.reshape(SIZE, SIZE, 3), masks, is_visible_R


def _ground(
  key: np.ndarray, attributes_1xA: np.ndarray, field: render.Field
) -> np.ndarray:
  """The ground that all objects of a scene stand on, with its clutter: [P,3]."""
  clutter = render.clutter(key, SIZE)
  _, ground_1xPx3 = render.object_and_ground(
    key, attributes_1xA, field.u[:1], field.v[:1], clutter
  )
  return ground_1xPx3[0]
