"""Images with region maps, as `config.train_masks` names them; base classes only.

Shapes: n images, R regions of an image, N base classes.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import numpy as np

from pomp_jax.data.class_splits import ClassSplit, read_class_split
from pomp_jax.data.source import SourceError
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.files.paths import Path
from pomp_jax.rooms.regions.annotations import AnnotationError, Annotations, read_annotations
from pomp_jax.rooms.regions.fields import TrainMasks
from pomp_jax.rooms.regions.mask_views import RegionMap, RegionMaps, map_of_masks
from pomp_jax.rooms.regions.panoptic import read_panoptic
from pomp_jax.rooms.regions.pixels import PixelFolder, open_pixels
from pomp_jax.rooms.regions.scenes import Scenes, open_scenes


def open_mask_set(settings: TrainMasks, seed: int) -> RegionMaps:
  """Opens the training images of `config.train_masks`.

  The classes are those of the list, or the JSON's categories, but for the novel ones. A label image
  has a region for each class, and annotated objects and segments are regions of their own; crowds
  are left out.

  Args:
    settings: `config.train_masks`.
    seed: random seed of the world's scenes.

  Raises:
    SourceError, VocabularyError, AnnotationError, CategoryFileError, ImageError, PixelError: one
      line each.
  """
  if settings.source == "world":
    scenes = open_scenes("train", settings.n_images, settings.scene_classes, seed=seed)
    classes = ClassSplit(tuple((name,) for name in scenes.names), scenes.groups)
    read = functools.partial(_of_scene, scenes)
    return _Maps(classes, np.arange(len(scenes)), read, "scene {}".format)
  classes = read_class_split(settings.names) if settings.names else None
  if settings.source == "folder":
    if classes is None:
      raise SourceError("train_masks.names is empty; accepted: the classes of the label images")
    folder = open_pixels(
      settings.images, settings.labels, classes, settings.label_values, settings.ignore
    )
    rows = spread_evenly(settings.n_images, len(folder))
    return _Maps(
      classes, rows, functools.partial(_of_labels, folder), functools.partial(_file_of, folder)
    )
  names = classes and classes.names
  if settings.source == "panoptic":
    panoptic = read_panoptic(settings.annotations, names)
    panoptic.check_files(settings.labels)
    # Segments do not overlap; their masks are in PNGs.
    annotations = panoptic.annotations
    owners = functools.partial(panoptic.owners, root=settings.labels)
  else:
    annotations = read_annotations(settings.annotations, names)
    _check_masks(annotations)
    owners = functools.partial(_owners, annotations)
  annotations.check_images(settings.images)
  if classes is None:
    names = annotations.names
    classes = ClassSplit(tuple((name,) for name in names), ("base",) * len(names))
  rows = spread_evenly(settings.n_images, len(annotations))
  read = functools.partial(_of_objects, annotations, owners, settings.images)
  return _Maps(classes, rows, read, functools.partial(annotations.image_path, root=settings.images))


class _Maps:
  """Images of a set with their region maps, without the novel classes.

  Attributes:
    classes: names of the classes, all synonyms.
    names: first names.
    labels: zeros, one an image.
  """

  def __init__(
    self,
    classes: ClassSplit,
    rows: np.ndarray,
    read: Callable[[int], RegionMap],
    where: Callable[[int], Any],
  ):
    """Takes functions that read an image by its row, with labels of all classes, and name it."""
    kept = np.flatnonzero(np.array(classes.groups) != "novel")
    self.classes = tuple(classes.synonyms[c] for c in kept)
    self.names: Sequence[str] = tuple(names[0] for names in self.classes)
    self.labels = np.zeros(len(rows), np.int32)
    self._rows, self._read, self._where = rows, read, where
    # Number of each class of the list among those that are kept; the last entry is that of -1.
    self._number = np.full(len(classes) + 1, -1, np.int32)
    self._number[kept] = np.arange(len(kept))

  def __len__(self) -> int:
    return len(self.labels)

  def region_map(self, index: int) -> RegionMap:
    found = self._read(int(self._rows[index]))
    return found._replace(labels=self._number[found.labels])

  def where(self, index: int) -> str:
    return str(self._where(int(self._rows[index])))


def _of_scene(scenes: Scenes, row: int) -> RegionMap:
  scene = scenes.scene(row)
  owners = map_of_masks(scene.masks, *scene.image.shape[:2])
  return RegionMap(scene.image, owners, scene.labels)


def _of_labels(folder: PixelFolder, row: int) -> RegionMap:
  labels_HxW = folder.labels(row)
  found, owners = np.unique(labels_HxW, return_inverse=True)
  owners = owners.reshape(labels_HxW.shape).astype(np.int16)
  return RegionMap(folder.image(row), owners, found.astype(np.int32))


def _file_of(folder: PixelFolder, row: int) -> Path:
  return folder.files[row][0]


def _of_objects(
  annotations: Annotations, owners: Callable[[int], np.ndarray], root: str, row: int
) -> RegionMap:
  """Objects or segments of a JSON; `owners` computes the map of an image's."""
  truth = annotations.truth(row)
  labels = np.where(truth.crowd, -1, truth.classes).astype(np.int32)
  return RegionMap(annotations.image(row, root), owners(row), labels)


def _check_masks(annotations: Annotations) -> None:
  for row in (row for rows in annotations.rows for row in rows):
    if "segmentation" not in row:
      found = f"annotation {row.get('id')} has no segmentation"
      raise AnnotationError(f"{annotations.path}: {found}; accepted: objects with masks")


def _owners(annotations: Annotations, row: int) -> np.ndarray:
  entry = annotations.images[row]
  return map_of_masks(annotations.masks(row), entry.height, entry.width)
