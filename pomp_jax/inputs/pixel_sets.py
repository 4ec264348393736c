"""Images with a class for each pixel, as `config.segment` names them.

Shapes: H, W sides of an image in pixels, R regions.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Int32, UInt8
import numpy as np

from pomp_jax.config.region_fields import Segment
from pomp_jax.data.class_splits import ClassSplit, read_class_split
from pomp_jax.data.pixels import PixelFolder, open_pixels
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.files.paths import Path
from pomp_jax.regions.files import Regions
from pomp_jax.regions.sources import label_regions
from pomp_jax.world.scenes import SIZE, Scenes, open_scenes

# Name of the class that `segment.background` adds.
BACKGROUND = "background"


@runtime_checkable
class PixelSet(Protocol):
  """Images with label maps.

  Attributes:
    keys: distinct name of each image.
    classes: names and halves of the classes.
    files: files of images and labels.
  """

  keys: Sequence[str]
  classes: ClassSplit
  files: Sequence[Path]

  def shape(self, index: int) -> tuple[int, int]:
    """Height and width of an image."""

  def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
    """Pixels of an image."""

  def labels(self, index: int) -> Int32[np.ndarray, "H W"]:
    """Class of each pixel, or -1."""

  def regions(self, index: int) -> Regions:
    """True regions, with masks."""

  def check(self) -> None:
    """Reads all labels, and raises the first error."""


def open_pixel_set(settings: Segment) -> PixelSet:
  """Opens the images and labels of `config.segment`.

  Raises:
    VocabularyError, ImageError, PixelError: one line each.
  """
  if settings.source == "world":
    return _World(open_scenes("test", settings.n_images, settings.scene_classes))
  classes = with_background(read_class_split(settings.names), settings.background)
  folder = open_pixels(
    settings.images, settings.labels, classes, settings.label_values, settings.ignore
  )
  return _Folder(folder, classes, spread_evenly(settings.n_images, len(folder)).tolist())


def with_background(classes: ClassSplit, names: Sequence[str]) -> ClassSplit:
  """Puts a class of background before the others, which has all these names."""
  if not names:
    return classes
  return ClassSplit(
    ((BACKGROUND, *names), *classes.synonyms),
    ("-", *classes.groups),
    classes.values and ((0,), *classes.values),
  )


class _Folder:
  """Some images of a folder."""

  def __init__(self, folder: PixelFolder, classes: ClassSplit, rows: Sequence[int]):
    self.keys, self.classes = tuple(folder.keys[row] for row in rows), classes
    self.files = [path for row in rows for path in folder.files[row] if path is not None]
    self._folder, self._rows = folder, rows

  def shape(self, index):
    return self._folder.shape(self._rows[index])

  def image(self, index):
    return self._folder.image(self._rows[index])

  def labels(self, index):
    return self._folder.labels(self._rows[index])

  def regions(self, index):
    return label_regions(self.labels(index))[0]

  def check(self):
    for index in range(len(self.keys)):
      self.labels(index)


class _World:
  """Scenes of the embedded world."""

  def __init__(self, scenes: Scenes):
    self.keys = tuple(f"{index:05d}" for index in range(len(scenes)))
    self.classes = ClassSplit(tuple((name,) for name in scenes.names), scenes.groups)
    self.files = ()
    self._scenes = scenes

  def shape(self, index):
    return SIZE, SIZE

  def image(self, index):
    return self._scenes.scene(index).image

  def labels(self, index):
    return self._scenes.scene(index).label_map()

  def regions(self, index):
    scene = self._scenes.scene(index)
    return Regions(scene.boxes, masks=scene.masks)

  def check(self):
    pass
