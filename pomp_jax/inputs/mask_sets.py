"""Images with region maps, as `config.train_masks` names them; base classes only.

Shapes: n images, R regions of an image, N base classes.
"""

from collections.abc import Callable, Sequence
import functools

import numpy as np

from pomp_jax.config.region_fields import TrainMasks
from pomp_jax.data.annotations import AnnotationError, Annotations, read_annotations
from pomp_jax.data.class_splits import ClassSplit, read_class_split
from pomp_jax.data.mask_views import RegionMap, RegionMaps, map_of_masks
from pomp_jax.data.panoptic import read_panoptic
from pomp_jax.data.pixels import PixelFolder, open_pixels
from pomp_jax.data.source import SourceError
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.world.scenes import Scenes, open_scenes


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
    return _World(open_scenes("train", settings.n_images, settings.scene_classes, seed=seed))
  classes = read_class_split(settings.names) if settings.names else None
  if settings.source == "folder":
    if classes is None:
      raise SourceError("train_masks.names is empty; accepted: the classes of the label images")
    folder = open_pixels(
      settings.images, settings.labels, classes, settings.label_values, settings.ignore
    )
    return _LabelImages(folder, classes, spread_evenly(settings.n_images, len(folder)))
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
  return _Objects(annotations, owners, settings.images, classes, rows)


def _check_masks(annotations: Annotations) -> None:
  for row in (row for rows in annotations.rows for row in rows):
    if "segmentation" not in row:
      found = f"annotation {row.get('id')} has no segmentation"
      raise AnnotationError(f"{annotations.path}: {found}; accepted: objects with masks")


def _owners(annotations: Annotations, row: int) -> np.ndarray:
  entry = annotations.images[row]
  return map_of_masks(annotations.masks(row), entry.height, entry.width)


class _Maps:
  """Classes of a set, without the novel ones.

  Attributes:
    classes: names of the classes, all synonyms.
    names: first names.
    labels: zeros, one an image.
  """

  def __init__(self, classes: ClassSplit, n_images: int):
    kept = np.flatnonzero(np.array(classes.groups) != "novel")
    self.classes = tuple(classes.synonyms[c] for c in kept)
    self.names: Sequence[str] = tuple(names[0] for names in self.classes)
    self.labels = np.zeros(n_images, np.int32)
    # Number of each class of the list among those that are kept; the last entry is that of -1.
    self._number = np.full(len(classes) + 1, -1, np.int32)
    self._number[kept] = np.arange(len(kept))

  def __len__(self) -> int:
    return len(self.labels)


class _World(_Maps):
  """Scenes of the embedded world."""

  def __init__(self, scenes: Scenes):
    names = tuple((name,) for name in scenes.names)
    super().__init__(ClassSplit(names, scenes.groups), len(scenes))
    self._scenes = scenes

  def region_map(self, index: int) -> RegionMap:
    scene = self._scenes.scene(index)
    owners = map_of_masks(scene.masks, *scene.image.shape[:2])
    return RegionMap(scene.image, owners, self._number[scene.labels])

  def where(self, index: int) -> str:
    return f"scene {index}"


class _LabelImages(_Maps):
  """Label images."""

  def __init__(self, folder: PixelFolder, classes: ClassSplit, rows: np.ndarray):
    super().__init__(classes, len(rows))
    self._folder, self._rows = folder, rows

  def region_map(self, index: int) -> RegionMap:
    row = int(self._rows[index])
    labels_HxW = self._number[self._folder.labels(row)]
    found, owners = np.unique(labels_HxW, return_inverse=True)
    owners = owners.reshape(labels_HxW.shape).astype(np.int16)
    return RegionMap(self._folder.image(row), owners, found.astype(np.int32))

  def where(self, index: int) -> str:
    return str(self._folder.files[int(self._rows[index])][0])


class _Objects(_Maps):
  """Objects or segments of a JSON; `owners` computes the map of an image's."""

  def __init__(
    self,
    annotations: Annotations,
    owners: Callable[[int], np.ndarray],
    root: str,
    classes: ClassSplit,
    rows: np.ndarray,
  ):
    super().__init__(classes, len(rows))
    self._annotations, self._owners, self._root, self._rows = annotations, owners, root, rows

  def region_map(self, index: int) -> RegionMap:
    row = int(self._rows[index])
    image, truth = self._annotations.image(row, self._root), self._annotations.truth(row)
    labels = np.where(truth.crowd, -1, self._number[truth.classes]).astype(np.int32)
    return RegionMap(image, self._owners(row), labels)

  def where(self, index: int) -> str:
    return str(self._annotations.image_path(int(self._rows[index]), self._root))
