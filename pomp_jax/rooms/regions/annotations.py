"""Annotations of objects as COCO and LVIS store them, in JSON.

The JSON has images, categories and annotations.
LVIS adds each category's `frequency` (r, c or f) and, for each image, the categories
that are known to be absent (`neg_category_ids`) or not annotated exhaustively
(`not_exhaustive_category_ids`). COCO's panoptic JSON lists segments and names a PNG for
each image. A pixel of the PNG is in the segment whose id is
red + 256 green + 256^2 blue; 0 is no segment. Shapes: R objects or segments of an
image, H and W sides of the image in pixels, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import os
import posixpath
from typing import Any, NamedTuple

from faster_coco_eval.core import mask as mask_api
from jaxtyping import Bool, Float32, Int, Int16, Int32, UInt8
import numpy as np

from pomp_jax.data.class_lists import VocabularyError, normalized_name
from pomp_jax.data.images import MAX_PIXELS, open_image
from pomp_jax.data.source import Files
from pomp_jax.files.paths import Path, is_file, join, read_user_json, scheme_of
from pomp_jax.files.terminal import is_unicode
from pomp_jax.rooms.regions.categories import categories_by_id
from pomp_jax.rooms.regions.label_images import image_size, read_rgb
from pomp_jax.rooms.regions.region_errors import RegionError, refuse

FREQUENCIES = ("r", "c", "f")
# Pixels by which a box or a polygon may leave its image: COCO rounds coordinates.
_SLACK = 2.0
_VOID = 0  # panoptic id of pixels without a segment


class ImageEntry(NamedTuple):
  """One annotated image."""

  id: int
  file_name: str  # path below the image folder
  height: int
  width: int
  # LVIS: ids of the categories that are known to be absent from the image.
  neg_category_ids: tuple[int, ...] = ()
  # LVIS: ids of the categories of which some objects may lack an annotation.
  not_exhaustive_category_ids: tuple[int, ...] = ()


class Truth(NamedTuple):
  """Annotated objects of one image."""

  # x0, y0, x1, y1 in pixels, ends exclusive, inside the image.
  boxes: Float32[np.ndarray, "R 4"]
  classes: Int32[np.ndarray, " R"]
  # Whether an object is a group that detections need not separate.
  crowd: Bool[np.ndarray, " R"]


@dataclasses.dataclass(frozen=True)
class Annotations:
  """Annotations of a data set."""

  path: str  # file, for messages
  names: tuple[str, ...]  # of the C classes
  # category of each class; -1: the file has no such category
  category_ids: Int[np.ndarray, " C"]
  # all names of each class; the first is the one in `names`
  synonyms: tuple[tuple[str, ...], ...]
  # LVIS's frequency of each class, "" for a class without a category; None for COCO
  frequencies: tuple[str, ...] | None
  images: tuple[ImageEntry, ...]  # in the order of the file
  # annotations of each image, as the file has them
  rows: tuple[list[dict[str, Any]], ...]

  def __len__(self) -> int:
    return len(self.images)

  def truth(self, index: int) -> Truth:
    """Annotated objects of an image."""
    image = self.images[index]
    class_of_category = {
      number: label for label, number in enumerate(self.category_ids.tolist())
    }
    boxes = []
    classes = []
    crowd = []
    for row in self.rows[index]:
      x, y, width, height = row["bbox"]
      boxes.append((x, y, x + width, y + height))
      classes.append(class_of_category[row["category_id"]])
      crowd.append(bool(row.get("iscrowd", 0)))
    boxes_Rx4 = np.array(boxes, np.float64).reshape(-1, 4)
    # Rounding may let a box leave its image a little.
    boxes_Rx4 = np.clip(boxes_Rx4, 0, [image.width, image.height] * 2)
    return Truth(
      boxes=boxes_Rx4.astype(np.float32),
      classes=np.array(classes, np.int32),
      crowd=np.array(crowd, bool),
    )

  def masks(self, index: int) -> Bool[np.ndarray, "R H W"]:
    """Decodes the masks of an image's objects, from polygons or RLE.

    Raises:
      RegionError: an object has no mask, or its mask has another size than the image.
    """
    image = self.images[index]
    masks = [mask_api.decode(rle).astype(bool) for rle in self.run_lengths(index)]
    return np.array(masks, bool).reshape(-1, image.height, image.width)

  def run_lengths(self, index: int) -> list[dict[str, Any]]:
    """Encodes the masks of an image's objects as RLE.

    Raises:
      RegionError: an object has no mask, or its mask has another size than the image.
    """
    return [self.run_lengths_of(index, row) for row in self.rows[index]]

  def run_lengths_of(self, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """Encodes the mask of `row`, one of the image's annotations in `rows`, as RLE."""
    image = self.images[index]
    where = f"segmentation of annotation {row.get('id')}"
    return run_lengths(
      self.path, where, row.get("segmentation"), image.height, image.width
    )

  def image_path(self, index: int, root: str | os.PathLike) -> Path:
    """File of an image below a folder."""
    return join(root, self.images[index].file_name)

  def image(self, index: int, root: str | os.PathLike) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image below a folder; RegionError unless it has the annotated size."""
    path = self.image_path(index, root)
    pixels = read_rgb(path)
    self.check_size(path, index, pixels.shape[:2])
    return pixels

  def check_images(self, root: str | os.PathLike, sizes: bool = False) -> None:
    """Checks that all image files exist and, with `sizes`, have their annotated sizes.

    Only the headers of the files are read.
    """
    for index in range(len(self)):
      path = self.image_path(index, root)
      if not is_file(path):
        raise RegionError(f"{path}: no such image, named by {self.path}")
      if sizes:
        self.check_size(path, index, image_size(path))

  def check_size(self, path: Path, index: int, shape: tuple[int, ...]) -> None:
    """Checks that an image file has the annotated size.

    Args:
      path: file, for the message.
      index: number of the image.
      shape: height and width of the file in pixels.

    Raises:
      RegionError: the file has another size.
    """
    image = self.images[index]
    if shape != (image.height, image.width):
      raise RegionError(
        f"{path}: has {shape[1]} x {shape[0]} pixels;"
        f" accepted: {image.width} x {image.height}, as {self.path} says"
      )


def read_annotations(
  path: str | os.PathLike, names: Sequence[str] | None = None
) -> Annotations:
  """Reads a COCO or LVIS JSON file.

  Args:
    path: file to read.
    names: class names, in the order of the class numbers. Names and categories are
      compared as words, so that "a_b" equals "a b". A name without a category stays a
      class without objects. None: the classes are the categories, by ascending id.

  Raises:
    VocabularyError: the file is no JSON, or its categories are unusable.
    RegionError: another part of the file is not in COCO's format, a box or polygon is
      outside its image, or `names` lacks a category.
  """
  content = read_user_json(path, VocabularyError)
  return annotations_of(content, str(path), names)


def annotations_of(
  value: Any, path: str = "the annotations", names: Sequence[str] | None = None
) -> Annotations:
  """Parses the content of a COCO or LVIS file; raises what `read_annotations` raises.

  Args:
    value: content of the JSON file.
    path: name of the file, for messages.
    names: class names, as in `read_annotations`.
  """
  categories = categories_by_id(path, value)
  for number in categories:
    # Ids become an int64 array, in which -1 stands for no category.
    if not 0 <= number < 2**63:
      refuse(path, "the id of a category", str(number), "0 to 2^63 - 1")
  if names is None:
    ids = sorted(categories)
    words = [categories[number].name for number in ids]
  else:
    words = [normalized_name(name) for name in names]
    ids = _ids_of_names(path, words, categories)
  synonyms = tuple(
    (name, *categories[number].synonyms) if number in categories else (name,)
    for name, number in zip(words, ids, strict=True)
  )
  images = [
    _image(path, where, row) for where, row in objects_of(path, value, "images")
  ]
  if not images:
    refuse(path, "images", "empty", "images of different ids")
  index_of = {image.id: index for index, image in enumerate(images)}
  if len(index_of) < len(images):
    refuse(path, "images", "with a repeated id", "images of different ids")
  by_image: list[list[dict[str, Any]]] = [[] for _ in images]
  for where, row in objects_of(path, value, "annotations"):
    image_id = row.get("image_id")
    if type(image_id) is not int or image_id not in index_of:
      refuse(path, f"{where}.image_id", repr(image_id), "an image's id")
    index = index_of[image_id]
    _check_annotation(path, where, row, images[index], categories)
    by_image[index].append(row)
  return Annotations(
    path,
    names=tuple(words),
    category_ids=np.array(ids),
    synonyms=synonyms,
    frequencies=_frequencies(path, value["categories"], ids),
    images=tuple(images),
    rows=tuple(by_image),
  )


def _ids_of_names(
  path: str, words: Sequence[str], categories: Mapping[int, Any]
) -> list[int]:
  """Category id of each name, -1 for none; RegionError if a category has no name."""
  id_of = {category.name: number for number, category in categories.items()}
  known = set(words)
  for name, number in id_of.items():
    if name not in known:
      accepted = f"one of the {len(words)} names of the class list"
      refuse(path, f"the category {number}", repr(name), accepted)
  return [id_of.get(name, -1) for name in words]


def _frequencies(
  path: str, categories: Sequence[Mapping[str, Any]], ids: Sequence[int]
) -> tuple[str, ...] | None:
  """LVIS's frequency of each class; None if the file has no frequencies.

  The frequency of a class without a category is "".
  """
  frequency_of: dict[int, Any] = {row["id"]: row.get("frequency") for row in categories}
  if not any(frequency_of.values()):
    return None
  for number, frequency in frequency_of.items():
    if frequency not in FREQUENCIES:
      accepted = ", ".join(FREQUENCIES)
      refuse(path, f"frequency of category {number}", repr(frequency), accepted)
  return tuple(frequency_of.get(number, "") for number in ids)


def run_lengths(
  path: str | os.PathLike, where: str, segmentation: Any, height: int, width: int
) -> dict[str, Any]:
  """Converts a segmentation to RLE as `faster_coco_eval.core.mask` takes it.

  Args:
    path: file of the annotations, for messages.
    where: place in the file, for messages.
    segmentation: list of polygons x, y, x, y, .., or {"size": [H,W], "counts": ..} with
      RLE as a list of run lengths or as a string. Polygons of fewer than three points
      are empty.
    height: height of the image in pixels, H.
    width: width of the image in pixels, W.

  Raises:
    RegionError: the segmentation is no mask of H x W.
  """
  _check_segmentation(path, where, segmentation, height, width)
  is_polygons = isinstance(segmentation, list)
  if is_polygons:
    # COCO has polygons of one or two points, which have no area. Drop them: the library
    # takes some of them for boxes.
    segmentation = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not segmentation:
      empty_HxW = np.zeros((height, width), np.uint8, order="F")
      return mask_api.encode(empty_HxW)
  elif isinstance(segmentation["counts"], str):
    # The library decodes bytes only.
    counts = segmentation["counts"].encode()
    segmentation = {**segmentation, "counts": counts}

  try:
    rle = mask_api.segmToRle(segmentation, width, height)
    if not is_polygons:
      # Check the runs here: with wrong ones, some versions of the library read beyond
      # the image.
      runs = _runs(rle["counts"])
      n_pixels = sum(runs)
      if min(runs, default=0) < 0 or n_pixels != height * width:
        raise ValueError(f"runs of {n_pixels} pixels")
  except Exception as error:  # the library's errors share no base
    refuse(path, where, f"damaged ({error})", f"polygons or RLE of {height} x {width}")
  return rle


def _check_segmentation(
  path: str | os.PathLike, where: str, segmentation: Any, height: int, width: int
) -> None:
  """Checks the form of polygons or RLE without decoding them."""
  if isinstance(segmentation, dict):
    _check_rle(path, where, segmentation, height, width)
    return
  if not segmentation:
    refuse(path, where, "missing", "polygons or RLE")
  if not isinstance(segmentation, list):
    refuse(path, where, repr(segmentation), "polygons or RLE")
  for polygon in segmentation:
    is_polygon = (
      isinstance(polygon, list)
      and len(polygon) % 2 == 0
      and all(map(is_number, polygon))
    )
    if not is_polygon:
      refuse(path, where, "no list of polygons", "x, y, x, y, .. of each polygon")
    points = np.array(polygon, np.float64).reshape(-1, 2)
    if (points < -_SLACK).any() or (points - _SLACK > [width, height]).any():
      accepted = f"points in {width} x {height}"
      refuse(path, where, "a polygon outside the image", accepted)


def _check_rle(
  path: str | os.PathLike,
  where: str,
  segmentation: Mapping[str, Any],
  height: int,
  width: int,
) -> None:
  """Checks the form of RLE without decoding it."""
  size = segmentation.get("size")
  if size != [height, width]:
    refuse(path, f"{where}.size", repr(size), f"[{height}, {width}], as the image")
  match segmentation.get("counts"):
    case str() as text if text.isascii():
      return
    case list() as lengths if all(type(length) is int for length in lengths):
      return
    case counts:
      accepted = "run lengths as a list or a string"
      refuse(path, f"{where}.counts", type(counts).__name__, accepted)


def _runs(counts: bytes) -> list[int]:
  """Decodes COCO's string of run lengths.

  Each character holds five bits of a run; the lowest bits come first.
  """
  runs: list[int] = []
  value = 0
  shift = 0
  for character in counts:
    bits = character - 48
    value |= (bits & 31) << shift
    shift += 5
    if shift > 60:
      raise ValueError("a run without an end")
    # Bit 32: more characters of this run follow. Bit 16 of its last one is the sign.
    if bits & 32:
      continue
    value -= (bits & 16) << (shift - 4)
    # From the fourth run on, the string holds the difference from the run two before.
    if len(runs) > 2:
      value += runs[-2]
    runs.append(value)
    value = 0
    shift = 0
  return runs


def objects_of(
  path: str, value: Any, field: str, within: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields place and content of each object in a list of a JSON object.

  Args:
    path: file, for messages.
    value: JSON object that has the list.
    field: member that is the list.
    within: place of `value` in the file, for messages, such as `annotations[3].`.

  Yields:
    The object's place, such as `images[3]`, and the object.

  Raises:
    RegionError: the member is no list of objects.
  """
  rows = None
  if isinstance(value, dict):
    rows = value.get(field)
  where_list = f"{within}{field}"
  if not isinstance(rows, list):
    actual = f"a {type(rows).__name__}" if rows else "missing"
    refuse(path, where_list, actual, "a list of objects")
  for index, row in enumerate(rows):
    where = f"{where_list}[{index}]"
    if not isinstance(row, dict):
      refuse(path, where, f"a {type(row).__name__}", "an object")
    yield where, row


def _image(path: str, where: str, row: Mapping[str, Any]) -> ImageEntry:
  """Checks and converts the entry of an image."""
  for field in ("id", "height", "width"):
    value = row.get(field)
    # Not `isinstance`: JSON's true is an int to Python.
    fits_int64 = type(value) is int and -(2**63) <= value < 2**63
    if not fits_int64:
      refuse(path, f"{where}.{field}", repr(value), "an integer")
  height = row["height"]
  width = row["width"]
  if min(height, width) < 1 or height * width > MAX_PIXELS:
    refuse(path, where, f"of {width} x {height} pixels", f"1 to {MAX_PIXELS} pixels")
  name: Any = row.get("file_name")
  if name is None and isinstance(row.get("coco_url"), str):
    # LVIS: .../val2017/000000397133.jpg
    name = "/".join(row["coco_url"].split("/")[-2:])
  if not _is_below_a_folder(name):
    refuse(path, f"{where}.file_name", repr(name), "a path below the image folder")
  return ImageEntry(
    row["id"],
    name,
    height,
    width,
    neg_category_ids=_category_ids(path, where, row, "neg_category_ids"),
    not_exhaustive_category_ids=_category_ids(
      path, where, row, "not_exhaustive_category_ids"
    ),
  )


def _is_below_a_folder(name: Any) -> bool:
  """Whether a JSON value is a relative path that stays below the folder it is joined to."""
  if not isinstance(name, str) or not name:
    return False
  if not is_unicode(name) or not name.isprintable():
    return False
  # A URL would replace the folder, see `files.paths.join`.
  if scheme_of(name) is not None:
    return False
  # The first part of an absolute path is empty.
  parts = posixpath.normpath(name).split("/")
  return ".." not in parts and "" not in parts


def _category_ids(
  path: str, where: str, row: Mapping[str, Any], field: str
) -> tuple[int, ...]:
  """Category ids in a member of an image's entry; empty if the member is missing."""
  numbers = row.get(field, [])
  is_list = isinstance(numbers, list)
  if not is_list or not all(type(number) is int for number in numbers):
    refuse(path, f"{where}.{field}", repr(numbers), "a list of category ids")
  return tuple(numbers)


def _check_annotation(
  path: str,
  where: str,
  row: Mapping[str, Any],
  image: ImageEntry,
  categories: Mapping[int, Any],
) -> None:
  """Checks the members of an annotation.

  Args:
    path: file, for messages.
    where: place of the annotation in the file, for messages.
    row: the annotation.
    image: the annotated image.
    categories: categories of the file, by id.

  Raises:
    RegionError: a member is unusable, or the box or a polygon leaves the image.
  """
  category = row.get("category_id")
  if type(category) is not int or category not in categories:
    refuse(path, f"{where}.category_id", repr(category), "the id of a category")
  if row.get("iscrowd", 0) not in (0, 1):
    refuse(path, f"{where}.iscrowd", repr(row["iscrowd"]), "0 or 1")
  if not is_number(row.get("area", 0.0)):
    refuse(path, f"{where}.area", repr(row["area"]), "a number")

  box = row.get("bbox")
  if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
    refuse(path, f"{where}.bbox", repr(box), "x, y, width, height")
  x, y, width, height = box
  # Rounding may move a box a little out of its image.
  right = x + width
  bottom = y + height
  begins_inside = x >= -_SLACK and y >= -_SLACK
  ends_inside = right <= image.width + _SLACK and bottom <= image.height + _SLACK
  if min(width, height) < 0 or not begins_inside or not ends_inside:
    accepted = f"a box in image {image.id} of {image.width} x {image.height}"
    refuse(path, f"{where}.bbox", repr(box), accepted)

  if "segmentation" in row:
    _check_segmentation(
      path,
      f"{where}.segmentation",
      row["segmentation"],
      height=image.height,
      width=image.width,
    )


def is_number(value: Any) -> bool:
  """Whether a JSON value is a number, finite and below 2^31 as coordinates are."""
  return type(value) in (int, float) and abs(value) < 2**31 and math.isfinite(value)


@dataclasses.dataclass(frozen=True)
class Panoptic:
  """Panoptic annotations of a data set."""

  # Segments of the images, as annotations; `id` is the segment's id in the PNG.
  annotations: Annotations
  files: tuple[str, ...]  # path of each image's PNG, below a folder

  def owners(self, index: int, root: str | os.PathLike) -> Int16[np.ndarray, "H W"]:
    """Reads the segment of each pixel from an image's PNG below `root`.

    Returns:
      Number of the segment in `annotations.rows[index]`; -1 for no segment.

    Raises:
      RegionError: the PNG is no RGB image of H x W, or has ids that the JSON lacks.
    """
    path = join(root, self.files[index])
    image = open_image(Files(root).read(index, self.files[index]), str(path))
    if image.mode != "RGB":
      raise RegionError(f"{path}: has pixels of mode {image.mode}; accepted: RGB")
    self.annotations.check_size(path, index, image.size[::-1])
    colours_HxWx3 = np.asarray(image).astype(np.int32)
    ids_HxW = colours_HxWx3 @ np.array([1, 256, 256**2], np.int32)
    # The first known id stands for no segment, so a segment's number is one lower.
    segments = self.annotations.rows[index]
    known = np.array([_VOID, *(segment["id"] for segment in segments)])
    order = np.argsort(known)
    places_HxW = np.searchsorted(known, ids_HxW, sorter=order)
    # The place of an id above all known ones would be behind the last.
    places_HxW = np.minimum(places_HxW, len(known) - 1)
    numbers_HxW = order[places_HxW]
    is_unknown_HxW = known[numbers_HxW] != ids_HxW
    if is_unknown_HxW.any():
      segment = ids_HxW[is_unknown_HxW][0]
      accepted = f"those of its image in {self.annotations.path}, or {_VOID}"
      refuse(path, "an id", f"the segment {segment}", accepted)
    return (numbers_HxW - 1).astype(np.int16)

  def check_files(self, root: str | os.PathLike) -> None:
    """Raises RegionError if the PNG of an image is missing."""
    for name in self.files:
      path = join(root, name)
      if not is_file(path):
        raise RegionError(f"{path}: no such file, named by {self.annotations.path}")


def read_panoptic(
  path: str | os.PathLike, names: Sequence[str] | None = None
) -> Panoptic:
  """Reads a panoptic JSON, without the images that are not annotated.

  Arguments and errors are those of `read_annotations`.
  """
  path = str(path)
  value = read_user_json(path, VocabularyError)
  file_of: dict[int, str] = {}
  rows = []
  for where, row in objects_of(path, value, "annotations"):
    image_id = row.get("image_id")
    segments = [
      segment for _, segment in objects_of(path, row, "segments_info", f"{where}.")
    ]
    if type(image_id) is not int or image_id in file_of:
      refuse(path, f"{where}.image_id", repr(image_id), "an image's id, each once")
    name = row.get("file_name")
    if not isinstance(name, str) or "/" in name or not name.endswith(".png"):
      refuse(path, f"{where}.file_name", repr(name), "the name of a PNG")
    ids = [segment.get("id") for segment in segments]
    are_ids = all(type(number) is int and _VOID < number < 256**3 for number in ids)
    if not are_ids or len(set(ids)) < len(ids):
      accepted = "different ones of 1 to 2^24 - 1"
      refuse(path, f"{where}.segments_info", f"of the ids {ids}", accepted)
    file_of[image_id] = name
    rows += [segment | {"image_id": image_id} for segment in segments]
  # Images with unusable ids stay: `annotations_of` reports them.
  images = [
    image
    for _, image in objects_of(path, value, "images")
    if type(image.get("id")) is not int or image["id"] in file_of
  ]
  annotations = annotations_of(
    value | {"annotations": rows, "images": images}, path, names
  )
  missing = set(file_of) - {image.id for image in annotations.images}
  if missing:
    refuse(path, "image_id of an annotation", str(min(missing)), "an image's id")
  return Panoptic(annotations, tuple(file_of[image.id] for image in annotations.images))
