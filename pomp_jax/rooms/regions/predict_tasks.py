"""Names for the pixels or the objects of pictures: two tasks of `predict`.

With `propose.network` or a file of regions, regions are scored. Otherwise `segment`
classifies patches by a training-free recipe.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import os
import posixpath
from typing import Any, NamedTuple

from jaxtyping import UInt8
from matplotlib.colors import to_rgb
import numpy as np
from PIL import Image

from pomp_jax.config.errors import require
from pomp_jax.config.fields import Clip, Data, Predict
from pomp_jax.data.images import ImageError
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.classifier import open_prompt
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.evaluate.predict import OpenTask, Pictures, Rows, Task
from pomp_jax.files.paths import Path
from pomp_jax.files.run_folder import RunFolder, write_json, writing
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.class_matrix import ClassMatrix, class_matrix
from pomp_jax.rooms.regions.class_splits import undivided
from pomp_jax.rooms.regions.dense import DenseSegmenter, PixelMap, check_patches
from pomp_jax.rooms.regions.detections import MAX_DETECTIONS, detections_of, result_rows
from pomp_jax.rooms.regions.image_sets import with_background
from pomp_jax.rooms.regions.label_images import image_size, read_rgb, write_labels
from pomp_jax.rooms.regions.plots import OTHER, boxes_picture, label_colours, overlay
from pomp_jax.rooms.regions.region_scorer import RegionScorer, Scored
from pomp_jax.rooms.regions.region_sources import (
  Images,
  check_region_source,
  open_region_source,
)

# Most pixels of a picture that a network sees. A hundred hard masks then take 200 MiB.
_MAX_PIXELS = 2**21
_MAX_NAMES = 2**16 - 1  # names that a label image can number


class _OutputPaths:
  """Paths of the pictures' outputs in the folder of a run."""

  def __init__(self, folder: RunFolder, keys: Sequence[str]):
    """Names outputs after the pictures without suffixes, or with suffixes if two names
    would be equal without."""
    stems = [os.path.splitext(key)[0] for key in keys]
    are_distinct = len(set(stems)) == len(keys)
    outputs = stems if are_distinct else keys
    self.folder = folder
    self._output = dict(zip(keys, outputs, strict=True))

  def path(self, kind: str, key: str) -> Path:
    """Returns the path of an output of the picture `key`; creates its folder.

    Args:
      kind: folder of such outputs, below that of the run.
      key: the picture's name in the results.
    """
    path = self.folder.path / kind / f"{self._output[key]}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class _Parts(NamedTuple):
  """What both tasks need of an opened run."""

  facts: dict[str, Any]  # fields of `results.json`
  pictures: Pictures  # pixels, and height and width of the file
  images: Images  # the same, as a source of regions takes them
  matrix: ClassMatrix  # class vectors under the prompt
  outputs: _OutputPaths


class _RegionTask(Task):
  """Base of the tasks on whole pictures, by their regions or patches."""

  def __init__(self, settings: Predict, data: Data, clip: Clip):
    """Takes the fields of `predict`, with those that this room adds to them.

    Args:
      settings: task, classes, prompts, and where the regions of a picture come from.
      data: how pictures are read.
      clip: name and compute type of the CLIP.
    """
    super().__init__(settings, data, clip)
    self._segment = settings.of(fields.Segment)
    self._detect = settings.of(fields.Detect)
    self._propose = settings.of(fields.Propose)

    self._regions = settings.of(fields.Regions)
    # A named network implies the source "network".
    if self._propose.network and self._regions.source == "none":
      self._regions = dataclasses.replace(self._regions, source="network")

    # A class of this task has no synonyms.
    names = [name for (name,) in self._synonyms]
    self._classes = undivided(names)

  def check(self, files: Mapping[str, Path]) -> None:
    super().check(files)
    if self._regions.source == "none":
      check_patches(self._segment, opening.clip_config(self._clip.model))
      return
    # Only a file of regions is compared with the pictures.
    compared = files if self._regions.source == "file" else {}
    images = sized_images(compared, self._upright)
    check_region_source(
      self._regions, self._propose, self._clip.model, images, self._settings.task
    )

  def _parts(
    self, encoder: Encoder, files: Mapping[str, Path], folder: RunFolder
  ) -> _Parts:
    """Prepares what both tasks need; reads no picture."""
    facts = {"n_classes": len(self._classes), "regions": self._regions.source}
    match self._regions.source:
      case "network":
        facts["network"] = self._propose.network
      case "none":
        facts["recipe"] = self._segment.recipe
    pictures = Pictures(files, self._read, self.batch)

    def pixels(row: int) -> UInt8[np.ndarray, "H W 3"]:
      image, _ = pictures[row]
      return image

    images = Images(
      [_stem(key) for key in files],
      shape=lambda row: pixels(row).shape[:2],
      pixels=pixels,
    )
    prompt = NamedPrompt(self._settings.prompt, open_prompt(self._settings.prompt))
    matrix = class_matrix(encoder, self._classes.synonyms, prompt)
    return _Parts(facts, pictures, images, matrix, _OutputPaths(folder, list(files)))

  def _scorer(
    self, encoder: Encoder, parts: _Parts, scale: float, tight: bool = False
  ) -> RegionScorer:
    # Batches are padded, so never ask for more than there are pictures.
    batch_size = min(self._propose.batch_size, len(parts.pictures))
    propose = dataclasses.replace(self._propose, batch_size=batch_size)
    source = open_region_source(
      self._regions, propose, self._clip, encoder, parts.images
    )
    return RegionScorer(
      self._regions,
      source,
      encoder,
      self._classes,
      [parts.matrix],
      logit_scale=scale,
      tight=tight,
    )

  def _read(self, path: Path) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[int, int]]:
    """Reads a picture, reduced if a network could not take it, and its file's sides."""
    image = read_rgb(path, self._upright)
    height, width = image.shape[:2]
    factor = (_MAX_PIXELS / (height * width)) ** 0.5
    if self._regions.source == "network" and factor < 1:
      size = (max(round(factor * width), 1), max(round(factor * height), 1))
      reduced = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
      image = np.asarray(reduced)
    return image, (height, width)


class SegmentPictures(_RegionTask):
  """Names every pixel; writes `labels/` and `pictures/`."""

  columns = ("name", "value", "share", "probability")

  def __init__(self, settings: Predict, data: Data, clip: Clip):
    super().__init__(settings, data, clip)
    self._classes = with_background(self._classes, self._segment.background)
    self._synonyms = self._classes.synonyms

  def check(self, files: Mapping[str, Path]) -> None:
    n_names = len(self._classes)
    require(
      n_names <= _MAX_NAMES,
      "predict.names",
      f"{n_names} names",
      f"at most {_MAX_NAMES}",
    )
    super().check(files)

  def open(
    self, encoder: Encoder, files: Mapping[str, Path], folder: RunFolder
  ) -> OpenTask:
    """See `Task.open`."""
    parts = self._parts(encoder, files, folder)
    segment = self._segment
    answers: Callable[[Sequence[int]], Iterable[tuple[int, list[PixelMap]]]]
    if self._regions.source == "none":
      segmenter = DenseSegmenter(encoder, segment, dtype=self._clip.dtype)
      answers = segmenter.finder(parts.images.pixels, [parts.matrix])
    else:
      scorer = self._scorer(encoder, parts, segment.logit_scale, tight=True)
      answers = scorer.label_maps
    rows = functools.partial(self._rows, parts)
    return OpenTask(parts.pictures, parts.facts, answers, rows)

  def _rows(self, parts: _Parts, row: int, maps: Sequence[PixelMap]) -> Rows:
    """A row for each name in a picture, the largest first; writes both files."""
    key = parts.pictures.keys[row]
    image, sides = parts.pictures[row]
    [pixel_map] = maps
    names = self._classes.names
    labels = _at_size(pixel_map.labels_HxW, sides)
    with writing(parts.outputs.folder.path):
      colours = _palette(pixel_map.labels_HxW)
      write_labels(parts.outputs.path("labels", key), labels, len(names), colours)
      picture_path = parts.outputs.path("pictures", key)
      overlay(picture_path, image, pixel_map.labels_HxW, names, key)
    values, counts = np.unique(labels[labels >= 0], return_counts=True)
    rows = []
    for place in np.argsort(-counts, kind="stable"):
      value = int(values[place])
      answer = {
        "name": names[value],
        "value": value,
        "share": float(counts[place] / labels.size),
      }
      if pixel_map.probability_HxW is not None:
        probability = pixel_map.probability_HxW[labels == value].mean()
        answer["probability"] = float(probability)
      rows.append(answer)
    return rows

  def text(self, row: Mapping[str, Any]) -> str:
    """See `Task.text`."""
    return f"{row['name']} {100 * row['share']:.1f}% of pixels"


class DetectPictures(_RegionTask):
  """Finds and names boxes; writes `pictures/` and `detections.json`."""

  columns = ("name", "score", "x", "y", "width", "height")

  def open(
    self, encoder: Encoder, files: Mapping[str, Path], folder: RunFolder
  ) -> OpenTask:
    """See `Task.open`."""
    parts = self._parts(encoder, files, folder)
    scorer = self._scorer(encoder, parts, self._detect.logit_scale)
    image_ids = _image_ids(parts.pictures.keys)
    detections: list[dict[str, Any]] = []  # of all pictures, in COCO's format

    def rows(row: int, scored: Scored) -> Rows:
      results = self._results(parts, row, scored, image_ids[row])
      detections.extend(results)
      answers = []
      for result in results:
        cells = (result["name"], result["score"], *result["bbox"])
        answers.append(dict(zip(self.columns, cells, strict=True)))
      return answers

    def finish() -> None:
      write_json(folder.path / "detections.json", detections)

    return OpenTask(parts.pictures, parts.facts, scorer.scored, rows, finish)

  def _results(
    self, parts: _Parts, row: int, scored: Scored, image_id: int
  ) -> list[dict[str, Any]]:
    """COCO's results of a picture, with `file` and `name`; writes the picture's file."""
    key = parts.pictures.keys[row]
    image, sides = parts.pictures[row]
    [scores_RxC] = scored.scores
    names = self._classes.names
    detections = detections_of(
      scored.regions,
      scores_RxC,
      sides,
      self._detect,
      mask_threshold=self._regions.mask_threshold,
      most=MAX_DETECTIONS["coco"],
    )
    with writing(parts.outputs.folder.path):
      boxes_picture(parts.outputs.path("pictures", key), image, detections, names, key)
    # COCO's rows are in pixels of the file, which may be larger than the picture.
    y_factor = sides[0] / image.shape[0]
    x_factor = sides[1] / image.shape[1]
    factors = np.array([x_factor, y_factor] * 2, np.float32)
    detections = detections._replace(boxes=detections.boxes * factors)
    category_ids = np.arange(1, len(names) + 1)
    results = []
    for result in result_rows(image_id, category_ids, detections):
      name = names[result["category_id"] - 1]
      results.append(result | {"file": key, "name": name})
    return results

  def text(self, row: Mapping[str, Any]) -> str:
    """See `Task.text`."""
    return f"{row['name']} {row['score']:.2f}"


def _image_ids(keys: Sequence[str]) -> Sequence[int]:
  """COCO's ids of pictures: the stems if all are different numbers, else 1, 2, .."""
  stems = [_stem(key) for key in keys]
  ids = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
  if len(set(ids)) == len(keys):
    return ids
  return range(1, len(keys) + 1)


def _at_size(labels_HxW: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
  """Resizes labels to another height and width, by the nearest pixel."""
  rows, columns = (
    np.arange(new) * old // new
    for new, old in zip(sides, labels_HxW.shape, strict=True)
  )
  return labels_HxW[np.ix_(rows, columns)]


def _palette(labels_HxW: np.ndarray) -> np.ndarray:
  """Colours of a label image's values: uint8 [256,3].

  A label has its colour in the picture, or grey if it has none there. The last value,
  for pixels without a class, is white.
  """
  colours = label_colours(labels_HxW)
  table = [to_rgb(colours.get(label, OTHER)) for label in range(255)]
  table.append((1, 1, 1))
  return np.rint(255 * np.array(table)).astype(np.uint8)


def sized_images(files: Mapping[str, Path], upright: bool) -> Images:
  """Names and sizes of the pictures, without those whose header can't be read.

  Raises:
    ImageError: two pictures have the same stem, by which a file of regions names
      pictures.
  """
  shapes: dict[str, tuple[int, int]] = {}
  name_of_stem: dict[str, str] = {}
  for name, path in files.items():
    stem = _stem(name)
    first = name_of_stem.setdefault(stem, name)
    if first != name:
      raise ImageError(
        f"{path}: has the stem of {first}; accepted: a stem for each picture"
      )
    with contextlib.suppress(ImageError):
      shapes[stem] = image_size(path, upright)
  sides = list(shapes.values())
  # The check of a file of regions does not read pixels.
  no_pixels = np.zeros((0, 0, 3), np.uint8)
  return Images(list(shapes), shape=sides.__getitem__, pixels=lambda row: no_pixels)


def _stem(name: str) -> str:
  return os.path.splitext(posixpath.basename(name))[0]
