"""Names for pixels or objects of whole pictures: the tasks `segment` and `detect` of `predict`.

With `propose.network` or a file of regions, regions are scored. Otherwise `segment` takes the
classes of patches, by a training-free recipe.
"""

from collections.abc import Sequence
import os
import posixpath
from typing import Any, NamedTuple

from matplotlib.colors import to_rgb
import numpy as np
from PIL import Image

from pomp_jax import hosts
from pomp_jax.analysis import sheets
from pomp_jax.analysis.detection import Boxes
from pomp_jax.analysis.pictures import boxes_picture, label_colours, overlay
from pomp_jax.config import Settings
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.class_splits import ClassSplit
from pomp_jax.data.images import read_rgb
from pomp_jax.data.pixels import write_labels
from pomp_jax.encoder import Encoder
from pomp_jax.files.paths import Path
from pomp_jax.files.run_folder import RunFolder, write_json, writing
from pomp_jax.inference.box_metrics import MAX_DETECTIONS, Detections, result_rows
from pomp_jax.inference.class_matrix import ClassMatrix, class_matrix
from pomp_jax.inference.classify import open_prompt
from pomp_jax.inference.label_maps import label_maps_of_regions
from pomp_jax.inference.named_prompts import NamedPrompt
from pomp_jax.inputs.picture_regions import PictureRegions
from pomp_jax.inputs.pixel_sets import with_background
from pomp_jax.inputs.region_scorer import detections_of
from pomp_jax.inputs.segmenter import open_segmenter

# Pictures in memory together.
_BLOCK = 8
# Pixels of a picture that a network sees at most: a hundred hard masks of it take 200 MiB.
_MAX_PIXELS = 2**21
Rows = list[dict[str, Any]]


class Picture(NamedTuple):
  """A picture, perhaps reduced, and the height and width of its file."""

  image: np.ndarray
  sides: tuple[int, ...]


class _Whole:
  """A task on whole pictures: their regions or patches, and its files."""

  batch = _BLOCK

  def __init__(self, config: Settings, encoder: Encoder, keys: Sequence[str], folder: RunFolder):
    self._config, self._folder = config, folder
    self._classes = classes_of(config)
    self._matrix = _matrix(config, encoder, self._classes)
    self._source, self._regions = config.regions.source, None
    if self._source != "none":
      tight = config.predict.task == "segment"
      self._regions = PictureRegions(
        config,
        encoder,
        keys,
        self._matrix,
        self._classes,
        logit_scale=config.segment.logit_scale if tight else config.detect.logit_scale,
        tight=tight,
      )
    self._output = _outputs(keys)
    self.facts = {"n_classes": len(self._classes), "regions": self._source}
    if self._source == "network":
      self.facts["network"] = config.propose.network

  def read(self, path):
    image = read_rgb(path, self._config.data.upright)
    sides = image.shape[:2]
    factor = (_MAX_PIXELS / image[..., 0].size) ** 0.5
    if self._source == "network" and factor < 1:
      reduced = tuple(max(round(factor * side), 1) for side in sides)
      image = np.asarray(Image.fromarray(image).resize(reduced[::-1], Image.Resampling.BICUBIC))
    return Picture(image, sides)

  def finish(self):
    pass

  def _path(self, kind: str, key: str) -> Path:
    """File of a picture in a folder of the run, which is created."""
    path = self._folder.path / kind / f"{self._output[key]}.png"
    with writing(path):
      path.parent.mkdir(parents=True, exist_ok=True)
    return path


class Segment(_Whole):
  """A name for every pixel: `labels/` and `pictures/`."""

  columns = ("name", "value", "share", "probability")

  def __init__(self, config, encoder, keys, folder):
    super().__init__(config, encoder, keys, folder)
    if self._regions is None:
      self._segmenter = open_segmenter(config, encoder)
      self.facts["recipe"] = config.segment.recipe

  def predict(self, pictures):
    for (key, picture), (labels, probability) in zip(
      pictures.items(), self._maps(pictures), strict=True
    ):
      whole = _enlarged(labels, picture.sides)
      if hosts.is_first():
        with writing(path := self._path("labels", key)):
          write_labels(path, whole, len(self._classes), _table(labels))
        with writing(path := self._path("pictures", key)):
          overlay(path, picture.image, labels, self._classes.names, key)
      yield self._rows(whole, probability)

  def text(self, row):
    return f"{row['name']} {100 * row['share']:.1f}% of pixels"

  def _maps(self, pictures):
    """Labels of each picture, and the probabilities of patches' classes."""
    if self._regions is None:
      yield from self._segmenter.pixel_maps([one.image for one in pictures.values()], self._matrix)
      return
    images = {key: one.image for key, one in pictures.items()}
    for (key, image), (regions, scores) in zip(
      images.items(), self._regions.scored(images), strict=True
    ):
      (labels,) = label_maps_of_regions([scores], regions.drawn(key), *image.shape[:2])
      yield labels, None

  def _rows(self, labels, probability):
    found, counts = np.unique(labels[labels >= 0], return_counts=True)
    rows = []
    for place in np.argsort(-counts, kind="stable"):
      value = int(found[place])
      row = {"name": self._classes.names[value], "value": value}
      row["share"] = float(counts[place] / labels.size)
      if probability is not None:
        row["probability"] = float(probability[labels == value].mean())
      rows.append(row)
    return rows


class Detect(_Whole):
  """Boxes with names: `pictures/` and `detections.json`."""

  columns = ("name", "score", "x", "y", "width", "height")

  def __init__(self, config, encoder, keys, folder):
    super().__init__(config, encoder, keys, folder)
    self._ids, self._results = _image_ids(keys), []

  def predict(self, pictures):
    images = {key: picture.image for key, picture in pictures.items()}
    names = self._classes.names
    for (key, picture), (regions, scores) in zip(
      pictures.items(), self._regions.scored(images), strict=True
    ):
      found = detections_of(
        regions,
        scores,
        picture.sides,
        detect=self._config.detect,
        mask_threshold=self._config.regions.mask_threshold,
        most=MAX_DETECTIONS["coco"],
      )
      if hosts.is_first():
        boxes = Boxes(found.boxes, found.classes, found.scores)
        with writing(path := self._path("pictures", key)):
          boxes_picture(path, picture.image, boxes, names, f"{key}: {len(found.scores)} detections")
      results = self._coco(key, picture, found)
      self._results += results
      fields = ("x", "y", "width", "height")
      yield [
        {"name": row["name"], "score": row["score"]} | dict(zip(fields, row["bbox"], strict=True))
        for row in results
      ]

  def text(self, row):
    return f"{row['name']} {row['score']:.2f}"

  def finish(self):
    write_json(self._folder.path / "detections.json", self._results)

  def _coco(self, key: str, picture: Picture, found: Detections) -> Rows:
    """COCO results in pixels of the file, with its name and the classes' names."""
    height, width = (a / b for a, b in zip(picture.sides, picture.image.shape, strict=False))
    found = found._replace(boxes=found.boxes * np.array([width, height] * 2, np.float32))
    names, ids = self._classes.names, np.arange(1, len(self._classes) + 1)
    rows = result_rows(self._ids[key], ids, found)
    return [row | {"file": key, "name": names[row["category_id"] - 1]} for row in rows]


def classes_of(config: Settings) -> ClassSplit:
  """The names as classes; `segment` puts a background before them."""
  names = load_class_list(config.predict.names).names
  classes = ClassSplit(tuple((name,) for name in names), ("-",) * len(names))
  background = config.segment.background if config.predict.task == "segment" else ()
  return with_background(classes, background)


def _matrix(config: Settings, encoder: Encoder, classes: ClassSplit) -> ClassMatrix:
  prompt = config.predict.prompt
  return class_matrix(encoder, classes.synonyms, NamedPrompt(prompt, open_prompt(prompt)))


def _outputs(keys: Sequence[str]) -> dict[str, str]:
  """Names of the pictures' files without a suffix; with theirs, if two would become equal."""
  stems = {key: os.path.splitext(key)[0] for key in keys}
  return stems if len(set(stems.values())) == len(stems) else {key: key for key in keys}


def _image_ids(keys: Sequence[str]) -> dict[str, int]:
  """Numbers of the pictures: their names if all are numbers, as COCO's are; else 1, 2, .."""
  stems = [posixpath.basename(os.path.splitext(key)[0]) for key in keys]
  ids = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
  return dict(
    zip(keys, ids if len(set(ids)) == len(keys) else range(1, len(keys) + 1), strict=True)
  )


def _table(labels_HxW: np.ndarray) -> np.ndarray:
  """Colours of a label image's values: those of the picture, white for no class, else grey."""
  table = np.tile(np.array(to_rgb(sheets.OTHER)), (256, 1))
  for label, colour in label_colours(labels_HxW).items():
    if label < len(table):
      table[label] = to_rgb(colour)
  table[-1] = 1
  return np.rint(255 * table).astype(np.uint8)


def _enlarged(array: np.ndarray, sides: Sequence[int]) -> np.ndarray:
  """Values of the nearest pixels in an array whose last axes become `sides`."""
  rows, columns = (
    np.arange(new) * old // new for new, old in zip(sides, array.shape[-2:], strict=True)
  )
  return array[..., rows[:, None], columns]
