"""Regions from COCO results."""

from collections.abc import Iterable, Mapping
import json
import logging
import os
from typing import Any

from faster_coco_eval.core import mask as mask_api
import numpy as np

from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.files.paths import is_dir, read_user_json
from pomp_jax.rooms.regions.annotations import is_number, run_lengths
from pomp_jax.rooms.regions.region_errors import refuse
from pomp_jax.rooms.regions.region_folder import (
  HEADER,
  MAX_SCORE,
  ImageSize,
  RegionFolder,
  RegionHeader,
  Regions,
  boxes_inside,
)

log = logging.getLogger(__name__)


class RegionResults:
  """COCO results as regions, one of each box and mask of any category; scores are objectness."""

  header: RegionHeader | None = None  # no embeddings

  def __init__(self, path: str | os.PathLike):
    """Reads a JSON list of results, each with `image_id`, `score`, and `bbox` or `segmentation`."""
    self._path = str(path)
    rows = read_user_json(path, VocabularyError)
    if not isinstance(rows, list):
      refuse(path, "the file", f"a {type(rows).__name__}", "a list of results")
    self._rows: dict[str | int, dict[Any, Mapping[str, Any]]] = {}
    for i, row in enumerate(rows):
      # The same region under another category has the same key.
      same = _key(path, f"result {i}", row)
      own = self._rows.setdefault(row["image_id"], {})
      if same not in own or own[same]["score"] < row["score"]:
        own[same] = row

  def check(self, images: Iterable[ImageSize], most: int | None = None) -> str | int | None:
    """Checks the regions of all images as `read`, and that the file names one of the images.

    Returns the key of the first image of which a region has no mask, or None.
    """
    images = list(images)
    boxes_alone = [image[0] for image in images if None in self._best(*image, most)[2]]
    missing = [key for key, *_ in images if key not in self._rows]
    known = len(images) - len(missing)
    if self._rows and not known:
      found = f"about other images, such as {next(iter(self._rows))}"
      refuse(self._path, "the file", found, "results of the data set")
    if missing:
      log.warning(
        "%s: results of %d of %d images; %d have none, such as %s",
        *(self._path, known, len(images), len(missing), missing[0]),
      )
    return next(iter(boxes_alone), None)

  def read(self, key: str | int, height: int, width: int, most: int | None = None) -> Regions:
    """Regions of an image, `most` at most, by falling score; masks if all of them have one."""
    boxes, scores, rles = self._best(key, height, width, most)
    masks = None
    if rles and None not in rles:
      masks = np.stack([mask_api.decode(rle).astype(bool) for rle in rles])
    return Regions(boxes, scores, masks)

  def _best(self, key: str | int, height: int, width: int, most: int | None):
    """Boxes, scores, and masks as RLE or None each."""
    rows = sorted(self._rows.get(key, {}).values(), key=lambda row: -row["score"])[:most]
    where = f"a segmentation of image {key}"
    own = lambda mask: run_lengths(self._path, where, mask, height, width) if mask else None
    rles = [own(row.get("segmentation")) for row in rows]
    boxes = np.zeros((len(rows), 4), np.float64)
    for i, row in enumerate(rows):
      boxes[i] = row["bbox"] if "bbox" in row else mask_api.toBbox(rles[i])
    boxes[:, 2:] += boxes[:, :2]
    scores = np.minimum([row["score"] for row in rows], 1.0).astype(np.float32)
    return boxes_inside(self._path, boxes, height, width), scores, rles


def open_regions(path: str | os.PathLike) -> RegionFolder | RegionResults:
  """Opens a folder of regions or a COCO results file; errors as the two classes'."""
  return RegionFolder(path) if is_dir(path) else RegionResults(path)


def region_files(path: str | os.PathLike, keys: Iterable[str | int]) -> list[str | os.PathLike]:
  """Files that `open_regions` and the regions of these images are read from."""
  if not is_dir(path):
    return [path]
  return [os.path.join(path, HEADER), *(os.path.join(path, f"{key}.npz") for key in keys)]


def _key(path: str | os.PathLike, where: str, row: Any) -> Any:
  """Checks a result; returns its box and mask, or else the run lengths of its mask."""
  if not isinstance(row, dict):
    refuse(path, where, f"a {type(row).__name__}", "an object")
  score: Any = row.get("score")
  box, mask = row.get("bbox"), row.get("segmentation")
  if type(row.get("image_id")) is not int:
    refuse(path, f"image_id of {where}", repr(row.get("image_id")), "an integer")
  if type(score) not in (int, float) or not 0 <= score <= MAX_SCORE:
    refuse(path, f"score of {where}", repr(score), "0 to 1")
  if "bbox" in row:
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
      refuse(path, f"bbox of {where}", repr(box), "x, y, width, height")
    return *box, json.dumps(mask, sort_keys=True)
  counts = mask.get("counts") if isinstance(mask, dict) else None
  if isinstance(counts, str):
    return counts
  if not isinstance(counts, list) or not all(map(is_number, counts)):
    refuse(path, where, "without bbox and RLE", "one of them")
  return tuple(counts)
