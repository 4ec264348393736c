"""Image source `regions`: crops of annotated regions, to tune prompts on.

Each object of a COCO or LVIS JSON is an image of the source. In a folder of label
images it is each class of each label image (ZSSeg). A crop is the box of the mask, with
CLIP's mean colour outside the mask; for an object without a mask it is the annotated
box. Classes are the JSON's categories, or those of `data.names` without its novel
classes. Test and validation images may be held out of the only split.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

from faster_coco_eval.core import mask as mask_api
from jaxtyping import Bool, Int32, UInt8
import numpy as np

from pomp_jax.config.fields import Data
from pomp_jax.data.source import SourceError, StoredImages
from pomp_jax.files.paths import file_stamps
from pomp_jax.files.pieces import ArrayCache, fingerprint
from pomp_jax.files.terminal import waiting
from pomp_jax.rooms.regions.annotations import Annotations, read_annotations
from pomp_jax.rooms.regions.class_splits import ClassSplit, read_class_split
from pomp_jax.rooms.regions.fields import RegionData
from pomp_jax.rooms.regions.label_images import PixelFolder, open_pixels

# CLIP's mean colour, in 8 bits.
_FILL = (123, 117, 104)


def splits(data: Data) -> tuple[str, ...]:
  """Names of the splits: only "train"."""
  return ("train",)


def open_split(data: Data, split: str) -> StoredImages:
  """Opens every annotated region as an image, except for regions of novel classes.

  Args:
    data: `annotations`, a COCO or LVIS JSON file or a folder of label images; `root`,
      the folder of the images; `names`, the classes, which label images need.
    split: name of the split, always `train`.

  Raises:
    SourceError: the classes of label images are not named, or no region has a class.
    InputError: the class list, an annotation or a label image is unusable.
  """
  classes = None
  if data.names:
    classes = read_class_split(data.names)

  path = data.of(RegionData).annotations
  if path.lower().endswith(".json"):
    regions = _objects(data, path, classes)
  elif classes is None:
    raise SourceError("data.names is empty; accepted: the classes of the label images")
  else:
    regions = _labels(data, path, classes)

  if classes is not None:
    regions = regions.of_classes(classes.not_novel())
  if len(regions) == 0:
    raise SourceError(f"{path}: no region of the {len(regions.names)} classes")
  return regions


def _objects(data: Data, path: str, classes: ClassSplit | None) -> StoredImages:
  """Every object of a JSON file, without crowds and boxes without an area."""
  annotations = read_annotations(path, classes.names if classes else None)
  annotations.check_images(data.root)
  rows = []
  labels = []
  keys = []
  for index, image in enumerate(annotations.images):
    truth = annotations.truth(index)
    has_area = (truth.boxes[:, :2] < truth.boxes[:, 2:]).all(axis=1)
    for number in np.flatnonzero(has_area & ~truth.crowd).tolist():
      rows.append((index, number))
      labels.append(int(truth.classes[number]))
      keys.append(f"{image.file_name}:{number}")
  rows_nx2 = np.array(rows, np.int32).reshape(-1, 2)
  read = functools.partial(_object_of, annotations, data.root)
  storage = _Crops(data.root, rows_nx2, read)
  return StoredImages(annotations.names, labels, keys, storage)


def _labels(data: Data, path: str, classes: ClassSplit) -> StoredImages:
  """Every class of every label image, a crop each.

  Args:
    data: folder of the images, and the cache.
    path: folder of the label images.
    classes: classes of the labels, with their values if the class list gives any.
  """
  values = "index" if classes.values is None else "listed"
  folder = open_pixels(data.root, path, classes, values)

  def classes_of_images() -> Int32[np.ndarray, "n 2"]:
    """Rows (image, class) of the classes in each label image."""
    rows = []
    with waiting("reading all label images; data.cache stores their classes"):
      for index in range(len(folder)):
        labels = np.unique(folder.labels(index))
        for label in labels[labels >= 0].tolist():
          rows.append((index, label))
    return np.array(rows, np.int32).reshape(-1, 2)

  label_files = [labels for _, labels in folder.files if labels is not None]
  stamps = file_stamps(label_files)
  cache_key = fingerprint(["region crops", str(classes), *folder.keys, stamps])
  rows_nx2 = ArrayCache(data.cache).get(cache_key, classes_of_images)

  keys = []
  for index, label in rows_nx2.tolist():
    keys.append(f"{folder.keys[index]}:{label}")
  read = functools.partial(_class_of, folder)
  storage = _Crops(data.root, rows_nx2, read)
  return StoredImages(classes.names, rows_nx2[:, 1], keys, storage)


class _MaskedImage(NamedTuple):
  """An image, and the pixels of one region in it."""

  image_HxWx3: UInt8[np.ndarray, "H W 3"]
  mask_HxW: Bool[np.ndarray, "H W"]


class _Crops:
  """Storage of crops, each of one region of an image.

  A row is a pair of numbers: an image, and an object or a class in it.
  """

  def __init__(
    self,
    root: str,
    rows_nx2: Int32[np.ndarray, "n 2"],
    read_region: Callable[[int, int], _MaskedImage],
  ):
    """Takes the rows and the function that reads them; reads no file.

    Args:
      root: folder of the images, for messages.
      rows_nx2: image and region of each crop.
      read_region: function from the two numbers of a row to an image and its region;
        picklable, for worker processes.
    """
    self._root = root
    self._rows_nx2 = rows_nx2
    self._read_region = read_region

  def read(self, row: int, key: str) -> bytes:
    """Cuts the crop of a region, as PPM, which takes no time to encode or decode.

    Pixels outside the mask get CLIP's mean colour.
    """
    image_HxWx3, mask_HxW = self._read_region(*self._rows_nx2[row].tolist())
    rows = np.flatnonzero(mask_HxW.any(axis=1))
    columns = np.flatnonzero(mask_HxW.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    is_inside = mask_HxW[box][..., None]
    crop = np.where(is_inside, image_HxWx3[box], np.array(_FILL, np.uint8))
    height, width, _ = crop.shape
    return f"P6 {width} {height} 255\n".encode() + crop.tobytes()

  def where(self, row: int, key: str) -> str:
    return f"{self._root}/{key}"


def _object_of(
  annotations: Annotations, root: str, index: int, number: int
) -> _MaskedImage:
  """An annotated object and its image.

  The mask is the annotated mask. If that is missing or empty, the mask is the box.

  Args:
    annotations: content of the JSON file.
    root: folder of the images.
    index: number of the image.
    number: number of the object in the image.
  """
  image_HxWx3 = annotations.image(index, root)
  annotation = annotations.rows[index][number]
  if annotation.get("segmentation"):
    rle = annotations.run_lengths_of(index, annotation)
    mask_HxW = mask_api.decode(rle).astype(bool)
    if mask_HxW.any():
      return _MaskedImage(image_HxWx3, mask_HxW)

  height, width, _ = image_HxWx3.shape
  x, y, box_width, box_height = annotation["bbox"]
  # Take at least one pixel inside the image, since a box may begin a little outside.
  left = max(min(int(x), width - 1), 0)
  top = max(min(int(y), height - 1), 0)
  right = int(np.ceil(x + box_width))
  bottom = int(np.ceil(y + box_height))
  mask_HxW = np.zeros((height, width), bool)
  mask_HxW[top:bottom, left:right] = True
  return _MaskedImage(image_HxWx3, mask_HxW)


def _class_of(folder: PixelFolder, index: int, label: int) -> _MaskedImage:
  """The pixels of one class in the label image of an image."""
  return _MaskedImage(folder.image(index), folder.labels(index) == label)
