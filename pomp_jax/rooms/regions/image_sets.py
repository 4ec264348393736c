"""Opens images with boxes, label maps or region maps, for `detect`, `segment` and
`train_masks`.

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

# Group of the classes of each of LVIS's frequencies; "" is a class without one.
_GROUPS = {"r": "novel", "c": "base", "f": "base", "": "-"}
# Name of the class that `segment.background` adds.
_BACKGROUND = "background"
# Most decoded images that a set caches: those of the largest block.
_DECODED = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxSet(Images):
  """Annotated images, and the names and halves of the annotated classes."""

  annotations: Annotations
  classes: ClassSplit
  files: Sequence[str | Path] = ()  # of annotations and images
  root: str = ""  # folder of the images; empty: the world's scenes, or no image is read

  def regions(self, index: int, masks: bool) -> tuple[Regions, Int32[np.ndarray, " R"]]:
    """True regions, with masks if `masks`, and their classes; crowds are left out."""
    truth = self.annotations.truth(index)
    is_single_R = ~truth.crowd
    masks_RxHxW = None
    if masks:
      masks_RxHxW = self.annotations.masks(index)[is_single_R]
    regions = Regions(truth.boxes[is_single_R], masks=masks_RxHxW)
    return regions, truth.classes[is_single_R]

  def check_images(self) -> None:
    """Raises InputError unless a folder holds the annotated images in their annotated
    sizes."""
    require(
      self.root, "detect.images", "", "the folder of the images, which are read here"
    )
    with waiting("checking all images"):
      self.annotations.check_images(self.root, sizes=True)


def open_box_set(detect: Detect) -> BoxSet:
  """Opens the images and annotations of `config.detect`, with a cache of images.

  The class list `detect.names` has its own halves. Without a list, LVIS's rare classes
  are novel, and its common and frequent classes are base.

  Raises:
    InputError: the annotations or the class list are unusable.
  """
  if detect.source == "world":
    scenes = Scenes("test", detect.n_images, detect.scene_classes)
    annotations = annotations_of(
      scenes.annotations(), "the world's scenes", scenes.names
    )
    return _box_set(
      annotations, _classes_of(scenes), lambda index: scenes.scene(index).image
    )
  split = None
  if detect.names:
    split = read_class_split(detect.names)
  annotations = read_annotations(detect.annotations, split.names if split else None)
  if split is None:
    split = _split_of_frequencies(annotations, detect.synonyms)
  annotations = _subset(annotations, detect.n_images)
  root = detect.images
  files: list[str | Path] = [detect.annotations]
  if root:
    files += [annotations.image_path(n, root) for n in range(len(annotations))]
  read = functools.partial(annotations.image, root=root)
  return _box_set(annotations, split, read, files=files, root=root)


def _box_set(
  annotations: Annotations,
  classes: ClassSplit,
  read: Callable[[int], np.ndarray],
  *,
  files: Sequence[str | Path] = (),
  root: str = "",
) -> BoxSet:
  """Builds a set of all annotated images; `read` decodes an image by its number."""
  sides = [(image.height, image.width) for image in annotations.images]
  return BoxSet(
    keys=tuple(image.id for image in annotations.images),
    shape=sides.__getitem__,
    pixels=functools.lru_cache(_DECODED)(read),
    annotations=annotations,
    classes=classes,
    files=files,
    root=root,
  )


def _split_of_frequencies(annotations: Annotations, synonyms: bool) -> ClassSplit:
  """Halves by LVIS's frequencies; a class has all its names if `synonyms`, else one."""
  names_of_classes = annotations.synonyms
  if not synonyms:
    names_of_classes = undivided(annotations.names).synonyms
  frequencies = annotations.frequencies or ("",) * len(annotations.names)
  groups = tuple(_GROUPS[frequency] for frequency in frequencies)
  return ClassSplit(names_of_classes, groups)


def _subset(annotations: Annotations, n_images: int) -> Annotations:
  """The annotations of `n_images` images, spread evenly over all images; 0: all."""
  kept = spread_evenly(n_images, len(annotations)).tolist()
  return dataclasses.replace(
    annotations,
    images=tuple(annotations.images[index] for index in kept),
    rows=tuple(annotations.rows[index] for index in kept),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelSet(Images):
  """Images with label maps, and a cache of decoded images."""

  classes: ClassSplit
  labels: Callable[[int], Int32[np.ndarray, "H W"]]  # class of each pixel, or -1
  files: Sequence[Path] = ()  # of images and labels


def open_pixel_set(segment: Segment) -> PixelSet:
  """Opens the images and labels of `config.segment`.

  Raises:
    InputError: the class list or a folder is unusable.
  """
  if segment.source == "world":
    return _pixels_of_scenes(Scenes("test", segment.n_images, segment.scene_classes))
  classes = with_background(read_class_split(segment.names), segment.background)
  folder = _pixel_folder(segment, classes)

  def regions_of_labels(index: int) -> Regions:
    """One region for each class; negative labels have none."""
    labels_HxW = folder.labels(index)
    classes = np.unique(labels_HxW[labels_HxW >= 0])
    masks = labels_HxW == classes[:, None, None]
    return Regions(boxes_of_masks(masks), masks=masks)

  return PixelSet(
    keys=folder.keys,
    shape=folder.shape,
    pixels=functools.lru_cache(_DECODED)(folder.image),
    annotated=regions_of_labels,
    classes=classes,
    labels=folder.labels,
    files=[path for pair in folder.files for path in pair if path is not None],
  )


def _pixels_of_scenes(scenes: Scenes) -> PixelSet:
  """The world's scenes as images with label maps."""

  def regions(index: int) -> Regions:
    scene = scenes.scene(index)
    return Regions(scene.boxes, masks=scene.masks)

  return PixelSet(
    keys=tuple(f"{index:05d}" for index in range(len(scenes))),
    shape=lambda index: (SIZE, SIZE),
    pixels=functools.lru_cache(_DECODED)(lambda index: scenes.scene(index).image),
    annotated=regions,
    classes=_classes_of(scenes),
    labels=lambda index: scenes.scene(index).label_map(),
  )


def with_background(classes: ClassSplit, names: Sequence[str]) -> ClassSplit:
  """Adds a background class with these names, if any, before all other classes."""
  if not names:
    return classes
  values = classes.values
  if values:
    # Pixels of the background are 0 in label images.
    values = ((0,), *values)
  return ClassSplit(
    synonyms=((_BACKGROUND, *names), *classes.synonyms),
    groups=("-", *classes.groups),
    values=values,
  )


def open_mask_set(settings: TrainMasks, seed: int) -> RegionMaps:
  """Opens the training images of `config.train_masks`.

  The classes come from the class list, or else from the JSON's categories; novel
  classes are left out. In a label image each class is a region. In annotations each
  object or segment is a region; crowds are left out.

  Args:
    settings: the fields `config.train_masks`.
    seed: random seed of the world's scenes.

  Raises:
    InputError: a class list, an annotation or a file is unusable.
  """
  if settings.source == "world":
    scenes = Scenes("train", settings.n_images, settings.scene_classes, seed=seed)
    read = functools.partial(_of_scene, scenes)
    rows = np.arange(len(scenes))
    return RegionMaps(_classes_of(scenes), rows, read, "scene {}".format)
  classes = None
  if settings.names:
    classes = read_class_split(settings.names)
  if settings.source == "folder":
    return _masks_of_folder(settings, classes)
  names = classes.names if classes else None
  owners = None
  if settings.source == "panoptic":
    panoptic = read_panoptic(settings.annotations, names)
    panoptic.check_files(settings.labels)
    # Segments do not overlap, so a PNG holds the masks of all segments.
    annotations = panoptic.annotations
    owners = functools.partial(panoptic.owners, root=settings.labels)
  else:
    annotations = read_annotations(settings.annotations, names)
    _check_masks(annotations)
  annotations.check_images(settings.images)
  if classes is None:
    classes = undivided(annotations.names, "base")
  return RegionMaps(
    classes,
    spread_evenly(settings.n_images, len(annotations)),
    functools.partial(_of_objects, annotations, owners, settings.images),
    functools.partial(annotations.image_path, root=settings.images),
  )


def _masks_of_folder(settings: TrainMasks, classes: ClassSplit | None) -> RegionMaps:
  """Training images with label images; SourceError without a class list."""
  if classes is None:
    raise SourceError(
      "train_masks.names is empty; accepted: the classes of the label images"
    )
  folder = _pixel_folder(settings, classes)
  images = [image for image, _ in folder.files]
  read = functools.partial(_of_labels, folder)
  return RegionMaps(classes, np.arange(len(images)), read, images.__getitem__)


def _check_masks(annotations: Annotations) -> None:
  """Raises RegionError for the first annotation without a mask."""
  for rows in annotations.rows:
    for row in rows:
      if "segmentation" not in row:
        problem = f"annotation {row.get('id')} has no segmentation"
        raise RegionError(
          f"{annotations.path}: {problem}; accepted: objects with masks"
        )


def _of_scene(scenes: Scenes, row: int) -> RegionMap:
  scene = scenes.scene(row)
  return RegionMap(scene.image, map_of_masks(scene.masks), scene.labels)


def _of_labels(folder: PixelFolder, row: int) -> RegionMap:
  """Regions of a label image: one for each class, one for pixels without a class."""
  labels_HxW = folder.labels(row)
  classes, owners = np.unique(labels_HxW, return_inverse=True)
  owners_HxW = owners.reshape(labels_HxW.shape).astype(np.int16)
  return RegionMap(folder.image(row), owners_HxW, classes.astype(np.int32))


def _of_objects(
  annotations: Annotations,
  owners: Callable[[int], np.ndarray] | None,
  root: str,
  row: int,
) -> RegionMap:
  """Regions of an annotated image.

  `owners` reads the segment of each pixel. If it is None, the regions are objects with
  masks.
  """
  truth = annotations.truth(row)
  labels = np.where(truth.crowd, -1, truth.classes).astype(np.int32)
  if owners is not None:
    owners_HxW = owners(row)
  else:
    owners_HxW = map_of_masks(annotations.masks(row))
  return RegionMap(annotations.image(row, root), owners_HxW, labels)


def _classes_of(scenes: Scenes) -> ClassSplit:
  return ClassSplit(tuple((name,) for name in scenes.names), scenes.groups)


def _pixel_folder(settings: Segment | TrainMasks, classes: ClassSplit) -> PixelFolder:
  return open_pixels(
    settings.images,
    settings.labels,
    classes,
    settings.label_values,
    settings.ignore,
    n_images=settings.n_images,
  )
