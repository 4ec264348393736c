"""Reads regions of images from folders, with the embeddings of a detector, or from COCO
results; writes folders.

Shapes: R regions of an image of H x W pixels, h x w cells of a mask, S stages of a
detector, E embedding.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import io
import json
import logging
import os
import pathlib
from typing import Any, NamedTuple
import zipfile

from faster_coco_eval.core import mask as mask_api
from jaxtyping import Bool, Float, Float32, Num
import numpy as np

from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import Path, is_dir, local_copy, read_user_json, to_path
from pomp_jax.files.prompt_file import architecture
from pomp_jax.files.run_folder import DamagedFileError, with_checksum, without_checksum
from pomp_jax.files.terminal import is_unicode
from pomp_jax.rooms.regions.annotations import is_number, run_lengths
from pomp_jax.rooms.regions.masks import ONE
from pomp_jax.rooms.regions.region_errors import RegionError, refuse

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_HEADER = "regions.json"
_KEY = "key"  # array with the image's name in its file, to detect swapped files
ACTIVATIONS = ("softmax", "sigmoid")
# Key of an image in a file of regions, its height and width in pixels.
_ImageSize = tuple[str | int, int, int]
_MAX_SCORE = 1.1  # SAM's predicted IoU may be a little above 1
_MASKS = (np.float16, np.uint8)  # types of stored masks
_SLACK = 2.0  # pixels by which a box may leave its image


class Regions(NamedTuple):
  """Regions of one image.

  Masks are bool at the image's size, or soft at any size over the whole image. A soft
  mask has the probability of each cell, times 255 as uint8 or times 2^15 as float16.
  """

  # x0, y0, x1, y1 in pixels, ends exclusive, inside the image
  boxes: Float32[np.ndarray, "R 4"]
  # probability that a region is an object
  objectness: Float32[np.ndarray, " R"] | None = None
  masks: Bool[np.ndarray, "R H W"] | Num[np.ndarray, "R h w"] | None = None
  embeddings: Float[np.ndarray, "R S E"] | None = None  # one a stage, of any norm

  def drawn(self, where: str) -> Num[np.ndarray, "R h w"] | Bool[np.ndarray, "R H W"]:
    """The masks; RegionError with `where` if there are boxes only."""
    if self.masks is not None:
      return self.masks
    if len(self.boxes):
      raise RegionError(f"{where}: boxes without masks; accepted: regions with masks")
    return np.zeros((0, 1, 1), bool)

  def top(self, k: int) -> "Regions":
    """The k regions of the highest objectness, best first; without it the first k."""
    order = np.arange(len(self.boxes))
    if self.objectness is not None:
      order = np.argsort(-self.objectness, kind="stable")
    parts: Any = (None if part is None else part[order[:k]] for part in self)
    return Regions(*parts)


@dataclasses.dataclass(frozen=True)
class RegionHeader:
  """Origin of a folder of regions, and how embeddings, if it has any, are scored."""

  made_by: str  # name of the detector or the proposal network
  clip_model: str = ""  # the CLIP whose class vectors the embeddings are compared with
  stages: int = 0  # S; 0: no embeddings
  width: int = 0  # E
  # function of scale * cosine; a softmax is over the classes and the null vector
  activation: str = "sigmoid"
  scale: float = 1.0  # factor of the cosine
  null: tuple[float, ...] | None = None  # class vector of "no object"
  # names of the classes that the network was trained on
  trained_classes: tuple[str, ...] = ()

  def check_fits(self, clip_model: str, width: int, path: str | os.PathLike) -> None:
    """Checks that the embeddings, if there are any, fit a CLIP.

    Args:
      clip_model: name of the CLIP.
      width: width of the CLIP's features, E.
      path: folder of the regions, for the message.

    Raises:
      RegionError: the width differs, or the architectures are known and differ.
    """
    if not self.stages:
      return
    stored = architecture(self.clip_model)
    configured = architecture(clip_model)
    differs = stored and configured and stored != configured
    if self.width != width or differs:
      found = f"{self.clip_model} with embeddings of {self.width}"
      refuse(f"{path}/{_HEADER}", "clip_model", found, f"{clip_model} with {width}")


class RegionFolder:
  """Folder with `regions.json`, read into `header`, and a `KEY.npz` for each image."""

  def __init__(self, path: str | os.PathLike):
    """Reads the header; RegionError or VocabularyError if it is unusable."""
    self._path = to_path(path)
    self.header = _read_header(self._path / _HEADER)

  def check(
    self, images: Iterable[_ImageSize], most: int | None = None
  ) -> str | int | None:
    """Checks the file of each image as `read` does.

    Of masks and embeddings it reads only type and shape.

    Args:
      images: name, height and width in pixels of each image.
      most: ignored, since a file's arrays are checked as a whole; `RegionResults.check`
        uses it.

    Returns:
      Name of the first image that has boxes without masks, or None.

    Raises:
      RegionError: a file is missing or unusable.
    """
    first_without_masks = None
    for key, height, width in images:
      regions = self.read(key, height, width, header_only=True)
      has_boxes_alone = regions.masks is None and len(regions.boxes) > 0
      # No early return: an unusable file of a later image is an error.
      if has_boxes_alone and first_without_masks is None:
        first_without_masks = key
    return first_without_masks

  def read(
    self,
    key: str | int,
    height: int,
    width: int,
    most: int | None = None,
    header_only: bool = False,
  ) -> Regions:
    """Reads the regions of an image.

    Args:
      key: name of the image.
      height: height of the image in pixels.
      width: width of the image in pixels.
      most: number of regions that are kept, see `Regions.top`; None: all.
      header_only: whether to return placeholders of the right shape in place of masks
        and embeddings.

    Raises:
      RegionError: the file is damaged, contains pickled objects, or does not fit the
        header or the image.
    """
    name = f"{key}.npz"
    if pathlib.PurePath(name).name != name or "\0" in name:
      refuse(self._path, "the key of an image", name, "a file name")
    path = self._path / name
    objectness = None
    masks = None
    embeddings = None
    with _open(path) as archive:
      names = _names(archive)
      known = (*Regions._fields, _KEY)
      strange = sorted(set(names) - set(known))
      if strange:
        refuse(path, "an array", repr(strange[0]), ", ".join(known))
      if _KEY in names:
        stored = _array(archive, path, _KEY, ()).item()
        if stored != str(key):
          refuse(path, _KEY, repr(stored), f"{str(key)!r}, that of the file's image")
      boxes = _array(archive, path, "boxes", ("R", 4))
      n_regions = len(boxes)
      if "objectness" in names:
        objectness = _array(archive, path, "objectness", (n_regions,))
      if "masks" in names:
        masks = _array(archive, path, "masks", (n_regions, "h", "w"), header_only)
      if self.header.stages:
        shape = (n_regions, self.header.stages, self.header.width)
        embeddings = _array(archive, path, "embeddings", shape, header_only)
        embeddings = _checked_embeddings(path, embeddings)
    if masks is not None and not header_only:
      _check_soft_masks(path, masks)
    if objectness is not None:
      if not ((objectness >= 0) & (objectness <= _MAX_SCORE)).all():
        refuse(path, "objectness", "not a probability", "0 to 1")
      objectness = np.minimum(objectness, 1).astype(np.float32)
    boxes = boxes_inside(path, boxes, height, width)
    regions = Regions(boxes, objectness, masks, embeddings)
    if most is None:
      return regions
    return regions.top(most)


class RegionWriter:
  """Writes a folder of regions."""

  def __init__(self, path: str | os.PathLike, header: RegionHeader):
    """Creates the folder and its header; OSError if it can't be written."""
    self._path = to_path(path)
    self._path.mkdir(parents=True, exist_ok=True)
    embeddings = dataclasses.asdict(header)
    del embeddings["made_by"]  # stands beside the embeddings' fields
    value = {
      "format_version": FORMAT_VERSION,
      "made_by": header.made_by,
      "embeddings": embeddings if header.stages else None,
    }
    write_file(self._path / _HEADER, json.dumps(with_checksum(value), indent=2))

  def write(self, key: str | int, regions: Regions) -> str:
    """Writes the regions of an image, and returns the file's checksum."""
    arrays = {}
    for name, part in regions._asdict().items():
      if part is not None:
        arrays[name] = part
    arrays[_KEY] = np.array(str(key))
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    return write_file(self._path / f"{key}.npz", content.getvalue())


def _checked_embeddings(path: Path, embeddings: np.ndarray) -> np.ndarray:
  """Embeddings as float16 or float32; RegionError unless they are finite."""
  kind = np.float16 if embeddings.itemsize == 2 else np.float32
  # A float64 beyond float32 becomes infinite, which is refused below.
  with np.errstate(over="ignore"):
    embeddings = embeddings.astype(kind)
  if not np.isfinite(embeddings).all():
    refuse(path, "embeddings", "not finite", "finite values")
  return embeddings


def _check_soft_masks(path: Path, masks: np.ndarray) -> None:
  """Raises RegionError if values of float16 masks are outside 0 to 2^15."""
  if masks.dtype != np.float16 or not masks.size:
    return
  low = masks.min()
  high = masks.max()
  if not 0 <= low <= high <= ONE[np.float16]:
    refuse(path, "masks", f"of values {low} to {high}", "0 to 2^15")


def _read_header(path: Path) -> RegionHeader:
  """Reads `regions.json`; RegionError or VocabularyError if it is unusable."""
  try:
    value = without_checksum(read_user_json(path, VocabularyError), path)
  except DamagedFileError as error:
    raise RegionError(str(error)) from None
  if not isinstance(value, dict):
    refuse(path, "the file", f"a {type(value).__name__}", "an object")
  known = {"format_version", "made_by", "embeddings"}
  strange = sorted(set(value) - known)
  if strange:
    refuse(path, "a field", repr(strange[0]), ", ".join(sorted(known)))
  _member(path, value, "format_version", _is_version, "1")
  made_by = _member(path, value, "made_by", _is_text, "a text")
  fields = _member(path, value, "embeddings", _is_object_or_null, "an object, null")
  if fields is None:
    return RegionHeader(made_by)
  member = functools.partial(_member, path, fields)
  width = member("width", _is_size, "1 or more")
  # The class vector of "no object".
  is_vector = lambda v: _is_list_of(_is_number, v) and len(v) == width
  is_vector_or_null = lambda v: v is None or is_vector(v)
  null_E = member("null", is_vector_or_null, f"null, or {width} numbers")
  if null_E is not None:
    null_E = tuple(float(number) for number in null_E)
  is_name = lambda v: _is_text(v) and len(v) > 0
  clip_model = member("clip_model", is_name, "a CLIP's name")
  stages = member("stages", _is_size, "1 or more")
  is_activation = lambda v: v in ACTIVATIONS
  activation = member("activation", is_activation, ", ".join(ACTIVATIONS))
  scale = member("scale", lambda v: _is_number(v) and v > 0, "a number above 0")
  trained_classes = member(
    "trained_classes", lambda v: _is_list_of(_is_text, v), "a list of names"
  )
  return RegionHeader(
    made_by=made_by,
    clip_model=clip_model,
    stages=stages,
    width=width,
    activation=activation,
    scale=float(scale),
    null=null_E,
    trained_classes=tuple(trained_classes),
  )


def _member(
  path: Path,
  fields: Mapping[str, Any],
  key: str,
  fits: Callable[[Any], Any],
  accepted: str,
) -> Any:
  """A member of the header's JSON; RegionError if it is missing or does not fit."""
  if key not in fields:
    refuse(path, key, "missing", accepted)
  if not fits(fields[key]):
    refuse(path, key, repr(fields[key]), accepted)
  return fields[key]


def _is_version(value: Any) -> bool:
  # Compare the type, since JSON's true equals 1.
  return type(value) is int and value == FORMAT_VERSION


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and is_unicode(value) and value.isprintable()


def _is_size(value: Any) -> bool:
  return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and abs(value) < 1e6


def _is_list_of(fits: Callable[[Any], bool], value: Any) -> bool:
  return isinstance(value, list) and all(map(fits, value))


def _is_object_or_null(value: Any) -> bool:
  return value is None or isinstance(value, dict)


def _open(path: Path) -> zipfile.ZipFile:
  """Opens the file of an image; RegionError if it is no npz."""
  try:
    return zipfile.ZipFile(local_copy(path))
  except FileNotFoundError:
    refuse(path, "the file", "missing", "an npz")
  # A damaged archive fails in more ways than zipfile documents.
  except Exception as error:
    refuse(path, "the file", f"not a whole npz ({error})", "an undamaged npz")


def _names(archive: zipfile.ZipFile) -> list[str]:
  return sorted(name.removesuffix(".npy") for name in archive.namelist())


def _array(
  archive: zipfile.ZipFile,
  path: Path,
  field: str,
  shape: Sequence[int | str],
  header_only: bool = False,
) -> np.ndarray:
  """Reads floats, masks or a text; no pickles.

  Letters in `shape` stand for any size.
  """
  names = _names(archive)
  if field not in names:
    found = f"missing (the file has: {', '.join(names) or 'nothing'})"
    refuse(path, field, found, "an array of that name")
  try:
    array = _read_array(archive, path, field, shape, header_only)
  except RegionError:
    raise
  # zlib, zipfile and NumPy's header parser raise many errors on a bad byte.
  except Exception as error:
    refuse(
      path, field, f"damaged, or not plain numbers ({error})", "an undamaged array"
    )
  match field:
    case "masks":
      fits = array.dtype in _MASKS
      accepted = "float16, uint8"
    case "key":
      fits = array.dtype.kind == "U"
      accepted = "a text"
    case _:
      fits = array.dtype.kind == "f"
      accepted = "floats"
  if not fits:
    refuse(path, field, str(array.dtype), accepted)
  return array


def _read_array(
  archive: zipfile.ZipFile,
  path: Path,
  field: str,
  shape: Sequence[int | str],
  header_only: bool,
) -> np.ndarray:
  """Checks an array's shape, then reads it or makes a placeholder of that shape."""
  with archive.open(f"{field}.npy") as member:
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(member)]
    sizes, _, dtype = read_header(member)
  # Check the shape before memory is allocated.
  fits = len(sizes) == len(shape)
  for size, expected in zip(sizes, shape, strict=False):
    if isinstance(expected, int) and size != expected:
      fits = False
  if not fits:
    refuse(path, field, f"of shape {list(sizes)}", f"[{', '.join(map(str, shape))}]")
  if header_only and not dtype.hasobject:
    return np.broadcast_to(np.zeros((), dtype), sizes)
  # Read the member to its end, where zipfile compares the CRC-32. NumPy alone would
  # stop after the array that the header describes.
  content = io.BytesIO(archive.read(f"{field}.npy"))
  return np.lib.format.read_array(content, allow_pickle=False)


def boxes_inside(
  path: str | os.PathLike, boxes: np.ndarray, height: int, width: int
) -> Float32[np.ndarray, "R 4"]:
  """Checks that boxes of a file are in the image, and clips an excess by rounding.

  Args:
    path: file, for messages.
    boxes: x0, y0, x1, y1 in pixels, float [R,4].
    height: height of the image in pixels.
    width: width of the image in pixels.

  Raises:
    RegionError: a box is not finite, ends before it begins, or leaves the image by more
      than two pixels.
  """
  if not np.isfinite(boxes).all():
    refuse(path, "boxes", "not finite", "finite values")
  ends = np.array([width, height] * 2, np.float64)
  is_outside_R = ((boxes < -_SLACK) | (boxes > ends + _SLACK)).any(axis=1)
  is_reversed_R = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
  is_bad_R = is_outside_R | is_reversed_R
  if is_bad_R.any():
    found = f"{boxes[is_bad_R][0].tolist()} in an image of {width} x {height}"
    refuse(path, "a box", found, "x0, y0, x1, y1 inside the image")
  return np.clip(boxes, 0, ends).astype(np.float32)


class _ImageResults(NamedTuple):
  """Results of one image, highest score first."""

  boxes_Rx4: Float32[np.ndarray, "R 4"]  # x0, y0, x1, y1 in pixels
  scores_R: Float32[np.ndarray, " R"]  # 0 to 1
  rles: list[
    dict[str, Any] | None
  ]  # COCO's run lengths of each mask; None: a box alone


class RegionResults:
  """Reads COCO results as regions: one for each distinct box and mask, whatever the
  category. The score becomes the objectness."""

  header: RegionHeader | None = None  # no embeddings

  def __init__(self, path: str | os.PathLike):
    """Reads a JSON list of results.

    Each result has `image_id`, `score`, and `bbox` or `segmentation`.

    Raises:
      RegionError: a result is unusable.
      VocabularyError: the file is no JSON.
    """
    self._path = str(path)
    rows = read_user_json(path, VocabularyError)
    if not isinstance(rows, list):
      refuse(path, "the file", f"a {type(rows).__name__}", "a list of results")
    # Results by image id, then by box and mask.
    self._rows: dict[str | int, dict[Any, Mapping[str, Any]]] = {}
    for number, row in enumerate(rows):
      # A region that is listed under several categories counts once, with its best score.
      region = _key(path, f"result {number}", row)
      rows_of_image = self._rows.setdefault(row["image_id"], {})
      if region not in rows_of_image or rows_of_image[region]["score"] < row["score"]:
        rows_of_image[region] = row

  def check(
    self, images: Iterable[_ImageSize], most: int | None = None
  ) -> str | int | None:
    """Checks the results of each image as `read` does, and that at least one image has
    results.

    Images without results are logged as a warning.

    Args:
      images: id, height and width in pixels of each image.
      most: number of results of an image that are read; None: all.

    Returns:
      Id of the first image that has a result without a mask, or None.

    Raises:
      RegionError: a box or a mask misfits its image, or all results are about other
        images.
    """
    first_without_mask = None
    n_images = 0
    missing = []
    for key, height, width in images:
      n_images += 1
      if key not in self._rows:
        missing.append(key)
        continue
      results = self._results(key, height, width, most)
      # No early return: an unusable result of a later image is an error.
      if None in results.rles and first_without_mask is None:
        first_without_mask = key

    n_known = n_images - len(missing)
    if self._rows and n_known == 0:
      other_image = next(iter(self._rows))
      refuse(
        self._path,
        "the file",
        f"about other images, such as {other_image}",
        "results of the data set",
      )
    if missing:
      log.warning(
        "%s: results of %d of %d images; %d have none, such as %s",
        self._path,
        n_known,
        n_images,
        len(missing),
        missing[0],
      )
    return first_without_mask

  def read(
    self, key: str | int, height: int, width: int, most: int | None = None
  ) -> Regions:
    """Reads the regions of an image, highest score first.

    Regions have masks if every result has one. An image without results has no regions.

    Args:
      key: id of the image.
      height: height of the image in pixels.
      width: width of the image in pixels.
      most: number of regions that are kept; None: all.

    Raises:
      RegionError: a box or a mask misfits the image.
    """
    results = self._results(key, height, width, most)
    masks_RxHxW = None
    if results.rles and None not in results.rles:
      masks = [mask_api.decode(rle).astype(bool) for rle in results.rles]
      masks_RxHxW = np.stack(masks)
    return Regions(results.boxes_Rx4, results.scores_R, masks_RxHxW)

  def _results(
    self, key: str | int, height: int, width: int, most: int | None
  ) -> _ImageResults:
    """The `most` results of an image with the highest scores, checked.

    Args:
      key: id of the image.
      height: height of the image in pixels.
      width: width of the image in pixels.
      most: number of results that are kept; None: all.

    Raises:
      RegionError: a box or a mask misfits the image.
    """
    rows = sorted(
      self._rows.get(key, {}).values(), key=lambda row: row["score"], reverse=True
    )
    rows = rows[:most]

    boxes_Rx4 = np.zeros((len(rows), 4), np.float64)
    rles: list[dict[str, Any] | None] = []
    for number, row in enumerate(rows):
      rle = None
      if row.get("segmentation"):
        where = f"a segmentation of image {key}"
        rle = run_lengths(self._path, where, row["segmentation"], height, width)
      rles.append(rle)
      if "bbox" in row:
        boxes_Rx4[number] = row["bbox"]
      else:
        boxes_Rx4[number] = mask_api.toBbox(rle)
    # From x, y, width, height to the two corners.
    boxes_Rx4[:, 2:] += boxes_Rx4[:, :2]

    # `_key` has accepted scores up to _MAX_SCORE, which is above 1.
    scores = [min(row["score"], 1.0) for row in rows]
    return _ImageResults(
      boxes_Rx4=boxes_inside(self._path, boxes_Rx4, height, width),
      scores_R=np.array(scores, np.float32),
      rles=rles,
    )


def open_regions(path: str | os.PathLike) -> RegionFolder | RegionResults:
  """Opens a folder of regions or a COCO results file; raises what its class raises."""
  if is_dir(path):
    return RegionFolder(path)
  return RegionResults(path)


def region_files(
  path: str | os.PathLike, keys: Iterable[str | int]
) -> list[str | os.PathLike]:
  """Files that `open_regions`, and `read` for each of these images, read."""
  if not is_dir(path):
    return [path]
  return [
    os.path.join(path, _HEADER),
    *(os.path.join(path, f"{key}.npz") for key in keys),
  ]


def _key(path: str | os.PathLike, where: str, row: Any) -> Any:
  """Checks a result; returns box and mask, or without a box the mask's run lengths."""
  if not isinstance(row, dict):
    refuse(path, where, f"a {type(row).__name__}", "an object")
  if type(row.get("image_id")) is not int:
    refuse(path, f"image_id of {where}", repr(row.get("image_id")), "an integer")
  score: Any = row.get("score")
  if type(score) not in (int, float) or not 0 <= score <= _MAX_SCORE:
    refuse(path, f"score of {where}", repr(score), "0 to 1")
  mask = row.get("segmentation")
  if "bbox" in row:
    box = row["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
      refuse(path, f"bbox of {where}", repr(box), "x, y, width, height")
    return *box, json.dumps(mask, sort_keys=True)
  counts = mask.get("counts") if isinstance(mask, dict) else None
  if isinstance(counts, str):
    return counts
  if not isinstance(counts, list) or not all(map(is_number, counts)):
    refuse(path, where, "without bbox and RLE", "one of them")
  return tuple(counts)
