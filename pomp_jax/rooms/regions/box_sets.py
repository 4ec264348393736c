"""Images with annotated objects, as `config.detect` names them.

Shapes: H, W sides of an image in pixels, R regions.
"""

from collections.abc import Callable
import dataclasses
import functools

from jaxtyping import Int32, UInt8
import numpy as np

from pomp_jax.data.class_splits import ClassSplit, read_class_split
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.files.paths import Path
from pomp_jax.rooms.regions.annotations import Annotations, annotations_of, read_annotations
from pomp_jax.rooms.regions.fields import Detect
from pomp_jax.rooms.regions.files import Regions
from pomp_jax.rooms.regions.region_sources import Images
from pomp_jax.rooms.regions.scenes import open_scenes
from pomp_jax.rooms.regions.sources import truth_regions

_RARE = "r"  # LVIS's frequency of novel classes


@dataclasses.dataclass(frozen=True)
class BoxSet:
  """Annotated images with the names and halves of the classes of their annotations."""

  annotations: Annotations
  classes: ClassSplit
  image: Callable[[int], UInt8[np.ndarray, "H W 3"]]  # pixels by the number of the image
  root: str = ""  # folder of the images; empty: the world's, or none

  def __len__(self) -> int:
    return len(self.annotations)

  @property
  def keys(self) -> tuple[int, ...]:
    """Id of each image."""
    return tuple(image.id for image in self.annotations.images)

  def shape(self, index: int) -> tuple[int, int]:
    """Height and width of an image."""
    entry = self.annotations.images[index]
    return entry.height, entry.width

  def files(self, settings: Detect) -> list[str | Path]:
    """Annotations and images on the disk."""
    annotations = [settings.annotations] if settings.annotations else []
    rows = range(len(self) if self.root else 0)
    return annotations + [self.annotations.image_path(row, self.root) for row in rows]

  def regions(self, index: int, masks: bool) -> tuple[Regions, Int32[np.ndarray, " R"]]:
    """True regions and their classes without crowds, perhaps with masks."""
    return truth_regions(self.annotations, index, masks)

  def images(self, held: int, masks: bool) -> Images:
    """The images, the last `held` of which stay decoded; true regions perhaps have masks."""
    decoded = functools.lru_cache(held)(self.image)
    return Images(self.keys, self.shape, decoded, lambda index: self.regions(index, masks)[0])


def open_box_set(settings: Detect) -> BoxSet:
  """Opens the images and annotations of `config.detect`.

  LVIS's rare classes are novel, the others base, unless `detect.names` has halves of its own.

  Raises:
    AnnotationError, CategoryFileError, VocabularyError: one line each.
  """
  if settings.source == "world":
    scenes = open_scenes("test", settings.n_images, settings.scene_classes)
    annotations = annotations_of(scenes.annotations(), "the world's scenes", scenes.names)
    classes = ClassSplit(tuple((name,) for name in scenes.names), scenes.groups)
    return BoxSet(annotations, classes, lambda index: scenes.scene(index).image)
  classes = read_class_split(settings.names) if settings.names else None
  annotations = read_annotations(settings.annotations, classes and classes.names)
  kept = spread_evenly(settings.n_images, len(annotations)).tolist()
  annotations = dataclasses.replace(
    annotations,
    images=tuple(annotations.images[index] for index in kept),
    rows=tuple(annotations.rows[index] for index in kept),
  )
  if classes is None:
    classes = _classes_of(annotations, settings.synonyms)
  root = settings.images
  return BoxSet(annotations, classes, lambda index: annotations.image(index, root), root)


def _classes_of(annotations: Annotations, all_names: bool) -> ClassSplit:
  """Classes of the file's own categories."""
  synonyms = annotations.synonyms if all_names else tuple((name,) for name in annotations.names)
  if annotations.frequencies is None:
    return ClassSplit(synonyms, ("-",) * len(synonyms))
  groups = ("novel" if own == _RARE else "base" for own in annotations.frequencies)
  return ClassSplit(synonyms, tuple(groups))
