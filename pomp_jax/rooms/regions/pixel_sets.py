"""Images with a class for each pixel, as `config.segment` names them.

Shapes: H, W sides of an image in pixels, R regions.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

from jaxtyping import Int32, UInt8
import numpy as np

from pomp_jax.data.class_splits import ClassSplit, read_class_split
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.files.paths import Path
from pomp_jax.rooms.regions.fields import Segment
from pomp_jax.rooms.regions.files import Regions
from pomp_jax.rooms.regions.pixels import open_pixels
from pomp_jax.rooms.regions.region_sources import Images
from pomp_jax.rooms.regions.scenes import SIZE, open_scenes
from pomp_jax.rooms.regions.sources import label_regions

# Name of the class that `segment.background` adds.
BACKGROUND = "background"


@dataclasses.dataclass
class PixelSet:
  """Images with label maps; functions take the number of an image."""

  keys: Sequence[str]  # distinct name of each image
  classes: ClassSplit
  files: Sequence[Path]  # of images and labels
  shape: Callable[[int], tuple[int, int]]  # height and width
  image: Callable[[int], UInt8[np.ndarray, "H W 3"]]
  labels: Callable[[int], Int32[np.ndarray, "H W"]]  # class of each pixel, or -1
  regions: Callable[[int], Regions]  # true regions, with masks

  def check(self) -> None:
    """Reads all label images, and raises the first error."""
    for index in range(len(self.keys) if self.files else 0):
      self.labels(index)

  def images(self, held: int) -> Images:
    """The images, the last `held` of which stay decoded."""
    return Images(self.keys, self.shape, functools.lru_cache(held)(self.image), self.regions)


def open_pixel_set(settings: Segment) -> PixelSet:
  """Opens the images and labels of `config.segment`.

  Raises:
    VocabularyError, ImageError, PixelError: one line each.
  """
  if settings.source == "world":
    scenes = open_scenes("test", settings.n_images, settings.scene_classes)

    def regions(index):
      scene = scenes.scene(index)
      return Regions(scene.boxes, masks=scene.masks)

    return PixelSet(
      tuple(f"{index:05d}" for index in range(len(scenes))),
      ClassSplit(tuple((name,) for name in scenes.names), scenes.groups),
      (),
      lambda index: (SIZE, SIZE),
      lambda index: scenes.scene(index).image,
      lambda index: scenes.scene(index).label_map(),
      regions,
    )
  classes = with_background(read_class_split(settings.names), settings.background)
  folder = open_pixels(
    settings.images, settings.labels, classes, settings.label_values, settings.ignore
  )
  rows = spread_evenly(settings.n_images, len(folder)).tolist()
  return PixelSet(
    tuple(folder.keys[row] for row in rows),
    classes,
    [path for row in rows for path in folder.files[row] if path is not None],
    lambda index: folder.shape(rows[index]),
    lambda index: folder.image(rows[index]),
    lambda index: folder.labels(rows[index]),
    lambda index: label_regions(folder.labels(rows[index]))[0],
  )


def with_background(classes: ClassSplit, names: Sequence[str]) -> ClassSplit:
  """Puts a class of background before the others, which has all these names."""
  if not names:
    return classes
  return ClassSplit(
    ((BACKGROUND, *names), *classes.synonyms),
    ("-", *classes.groups),
    classes.values and ((0,), *classes.values),
  )
