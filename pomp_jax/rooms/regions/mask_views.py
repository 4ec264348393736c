"""Views of images with region maps, for training a network that finds regions.

A region map has the number of the region that owns each pixel, or -1. Regions therefore
do not overlap. If annotated objects overlap, the smaller object is in front. Shapes: H,
W sides of an image, S side of a view, R regions, T targets of a view, B images.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import NamedTuple

from jaxtyping import Bool, Int, Int16, Int32, UInt8
import numpy as np
from PIL import Image

from pomp_jax.data.images import ImageError
from pomp_jax.rooms.regions.class_splits import ClassSplit
from pomp_jax.rooms.regions.region_errors import RegionError

# Augmentations: "none" shows the whole image, "crop_flip" draws scale, crop and flip.
MASK_AUGMENTS = ("none", "crop_flip")
# Philox key word of this stream; other streams of a seed have other words.
_STREAM = 0x6D61736B


class RegionMap(NamedTuple):
  """One image and its regions."""

  image: UInt8[np.ndarray, "H W 3"]
  owners: Int16[np.ndarray, "H W"]  # number of each pixel's region; -1 for none
  labels: Int32[np.ndarray, " R"]  # classes; a negative one drops the region


Read = Callable[[int], RegionMap]


class RegionMaps:
  """Images with region maps, without the novel classes, for `data.loader`.

  The object is pickled for the loader's workers. `names` has a name for each class.
  `labels` are zeros, since an image has no class of its own.
  """

  def __init__(
    self, classes: ClassSplit, rows: np.ndarray, read: Read, where: Callable
  ):
    """Takes functions that read and name an image by its row.

    Args:
      classes: classes of the labels that `read` returns.
      rows: row of each image, the argument of `read` and `where`.
      read: function from a row to the region map, with labels of all classes.
      where: function from a row to the name of the image, for messages.
    """
    classes_to_train = classes.not_novel()
    names = [classes.names[number] for number in classes_to_train]
    self.names: Sequence[str] = tuple(names)
    self.labels = np.zeros(len(rows), np.int32)
    self._rows = rows
    self._read = read
    self._where = where
    # Map each class of the list to its new number, and a novel class to -1. The label
    # -1 of a region without a class indexes the extra last entry, which is -1 too.
    self._number = np.full(len(classes) + 1, -1, np.int32)
    self._number[classes_to_train] = np.arange(len(classes_to_train))

  def __len__(self) -> int:
    return len(self.labels)

  def region_map(self, index: int) -> RegionMap:
    """Reads one image; ImageError or RegionError if the image or its labels are bad."""
    region_map = self._read(int(self._rows[index]))
    return region_map._replace(labels=self._number[region_map.labels])

  def where(self, index: int) -> str:
    """Name of an image for messages."""
    return str(self._where(int(self._rows[index])))


class Place(NamedTuple):
  """Part of an image that a view shows."""

  height: int  # of the whole image after scaling, pixels
  width: int
  top: int  # first row of the view in the scaled image
  left: int  # first column of the view
  rows: int  # number of rows of the view
  columns: int
  flip: bool  # whether left and right are exchanged


@dataclasses.dataclass(frozen=True)
class MaskViews:
  """Fetches one view of each image for `data.loader`: S x S pixels, at most T targets.

  With the augmentation `none` the longer side becomes S. With `crop_flip` the shorter
  side becomes S times a uniform random scale. A random crop of at most S x S is then
  cut from the image, and flipped in half of the cases.
  """

  source: RegionMaps
  size: int  # S
  n_targets: int  # T
  augment: str = "none"
  seed: int = 0
  scales: tuple[float, float] = (0.5, 2.0)  # smallest and largest

  @property
  def record(self) -> np.dtype:
    """Type of a view: a structured dtype.

    A view has its content in the upper left corner; the rest is padding. The fields:

    image: uint8 [S,S,3], the pixels.
    sides: int32 [2], rows and columns of the content.
    owners: int16 [S,S], number of each pixel's target, or -1.
    labels: int32 [T], class of each target; -1 for padding behind the last target.
    """
    side = self.size
    return np.dtype(
      [
        ("image", np.uint8, (side, side, 3)),
        ("sides", np.int32, (2,)),
        ("owners", np.int16, (side, side)),
        ("labels", np.int32, (self.n_targets,)),
      ]
    )

  @property
  def view_bytes(self) -> int:
    """Bytes of a view, for the loader."""
    return self.record.itemsize

  def __call__(
    self, indices: Int[np.ndarray, " B"], epochs: Int[np.ndarray, " B"]
  ) -> tuple[np.ndarray, Bool[np.ndarray, " B"]]:
    """Returns views [B,1] of type `record`, and whether each image was readable.

    A view depends only on its image, the seed, the index and the epoch.
    """
    views_Bx1 = np.zeros((len(indices), 1), self.record)
    readable_B = np.zeros(len(indices), bool)
    pairs = zip(indices.tolist(), epochs.tolist(), strict=True)
    for row, (index, epoch) in enumerate(pairs):
      try:
        region_map = self.source.region_map(index)
      except (ImageError, RegionError):
        # The loader counts the image as unreadable and names it.
        continue
      height, width = region_map.owners.shape
      place = self.place(height, width, index=index, epoch=epoch)
      self._fill(views_Bx1[row, 0], cut(region_map, place))
      readable_B[row] = True
    return views_Bx1, readable_B

  def _fill(self, view: np.void, part: RegionMap) -> None:
    """Writes a part of an image, and its largest regions, into a view."""
    owners, labels = largest_regions(part.owners, part.labels, self.n_targets)
    height, width = owners.shape
    view["image"][:height, :width] = part.image
    view["sides"] = (height, width)
    view["owners"][:] = -1
    view["owners"][:height, :width] = owners
    view["labels"][:] = -1
    view["labels"][: len(labels)] = labels

  def place(self, height: int, width: int, *, index: int, epoch: int) -> Place:
    """Computes the place of a view.

    The place depends on the arguments, the seed and the settings alone. Only
    `crop_flip` draws it.

    Args:
      height: height of the image in pixels.
      width: width of the image in pixels.
      index: number of the image.
      epoch: number of the pass over the images.
    """
    if self.augment == "none":
      scale = self.size / max(height, width)
      rows = max(1, round(scale * height))
      columns = max(1, round(scale * width))
      return Place(
        height=rows,
        width=columns,
        top=0,
        left=0,
        rows=rows,
        columns=columns,
        flip=False,
      )
    bits = np.random.Philox(key=[self.seed, _STREAM], counter=[0, 0, epoch, index])
    # 53 bits make a float64 in [0, 1).
    uniforms = (bits.random_raw(4) >> 11) * 2.0**-53
    u_scale, u_top, u_left, u_flip = uniforms.tolist()
    smallest, largest = self.scales
    relative_scale = smallest + (largest - smallest) * u_scale
    scale = self.size * relative_scale / min(height, width)
    height = max(1, round(scale * height))
    width = max(1, round(scale * width))
    rows = min(self.size, height)
    columns = min(self.size, width)
    return Place(
      height=height,
      width=width,
      top=int(u_top * (height - rows + 1)),
      left=int(u_left * (width - columns + 1)),
      rows=rows,
      columns=columns,
      flip=u_flip < 0.5,
    )


def cut(whole: RegionMap, place: Place) -> RegionMap:
  """Scales (pixels bilinearly, owners by the nearest), cuts and flips an image."""
  height, width = whole.owners.shape
  # The view's box in pixels of the image before scaling.
  y_step = height / place.height
  x_step = width / place.width
  box = (
    place.left * x_step,
    place.top * y_step,
    (place.left + place.columns) * x_step,
    (place.top + place.rows) * y_step,
  )
  size = (place.columns, place.rows)
  picture = Image.fromarray(whole.image)
  image = np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box))
  numbers = Image.fromarray(whole.owners.astype(np.int32))
  resized = numbers.resize(size, Image.Resampling.NEAREST, box)
  owners = np.asarray(resized).astype(np.int16)
  if place.flip:
    image = image[:, ::-1]
    owners = owners[:, ::-1]
  return RegionMap(image, owners, whole.labels)


def largest_regions(
  owners: Int16[np.ndarray, "H W"], labels: Int32[np.ndarray, " R"], most: int
) -> tuple[Int16[np.ndarray, "H W"], Int32[np.ndarray, " _"]]:
  """Keeps the largest regions that have a pixel and a class, and numbers them anew.

  Args:
    owners: number of each pixel's region, or -1.
    labels: class of each region; a negative number drops the region.
    most: largest number of regions to keep.

  Returns:
    Owners, with -1 for the pixels of dropped regions, and the labels of the kept ones.
    Region 0 is the largest.
  """
  n_regions = len(labels)
  area_R = np.bincount(owners[owners >= 0], minlength=n_regions)
  # A region without a class is dropped like one without a pixel.
  area_R[labels < 0] = 0
  largest = np.argsort(-area_R, kind="stable")[:most]
  largest = largest[area_R[largest] > 0]

  # Map each old number to its new number, and a dropped region to -1. The owner -1 of a
  # pixel without a region indexes the extra last entry, which is -1 too.
  new_number = np.full(n_regions + 1, -1, np.int16)
  new_number[largest] = np.arange(len(largest))
  return new_number[owners], labels[largest]


def map_of_masks(masks: Bool[np.ndarray, "R H W"]) -> Int16[np.ndarray, "H W"]:
  """Region map of masks that may overlap; smaller masks are in front."""
  # Paint the largest mask first.
  owners = np.full(masks.shape[1:], -1, np.int16)
  for region in np.argsort(-masks.sum((1, 2)), kind="stable"):
    owners[masks[region]] = region
  return owners
