"""Image source `regions`: crops of annotated regions, for prompts that are tuned on them.

`data.annotations` is a COCO or LVIS JSON, of which each object is an image, or a folder of label
images, of which each class of each image is one (ZSSeg). A crop is the box of the mask, with CLIP's
mean colour outside the mask; an object without a mask is its box. There is one split, "train", of
which test and validation images may be held out.

Classes are the JSON's categories, or those of `data.names` without its novel ones: a list with
halves (`data.class_splits`). A label image has class numbers, or the values of the list.
"""

from faster_coco_eval.core import mask as mask_api
from jaxtyping import Bool, Int, UInt8
import numpy as np

from pomp_jax.data.class_splits import ClassSplit, read_class_split
from pomp_jax.data.source import DataFields, SourceError, StoredImages
from pomp_jax.files.pieces import file_stamps, fingerprint, stored_array
from pomp_jax.files.terminal import waiting
from pomp_jax.rooms.regions.annotations import Annotations, read_annotations, run_lengths
from pomp_jax.rooms.regions.pixels import PixelFolder, open_pixels

# CLIP's mean colour, in 8 bits.
_FILL = (123, 117, 104)


def splits(data: DataFields) -> tuple[str, ...]:
  """The one split."""
  return ("train",)


def open_split(data: DataFields, split: str) -> StoredImages:
  """Opens all regions of `data.annotations`, of images below `data.root`.

  Raises:
    SourceError: no region of the classes.
    AnnotationError, CategoryFileError, PixelError, ImageError, VocabularyError: unusable files.
  """
  classes = read_class_split(data.names) if data.names else None
  if data.annotations.lower().endswith(".json"):
    source = _objects(data, classes)
  elif classes is None:
    raise SourceError("data.names is empty; accepted: the classes of the label images")
  else:
    source = _labels(data, classes)
  if classes is not None:
    source = source.of_classes(np.flatnonzero(np.array(classes.groups) != "novel"))
  if not len(source):
    raise SourceError(f"{data.annotations}: no region of the {len(source.names)} classes")
  return source


def _objects(data: DataFields, classes: ClassSplit | None) -> StoredImages:
  annotations = read_annotations(data.annotations, classes and classes.names)
  annotations.check_images(data.root)
  rows, labels, keys = [], [], []
  for index, image in enumerate(annotations.images):
    truth = annotations.truth(index)
    for number, label in enumerate(truth.classes.tolist()):
      if not truth.crowd[number] and (truth.boxes[number, :2] < truth.boxes[number, 2:]).all():
        rows.append((index, number))
        labels.append(label)
        keys.append(f"{image.file_name}:{number}")
  storage = _Objects(annotations, data.root, np.array(rows, np.int32).reshape(-1, 2))
  return StoredImages(annotations.names, labels, keys, storage)


def _labels(data: DataFields, classes: ClassSplit) -> StoredImages:
  values = "index" if classes.values is None else "listed"
  folder = open_pixels(data.root, data.annotations, classes, values)
  stamps = file_stamps(path for _, path in folder.files if path is not None)
  key = fingerprint(["region crops", str(classes), *folder.keys, stamps])
  rows_nx2 = stored_array(data.cache, key, lambda: _classes_of_images(folder))
  keys = [f"{folder.keys[index]}:{label}" for index, label in rows_nx2.tolist()]
  return StoredImages(classes.names, rows_nx2[:, 1], keys, _LabelImages(folder, rows_nx2))


def _classes_of_images(folder: PixelFolder) -> np.ndarray:
  """Rows (image, class) of the classes in each label image."""
  with waiting("reading all label images; data.cache stores their classes"):
    found = [np.unique(folder.labels(index)) for index in range(len(folder))]
  rows = [(index, c) for index, own in enumerate(found) for c in own[own >= 0].tolist()]
  return np.array(rows, np.int32).reshape(-1, 2)


class _Objects:
  """Storage of the objects of a JSON; rows are (image, object)."""

  def __init__(self, annotations: Annotations, root: str, rows_nx2: Int[np.ndarray, "n 2"]):
    self._annotations, self._root, self._rows = annotations, root, rows_nx2

  def read(self, row: int, key: str) -> bytes:
    index, number = self._rows[row].tolist()
    annotations, entry = self._annotations, self._annotations.images[index]
    image, object_ = annotations.image(index, self._root), annotations.rows[index][number]
    x, y, width, height = object_["bbox"]
    if object_.get("segmentation"):
      where = f"segmentation of annotation {object_.get('id')}"
      rle = run_lengths(annotations.path, where, object_["segmentation"], *image.shape[:2])
      if (mask := mask_api.decode(rle).astype(bool)).any():
        return _encoded(image, mask)
    mask = np.zeros(image.shape[:2], bool)
    x0, y0 = min(int(x), entry.width - 1), min(int(y), entry.height - 1)
    mask[max(y0, 0) : int(np.ceil(y + height)), max(x0, 0) : int(np.ceil(x + width))] = True
    return _encoded(image, mask)

  def where(self, row: int, key: str) -> str:
    return f"{self._root}/{key}"


class _LabelImages:
  """Storage of the classes of label images; rows are (image, class)."""

  def __init__(self, folder: PixelFolder, rows_nx2: Int[np.ndarray, "n 2"]):
    self._folder, self._rows = folder, rows_nx2

  def read(self, row: int, key: str) -> bytes:
    index, label = self._rows[row].tolist()
    return _encoded(self._folder.image(index), self._folder.labels(index) == label)

  def where(self, row: int, key: str) -> str:
    return key


def _encoded(image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]) -> bytes:
  """The crop of a mask, as PPM, which takes no time to encode or decode."""
  rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
  crop = np.where(mask[box][..., None], image[box], np.array(_FILL, np.uint8))
  height, width, _ = crop.shape
  return f"P6 {width} {height} 255\n".encode() + crop.tobytes()
