"""Panoptic annotations as COCO stores them: a JSON of segments, and a PNG of their ids an image.

A pixel of colour R, G, B belongs to the segment of id R + 256 G + 256^2 B of its image, or to none
if that is 0 (https://cocodataset.org/#format-data).
Shapes: R segments of an image, H, W its sides in pixels.
"""

from collections.abc import Sequence
import dataclasses
import os

from jaxtyping import Int16
import numpy as np

from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.data.images import open_image
from pomp_jax.data.source import Files
from pomp_jax.files.paths import is_file, join, read_user_json
from pomp_jax.rooms.regions.annotations import Annotations, annotations_of, objects_of
from pomp_jax.rooms.regions.region_errors import RegionError, refuse

_VOID = 0  # id of pixels without a segment


@dataclasses.dataclass(frozen=True)
class Panoptic:
  """Panoptic annotations of a data set."""

  annotations: Annotations  # segments of the images; an annotation's `id` is that of the segment
  files: tuple[str, ...]  # PNG of each image, below a folder

  def owners(self, index: int, root: str | os.PathLike) -> Int16[np.ndarray, "H W"]:
    """Number of each pixel's segment in `annotations.rows[index]`, or -1, by the PNG below `root`.

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


def read_panoptic(path: str | os.PathLike, names: Sequence[str] | None = None) -> Panoptic:
  """Reads a panoptic JSON as `read_annotations`; images without annotation are left out."""
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
  annotations = annotations_of(value | {"annotations": rows, "images": images}, path, names)
  if missing := set(file_of) - {image.id for image in annotations.images}:
    refuse(path, "image_id of an annotation", str(min(missing)), "an image's id")
  return Panoptic(annotations, tuple(file_of[image.id] for image in annotations.images))
