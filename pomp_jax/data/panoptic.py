"""Panoptic annotations as COCO stores them: a JSON of segments, and a PNG of their ids an image.

A pixel of colour R, G, B belongs to the segment of id R + 256 G + 256^2 B of its image, or to none
if that is 0 (https://cocodataset.org/#format-data).

Shapes: R segments of an image, H, W its sides in pixels.
"""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any, NoReturn

from jaxtyping import Int16, Int32, UInt8
import numpy as np

from pomp_jax.data.annotations import AnnotationError, Annotations, annotations_of
from pomp_jax.data.images import open_image
from pomp_jax.data.source import Files
from pomp_jax.files.class_features import CategoryFileError
from pomp_jax.files.paths import is_file, join
from pomp_jax.files.terminal import printable
from pomp_jax.files.texts import read_json

VOID = 0  # id of pixels without a segment


@dataclasses.dataclass(frozen=True)
class Panoptic:
  """Panoptic annotations of a data set.

  Attributes:
    annotations: segments of the images; an annotation's `id` is that of the segment.
    files: PNG of each image, below a folder.
  """

  annotations: Annotations
  files: tuple[str, ...]

  def owners(self, index: int, root: str | os.PathLike) -> Int16[np.ndarray, "H W"]:
    """Number of each pixel's segment in `annotations.rows[index]`, or -1.

    Args:
      index: number of the image.
      root: folder of the PNGs.

    Raises:
      ImageError: the PNG can't be read.
      AnnotationError: no RGB image of H x W, or an id that the JSON lacks.
    """
    path, image = join(root, self.files[index]), self.annotations.images[index]
    opened = open_image(Files(root).read(index, self.files[index]), str(path))
    if opened.mode != "RGB":
      raise AnnotationError(f"{path}: has pixels of mode {opened.mode}; accepted: RGB")
    self.annotations.check_size(path, index, opened.size[::-1])
    ids_HxW = segment_ids(np.asarray(opened.convert("RGB")))
    known = np.array([VOID, *(row["id"] for row in self.annotations.rows[index])])
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known, ids_HxW, sorter=order), len(known) - 1)
    owners_HxW = order[place]
    if (strange := known[owners_HxW] != ids_HxW).any():
      found = f"the segment {ids_HxW[strange][0]}"
      accepted = f"those of image {image.id} in {self.annotations.path}, or {VOID}"
      raise AnnotationError(f"{path}: has {found}; accepted: {accepted}")
    # VOID is the first.
    return (owners_HxW - 1).astype(np.int16)

  def check_files(self, root: str | os.PathLike) -> None:
    """Checks that there is a PNG for each image.

    Raises:
      AnnotationError: the first that is missing.
    """
    for name in self.files:
      if not is_file(path := join(root, name)):
        raise AnnotationError(f"{path}: no such file, named by {self.annotations.path}")


def segment_ids(pixels_HxWx3: UInt8[np.ndarray, "H W 3"]) -> Int32[np.ndarray, "H W"]:
  """Ids of the segments: R + 256 G + 256^2 B."""
  return pixels_HxWx3.astype(np.int32) @ np.array([1, 256, 256**2], np.int32)


def read_panoptic(path: str | os.PathLike, names: Sequence[str] | None = None) -> Panoptic:
  """Reads a panoptic JSON; images without an annotation are left out.

  Args:
    path: file.
    names: class list, as `read_annotations` takes it.

  Raises:
    CategoryFileError, AnnotationError: as `read_annotations`; no `segments_info` or PNG; ids that
      are repeated in an image or beyond 24 bits.
  """
  value = read_json(path, CategoryFileError)
  if not isinstance(value, dict) or not isinstance(value.get("annotations"), list):
    raise AnnotationError(f"{path}: annotations is no list; accepted: a panoptic JSON of COCO")
  file_of: dict[Any, str] = {}
  rows = []
  for i, row in enumerate(value["annotations"]):
    where = f"annotations[{i}]"
    segments = row.get("segments_info") if isinstance(row, dict) else None
    if not isinstance(segments, list) or not all(isinstance(one, dict) for one in segments):
      _refuse(path, f"{where}.segments_info", "no list of objects", "the segments of an image")
    number, name = row.get("image_id"), row.get("file_name")
    if type(number) is not int or number in file_of:
      _refuse(path, f"{where}.image_id", repr(number), "an image's id, each once")
    if not isinstance(name, str) or "/" in name or not name.endswith(".png"):
      _refuse(path, f"{where}.file_name", repr(name), "the name of a PNG")
    ids = [one.get("id") for one in segments]
    if not all(type(one) is int and VOID < one < 256**3 for one in ids) or len(set(ids)) < len(ids):
      _refuse(
        path, f"{where}.segments_info", f"of the ids {ids}", "different ones of 1 to 2^24 - 1"
      )
    file_of[number] = name
    rows += [one | {"image_id": number} for one in segments]
  images = value.get("images")
  if isinstance(images, list):
    images = [
      one
      for one in images
      if not isinstance(one, dict) or type(one.get("id")) is not int or one["id"] in file_of
    ]
  annotations = annotations_of(value | {"annotations": rows, "images": images}, str(path), names)
  if missing := set(file_of) - {image.id for image in annotations.images}:
    _refuse(path, "image_id of an annotation", str(min(missing)), "an image's id")
  return Panoptic(annotations, tuple(file_of[image.id] for image in annotations.images))


def _refuse(path: str | os.PathLike, field: str, found: str, accepted: str) -> NoReturn:
  raise AnnotationError(f"{path}: {field} is {printable(found)}; accepted: {accepted}")
