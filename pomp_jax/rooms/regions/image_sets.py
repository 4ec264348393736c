"""Images with boxes, labels or region maps, as `detect`, `segment` and `train_masks`
name them.

Shapes: H, W sides of an image in pixels, R regions.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

from jaxtyping import Int32
import numpy as np

from pomp_jax.config.errors import require
from pomp_jax.data.source import SourceError
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.files.paths import Path
from pomp_jax.files.terminal import waiting
from pomp_jax.rooms.regions.annotations import (
  Annotations,
  annotations_of,
  read_annotations,
  read_panoptic,
)
from pomp_jax.rooms.regions.class_splits import ClassSplit, read_class_split, undivided
from pomp_jax.rooms.regions.fields import Detect, Segment, TrainMasks
from pomp_jax.rooms.regions.label_images import PixelFolder, open_pixels
from pomp_jax.rooms.regions.mask_views import RegionMap, RegionMaps, map_of_masks
from pomp_jax.rooms.regions.masks import boxes_of_masks
from pomp_jax.rooms.regions.region_errors import RegionError
from pomp_jax.rooms.regions.region_folder import Regions
from pomp_jax.rooms.regions.region_sources import Images
from pomp_jax.rooms.regions.scenes import SIZE, Scenes

# Groups of LVIS's frequencies.
_GROUPS = {"r": "novel", "c": "base", "f": "base", "": "-"}
# Name of the class that `segment.background` adds.
_BACKGROUND = "background"
# Decoded images in memory: those of the largest block.
_DECODED = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxSet(Images):
  """Annotated images with the names and halves of the classes of their annotations."""

  annotations: Annotations
  classes: ClassSplit
  files: Sequence[str | Path] = ()  # of annotations and images
  root: str = ""  # folder of the images; empty: the world's, or none

  def regions(self, index: int, masks: bool) -> tuple[Regions, Int32[np.ndarray, " R"]]:
    """True regions, perhaps with masks, and their classes; crowds are left out."""
    truth = self.annotations.truth(index)
    single = ~truth.crowd
    found = self.annotations.masks(index)[single] if masks else None
    return Regions(truth.boxes[single], masks=found), truth.classes[single]

  def check_images(self) -> None:
    """Raises InputError unless the annotated images are in a folder, with the sizes
    named there."""
    require(
      self.root, "detect.images", "", "the folder of the images, which are read here"
    )
    with waiting("checking all images"):
      self.annotations.check_images(self.root, sizes=True)


def open_box_set(detect: Detect) -> BoxSet:
  """Opens the images and annotations of `config.detect`; the last images stay decoded.

  LVIS's rare classes are novel, the others base, unless `detect.names` has halves of
  its own.
  """
  root, files = detect.images, []
  if detect.source == "world":
    scenes = Scenes("test", detect.n_images, detect.scene_classes)
    annotations = annotations_of(
      scenes.annotations(), "the world's scenes", scenes.names
    )
    classes, read = _classes_of(scenes), lambda index: scenes.scene(index).image
  else:
    own = read_class_split(detect.names) if detect.names else None
    whole = read_annotations(detect.annotations, own.names if own else None)
    kept = spread_evenly(detect.n_images, len(whole)).tolist()
    images, rows = (
      [part[index] for index in kept] for part in (whole.images, whole.rows)
    )
    annotations = dataclasses.replace(whole, images=tuple(images), rows=tuple(rows))
    synonyms = whole.synonyms if detect.synonyms else undivided(whole.names).synonyms
    frequencies = whole.frequencies or ("",) * len(whole.names)
    classes = own or ClassSplit(synonyms, tuple(map(_GROUPS.__getitem__, frequencies)))
    read = functools.partial(annotations.image, root=root)
    paths = [
      annotations.image_path(index, root) for index in range(len(kept) if root else 0)
    ]
    files = [detect.annotations, *paths]
  sides = [(image.height, image.width) for image in annotations.images]
  return BoxSet(
    tuple(image.id for image in annotations.images),
    sides.__getitem__,
    functools.lru_cache(_DECODED)(read),
    annotations=annotations,
    classes=classes,
    files=files,
    root=root,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelSet(Images):
  """Images with label maps; the last images stay decoded."""

  classes: ClassSplit
  labels: Callable[[int], Int32[np.ndarray, "H W"]]  # class of each pixel, or -1
  files: Sequence[Path] = ()  # of images and labels


def open_pixel_set(segment: Segment) -> PixelSet:
  """Opens the images and labels of `config.segment`."""
  if segment.source == "world":
    scenes = Scenes("test", segment.n_images, segment.scene_classes)

    def regions(index: int) -> Regions:
      scene = scenes.scene(index)
      return Regions(scene.boxes, masks=scene.masks)

    keys = tuple(f"{index:05d}" for index in range(len(scenes)))
    pixels = functools.lru_cache(_DECODED)(lambda index: scenes.scene(index).image)
    labels = lambda index: scenes.scene(index).label_map()
    shape, classes = lambda index: (SIZE, SIZE), _classes_of(scenes)
    return PixelSet(keys, shape, pixels, regions, classes=classes, labels=labels)
  classes = with_background(read_class_split(segment.names), segment.background)
  folder = _pixel_folder(segment, classes)

  def regions_of_labels(index: int) -> Regions:
    """One region for each class; negative labels have none."""
    labels_HxW = folder.labels(index)
    classes = np.unique(labels_HxW[labels_HxW >= 0])
    masks = labels_HxW == classes[:, None, None]
    return Regions(boxes_of_masks(masks), masks=masks)

  files = [path for pair in folder.files for path in pair if path is not None]
  pixels = functools.lru_cache(_DECODED)(folder.image)
  of_images = folder.keys, folder.shape, pixels, regions_of_labels
  return PixelSet(*of_images, classes=classes, labels=folder.labels, files=files)


def with_background(classes: ClassSplit, names: Sequence[str]) -> ClassSplit:
  """Puts a class of background before the others, which has all these names."""
  if not names:
    return classes
  return ClassSplit(
    ((_BACKGROUND, *names), *classes.synonyms),
    ("-", *classes.groups),
    classes.values and ((0,), *classes.values),
  )


def open_mask_set(own: TrainMasks, seed: int) -> RegionMaps:
  """Opens the training images of `config.train_masks`; `seed` is that of the world's
  scenes.

  The classes are those of the list, or the JSON's categories, but for the novel ones. A
  label image has a region for each class; each annotated object or segment is one,
  crowds are left out.
  """
  if own.source == "world":
    scenes = Scenes("train", own.n_images, own.scene_classes, seed=seed)
    read = functools.partial(_of_scene, scenes)
    return RegionMaps(
      _classes_of(scenes), np.arange(len(scenes)), read, "scene {}".format
    )
  classes = read_class_split(own.names) if own.names else None
  if own.source == "folder":
    if classes is None:
      raise SourceError(
        "train_masks.names is empty; accepted: the classes of the label images"
      )
    folder = _pixel_folder(own, classes)
    images, read = (
      [image for image, _ in folder.files],
      functools.partial(_of_labels, folder),
    )
    return RegionMaps(classes, np.arange(len(images)), read, images.__getitem__)
  names, owners = classes.names if classes else None, None
  if own.source == "panoptic":
    panoptic = read_panoptic(own.annotations, names)
    panoptic.check_files(own.labels)
    # Segments do not overlap; their masks are in PNGs.
    annotations = panoptic.annotations
    owners = functools.partial(panoptic.owners, root=own.labels)
  else:
    annotations = read_annotations(own.annotations, names)
    for row in (row for rows in annotations.rows for row in rows):
      if "segmentation" not in row:
        found = f"annotation {row.get('id')} has no segmentation"
        raise RegionError(f"{annotations.path}: {found}; accepted: objects with masks")
  annotations.check_images(own.images)
  if classes is None:
    classes = undivided(annotations.names, "base")
  rows = spread_evenly(own.n_images, len(annotations))
  read = functools.partial(_of_objects, annotations, owners, own.images)
  return RegionMaps(
    classes, rows, read, functools.partial(annotations.image_path, root=own.images)
  )


def _of_scene(scenes: Scenes, row: int) -> RegionMap:
  scene = scenes.scene(row)
  return RegionMap(scene.image, map_of_masks(scene.masks), scene.labels)


def _of_labels(folder: PixelFolder, row: int) -> RegionMap:
  labels_HxW = folder.labels(row)
  found, owners = np.unique(labels_HxW, return_inverse=True)
  owners = owners.reshape(labels_HxW.shape).astype(np.int16)
  return RegionMap(folder.image(row), owners, found.astype(np.int32))


def _of_objects(
  annotations: Annotations,
  owners: Callable[[int], np.ndarray] | None,
  root: str,
  row: int,
) -> RegionMap:
  """Segments, of which `owners` computes the map, or else objects by their masks."""
  truth = annotations.truth(row)
  labels = np.where(truth.crowd, -1, truth.classes).astype(np.int32)
  found = owners(row) if owners else map_of_masks(annotations.masks(row))
  return RegionMap(annotations.image(row, root), found, labels)


def _classes_of(scenes: Scenes) -> ClassSplit:
  return ClassSplit(tuple((name,) for name in scenes.names), scenes.groups)


def _pixel_folder(own: Segment | TrainMasks, classes: ClassSplit) -> PixelFolder:
  values = own.label_values, own.ignore
  return open_pixels(own.images, own.labels, classes, *values, n_images=own.n_images)
