"""Annotations of objects as COCO and LVIS store them: JSON of images, categories and
annotations.

LVIS adds each category's `frequency` (r, c or f) and, for each image, the categories
that are known to be absent (`neg_category_ids`) or not annotated exhaustively
(`not_exhaustive_category_ids`). COCO's panoptic JSON has segments, and for each image a
PNG: a pixel of colour R, G, B is of the segment R + 256 G + 256^2 B, of none at 0.
Shapes: R objects or segments of an image, H, W its sides in pixels, C classes.
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
# Pixels by which a box or a polygon may leave its image, since COCO's are rounded.
_SLACK = 2.0
_VOID = 0  # panoptic id of pixels without a segment


class ImageEntry(NamedTuple):
  """One annotated image."""

  id: int
  file_name: str  # path below the image folder
  height: int
  width: int
  # LVIS's ids of categories that are known to be absent, and that are annotated in
  # part.
  neg_category_ids: tuple[int, ...] = ()
  not_exhaustive_category_ids: tuple[int, ...] = ()


class Truth(NamedTuple):
  """Annotated objects of one image."""

  # x0, y0, x1, y1 in pixels, ends exclusive, inside the image
  boxes: Float32[np.ndarray, "R 4"]
  classes: Int32[np.ndarray, " R"]
  # whether an object is a group that detections need not separate
  crowd: Bool[np.ndarray, " R"]


@dataclasses.dataclass(frozen=True)
class Annotations:
  """Annotations of a data set."""

  path: str  # file, for messages
  names: tuple[str, ...]  # of the C classes
  # of each class; -1: the file has no such category
  category_ids: Int[np.ndarray, " C"]
  synonyms: tuple[tuple[str, ...], ...]  # all names of each class, the first included
  frequencies: tuple[str, ...] | None  # LVIS's of each class, "" without a category
  images: tuple[ImageEntry, ...]  # in the order of the file
  # by image, its annotations as the file has them
  rows: tuple[list[dict[str, Any]], ...]

  def __len__(self) -> int:
    return len(self.images)

  def truth(self, index: int) -> Truth:
    """Objects of an image."""
    rows, image = self.rows[index], self.images[index]
    boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.clip(boxes, 0, [image.width, image.height] * 2)
    class_of = {
      number: index for index, number in enumerate(self.category_ids.tolist())
    }
    classes = [class_of[row["category_id"]] for row in rows]
    crowd = np.array([bool(row.get("iscrowd", 0)) for row in rows], bool)
    return Truth(boxes.astype(np.float32), np.array(classes, np.int32), crowd)

  def masks(self, index: int) -> Bool[np.ndarray, "R H W"]:
    """Masks of an image's objects, from polygons or RLE; RegionError as
    `run_lengths`."""
    image = self.images[index]
    masks = [mask_api.decode(rle).astype(bool) for rle in self.run_lengths(index)]
    return np.array(masks, bool).reshape(-1, image.height, image.width)

  def run_lengths(self, index: int) -> list[dict[str, Any]]:
    """The same masks as RLE; RegionError if an object has none, or one of another
    size."""
    return [self.run_lengths_of(index, row) for row in self.rows[index]]

  def run_lengths_of(self, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """The mask of one of an image's `rows`."""
    where, image = f"segmentation of annotation {row.get('id')}", self.images[index]
    return run_lengths(
      self.path, where, row.get("segmentation"), image.height, image.width
    )

  def image_path(self, index: int, root: str | os.PathLike) -> Path:
    """File of an image below a folder."""
    return join(root, self.images[index].file_name)

  def image(self, index: int, root: str | os.PathLike) -> UInt8[np.ndarray, "H W 3"]:
    """Pixels of an image below a folder; RegionError if its size is not the one
    named here."""
    path = self.image_path(index, root)
    pixels = read_rgb(path)
    self.check_size(path, index, pixels.shape[:2])
    return pixels

  def check_images(self, root: str | os.PathLike, sizes: bool = False) -> None:
    """Checks that all image files exist and, by their headers, have the sizes named
    here."""
    for index in range(len(self)):
      if not is_file(path := self.image_path(index, root)):
        raise RegionError(f"{path}: no such image, named by {self.path}")
      if sizes:
        self.check_size(path, index, image_size(path))

  def check_size(self, path: Path, index: int, shape: tuple[int, ...]) -> None:
    """Raises RegionError unless the file of an image has the height and width named
    here."""
    _, _, height, width, *_ = self.images[index]
    if shape != (height, width):
      found, accepted = (
        f"{shape[1]} x {shape[0]}",
        f"{width} x {height}, as {self.path} says",
      )
      raise RegionError(f"{path}: has {found} pixels; accepted: {accepted}")


def read_annotations(
  path: str | os.PathLike, names: Sequence[str] | None = None
) -> Annotations:
  """Reads a COCO or LVIS JSON file.

  The classes are those of `names`, compared as words, so that "a_b" equals "a b"; names
  without a category are kept. Without a list they are the file's categories in
  ascending order of their ids. VocabularyError for no JSON, or unusable categories;
  RegionError for anything else that is not as COCO describes it, a box or polygon
  outside its image, or a category that `names` lacks.
  """
  return annotations_of(read_user_json(path, VocabularyError), str(path), names)


def annotations_of(
  value: Any, path: str = "the annotations", names: Sequence[str] | None = None
) -> Annotations:
  """Annotations from the content of a file; see `read_annotations`."""
  categories = categories_by_id(path, value)
  if strange := [number for number in categories if not 0 <= number < 2**63]:
    refuse(path, "the id of a category", str(strange[0]), "0 to 2^63 - 1")
  words = [normalized_name(name) for name in names or ()]
  if names is None:
    ids = np.array(sorted(categories))
    words = [categories[number].name for number in ids]
  else:
    id_of = {category.name: number for number, category in categories.items()}
    if missing := [name for name in id_of if name not in set(words)]:
      accepted = f"one of the {len(words)} names of the class list"
      refuse(path, f"the category {id_of[missing[0]]}", repr(missing[0]), accepted)
    ids = np.array([id_of.get(name, -1) for name in words])
  synonyms = tuple(
    (name, *categories[number].synonyms) if number in categories else (name,)
    for name, number in zip(words, ids.tolist(), strict=True)
  )
  images = [
    _image(path, where, row) for where, row in objects_of(path, value, "images")
  ]
  place = {image.id: index for index, image in enumerate(images)}
  if not images or len(place) < len(images):
    refuse(
      path,
      "images",
      "with a repeated id" if images else "empty",
      "images of different ids",
    )
  by_image: list[list[dict[str, Any]]] = [[] for _ in images]
  for where, row in objects_of(path, value, "annotations"):
    number = row.get("image_id")
    if type(number) is not int or number not in place:
      refuse(path, f"{where}.image_id", repr(number), "an image's id")
    _check_annotation(path, where, row, images[place[number]], categories)
    by_image[place[number]].append(row)
  frequency_of = {row["id"]: row.get("frequency") for row in value["categories"]}
  frequencies = None
  if any(frequency_of.values()):
    for number, own in frequency_of.items():
      if own not in FREQUENCIES:
        refuse(
          path, f"frequency of category {number}", repr(own), ", ".join(FREQUENCIES)
        )
    frequencies = tuple(frequency_of.get(number, "") for number in ids.tolist())
  return Annotations(
    path, tuple(words), ids, synonyms, frequencies, tuple(images), tuple(by_image)
  )


def run_lengths(
  path: str | os.PathLike, where: str, segmentation: Any, height: int, width: int
) -> dict[str, Any]:
  """RLE as `faster_coco_eval.core.mask` takes it; RegionError unless it is a mask of H
  x W.

  `segmentation` is a list of polygons x, y, x, y, .., or {"size": [H,W], "counts": ..}
  with RLE as a list of run lengths or as a string. Polygons of fewer than three points
  are empty.
  """
  _check_segmentation(path, where, segmentation, height, width)
  if isinstance(segmentation, list):
    # COCO has polygons of one or two points, which have no area; the library takes some
    # for boxes.
    segmentation = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not segmentation:
      return mask_api.encode(np.zeros((height, width), np.uint8, order="F"))
  elif isinstance(segmentation["counts"], str):  # the library decodes bytes only
    segmentation = segmentation | {"counts": segmentation["counts"].encode()}
  try:
    rle = mask_api.segmToRle(segmentation, width, height)
    # Check the runs here: some versions of the library read beyond the image.
    runs = _runs(rle["counts"]) if isinstance(segmentation, dict) else [height * width]
    if min(runs, default=0) < 0 or sum(runs) != height * width:
      raise ValueError(f"runs of {sum(runs)} pixels")
  except Exception as error:  # the library's errors share no base
    refuse(path, where, f"damaged ({error})", f"polygons or RLE of {height} x {width}")
  return rle


def _check_segmentation(
  path: str | os.PathLike, where: str, segmentation: Any, height: int, width: int
) -> None:
  """Checks the form of polygons or RLE without decoding them."""
  if isinstance(segmentation, dict):
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
      refuse(path, f"{where}.size", repr(size), f"[{height}, {width}], as the image")
    text = isinstance(counts, str) and counts.isascii()
    if not text and not (
      isinstance(counts, list) and all(type(n) is int for n in counts)
    ):
      refuse(
        path,
        f"{where}.counts",
        type(counts).__name__,
        "run lengths as a list or a string",
      )
    return
  if not isinstance(segmentation, list) or not segmentation:
    refuse(
      path, where, repr(segmentation) if segmentation else "missing", "polygons or RLE"
    )
  for polygon in segmentation:
    if (
      not isinstance(polygon, list)
      or len(polygon) % 2
      or not all(map(is_number, polygon))
    ):
      refuse(path, where, "no list of polygons", "x, y, x, y, .. of each polygon")
    points = np.array(polygon, np.float64).reshape(-1, 2)
    if (points < -_SLACK).any() or (points - _SLACK > [width, height]).any():
      refuse(
        path, where, "a polygon outside the image", f"points in {width} x {height}"
      )


def _runs(counts: bytes) -> list[int]:
  """Run lengths of COCO's string, whose characters hold five bits each, the lowest
  first."""
  runs: list[int] = []
  value = shift = 0
  for character in counts:
    bits = character - 48
    value |= (bits & 31) << shift
    shift += 5
    # 32 says that more follow, and 16 of the last is the sign.
    if shift > 60:
      raise ValueError("a run without an end")
    if not bits & 32:
      value -= (bits & 16) << (shift - 4)
      # From the fourth on differences to the run two before.
      runs.append(value + (runs[-2] if len(runs) > 2 else 0))
      value = shift = 0
  return runs


def objects_of(
  path: str, value: Any, field: str, within: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields place and content of each object of a JSON's list; RegionError if it is
  none."""
  rows = value.get(field) if isinstance(value, dict) else None
  where = f"{within}{field}"
  if not isinstance(rows, list):
    refuse(
      path,
      where,
      f"a {type(rows).__name__}" if rows else "missing",
      "a list of objects",
    )
  for index, row in enumerate(rows):
    if not isinstance(row, dict):
      refuse(path, f"{where}[{index}]", f"a {type(row).__name__}", "an object")
    yield f"{where}[{index}]", row


def _image(path: str, where: str, row: Mapping[str, Any]) -> ImageEntry:
  for field in ("id", "height", "width"):
    if type(row.get(field)) is not int or not -(2**63) <= row[field] < 2**63:
      refuse(path, f"{where}.{field}", repr(row.get(field)), "an integer")
  height, width = row["height"], row["width"]
  if min(height, width) < 1 or height * width > MAX_PIXELS:
    refuse(path, where, f"of {width} x {height} pixels", f"1 to {MAX_PIXELS} pixels")
  name: Any = row.get("file_name")
  # LVIS: .../val2017/000000397133.jpg
  if name is None and isinstance(row.get("coco_url"), str):
    name = "/".join(row["coco_url"].split("/")[-2:])
  shown = isinstance(name, str) and is_unicode(name) and name.isprintable() and name
  # A URL would replace the folder, see `files.paths.join`.
  if (
    not shown
    or {"..", ""} & {*posixpath.normpath(name).split("/")}
    or scheme_of(name) is not None
  ):
    refuse(path, f"{where}.file_name", repr(name), "a path below the image folder")
  lists = []
  for field in ("neg_category_ids", "not_exhaustive_category_ids"):
    numbers = row.get(field, [])
    if not isinstance(numbers, list) or not all(
      type(number) is int for number in numbers
    ):
      refuse(path, f"{where}.{field}", repr(numbers), "a list of category ids")
    lists.append(tuple(numbers))
  return ImageEntry(row["id"], name, height, width, *lists)


def _check_annotation(
  path: str,
  where: str,
  row: Mapping[str, Any],
  image: ImageEntry,
  categories: Mapping[int, Any],
) -> None:
  category, box = row.get("category_id"), row.get("bbox")
  if type(category) is not int or category not in categories:
    refuse(path, f"{where}.category_id", repr(category), "the id of a category")
  if row.get("iscrowd", 0) not in (0, 1):
    refuse(path, f"{where}.iscrowd", repr(row["iscrowd"]), "0 or 1")
  if not is_number(row.get("area", 0.0)):
    refuse(path, f"{where}.area", repr(row["area"]), "a number")
  if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
    refuse(path, f"{where}.bbox", repr(box), "x, y, width, height")
  x, y, w, h = box
  inside = (
    min(x, y) >= -_SLACK
    and x + w <= image.width + _SLACK
    and y + h <= image.height + _SLACK
  )
  if min(w, h) < 0 or not inside:
    accepted = f"a box in image {image.id} of {image.width} x {image.height}"
    refuse(path, f"{where}.bbox", repr(box), accepted)
  if "segmentation" in row:
    sides = image.height, image.width
    _check_segmentation(path, f"{where}.segmentation", row["segmentation"], *sides)


def is_number(value: Any) -> bool:
  """Whether a value of a JSON is a finite number that a coordinate can be."""
  return type(value) in (int, float) and abs(value) < 2**31 and math.isfinite(value)


@dataclasses.dataclass(frozen=True)
class Panoptic:
  """Panoptic annotations of a data set."""

  # segments of the images; an annotation's `id` is that of the segment
  annotations: Annotations
  files: tuple[str, ...]  # PNG of each image, below a folder

  def owners(self, index: int, root: str | os.PathLike) -> Int16[np.ndarray, "H W"]:
    """Number of each pixel's segment in `annotations.rows[index]`, or -1, by the PNG
    below `root`.

    RegionError unless that is an RGB image of H x W with ids that the JSON has.
    """
    path = join(root, self.files[index])
    opened = open_image(Files(root).read(index, self.files[index]), str(path))
    if opened.mode != "RGB":
      raise RegionError(f"{path}: has pixels of mode {opened.mode}; accepted: RGB")
    self.annotations.check_size(path, index, opened.size[::-1])
    ids_HxW = np.asarray(opened).astype(np.int32) @ np.array([1, 256, 256**2], np.int32)
    known = np.array([_VOID, *(row["id"] for row in self.annotations.rows[index])])
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known, ids_HxW, sorter=order), len(known) - 1)
    owners_HxW = order[place]
    if (strange := known[owners_HxW] != ids_HxW).any():
      accepted = f"those of its image in {self.annotations.path}, or {_VOID}"
      refuse(path, "an id", f"the segment {ids_HxW[strange][0]}", accepted)
    # The first of `known` is no segment.
    return (owners_HxW - 1).astype(np.int16)

  def check_files(self, root: str | os.PathLike) -> None:
    """Raises RegionError for the first image without its PNG."""
    for name in self.files:
      if not is_file(path := join(root, name)):
        raise RegionError(f"{path}: no such file, named by {self.annotations.path}")


def read_panoptic(
  path: str | os.PathLike, names: Sequence[str] | None = None
) -> Panoptic:
  """Reads a panoptic JSON as `read_annotations`; images without annotation are left
  out."""
  path, value = str(path), read_user_json(path, VocabularyError)
  file_of: dict[int, str] = {}
  rows = []
  for where, row in objects_of(path, value, "annotations"):
    number, name = row.get("image_id"), row.get("file_name")
    segments = [one for _, one in objects_of(path, row, "segments_info", f"{where}.")]
    if type(number) is not int or number in file_of:
      refuse(path, f"{where}.image_id", repr(number), "an image's id, each once")
    if not isinstance(name, str) or "/" in name or not name.endswith(".png"):
      refuse(path, f"{where}.file_name", repr(name), "the name of a PNG")
    ids = [one.get("id") for one in segments]
    valid = all(type(one) is int and _VOID < one < 256**3 for one in ids)
    if not valid or len(set(ids)) < len(ids):
      accepted = "different ones of 1 to 2^24 - 1"
      refuse(path, f"{where}.segments_info", f"of the ids {ids}", accepted)
    file_of[number] = name
    rows += [one | {"image_id": number} for one in segments]
  images = [
    one
    for _, one in objects_of(path, value, "images")
    if type(one.get("id")) is not int or one["id"] in file_of
  ]
  annotations = annotations_of(
    value | {"annotations": rows, "images": images}, path, names
  )
  if missing := set(file_of) - {image.id for image in annotations.images}:
    refuse(path, "image_id of an annotation", str(min(missing)), "an image's id")
  return Panoptic(annotations, tuple(file_of[image.id] for image in annotations.images))
