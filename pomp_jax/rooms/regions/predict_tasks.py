"""Names for the pixels or the objects of pictures: two tasks of `predict`.

With `propose.network` or a file of regions, regions are scored. Otherwise `segment`
takes the classes of patches, by a training-free recipe.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import os
import posixpath
from typing import Any

from matplotlib.colors import to_rgb
import numpy as np
from PIL import Image

from pomp_jax.config.declare import require
from pomp_jax.config.fields import Clip, Data, Predict
from pomp_jax.data.images import ImageError
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.classify import open_prompt
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.evaluate.predict import Rows, Task
from pomp_jax.files.paths import Path
from pomp_jax.files.run_folder import write_json, writing
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.class_matrix import class_matrix
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

# Pixels of a picture that a network sees at most: a hundred hard masks of it take 200
# MiB.
_MAX_PIXELS = 2**21
# Names that a label image can number.
_MAX_NAMES = 2**16 - 1


class _Pictures(Task):
  """A task on whole pictures, by their regions or patches, and its files."""

  def __init__(self, settings: Predict, data: Data, clip: Clip):
    """Takes what this room adds to the fields of `predict`, too."""
    super().__init__(settings, data, clip)
    self._segment = settings.of(fields.Segment)
    self._detect = settings.of(fields.Detect)
    self._propose = settings.of(fields.Propose)
    regions = settings.of(fields.Regions)
    # A `propose.network` without other regions is their source.
    if regions.source == "none" and self._propose.network:
      regions = dataclasses.replace(regions, source="network")
    self._regions = regions
    self._classes = undivided([name for (name,) in self._synonyms])

  def check(self, files):
    super().check(files)
    if self._regions.source == "none":
      check_patches(self._segment, inputs.clip_config(self._clip.model))
    else:
      images = sized_images(
        files if self._regions.source == "file" else {}, self._upright
      )
      task = self._settings.task
      check_region_source(self._regions, self._propose, self._clip.model, images, task)

  def _open(self, encoder):
    keys, regions = self._keys, self._regions
    # Batches are padded, so never ask for more than there are pictures.
    most = min(self._propose.batch_size, len(keys))
    self._propose = dataclasses.replace(self._propose, batch_size=most)
    # Names of the pictures' files without a suffix; with theirs, if two would become
    # equal.
    stems = [os.path.splitext(key)[0] for key in keys]
    self._output = dict(
      zip(keys, stems if len(set(stems)) == len(keys) else keys, strict=True)
    )
    more = {"network": {"network": self._propose.network}}
    more |= {"none": {"recipe": self._segment.recipe}}
    self.facts = {"n_classes": len(self._classes), "regions": regions.source}
    self.facts |= more.get(regions.source, {})
    pixels = lambda row: self._picture(row)[0]
    images = Images(
      [_stem(key) for key in keys], lambda row: pixels(row).shape[:2], pixels
    )
    prompt = NamedPrompt(self._settings.prompt, open_prompt(self._settings.prompt))
    matrix = class_matrix(encoder, self._classes.synonyms, prompt)
    return self._finder(encoder, images, [matrix])

  _finder: Callable[..., Any]

  def _scorer(self, encoder, images, matrices, scale, tight=False):
    regions = self._regions
    source = open_region_source(regions, self._propose, self._clip, encoder, images)
    return RegionScorer(
      regions, source, encoder, self._classes, matrices, logit_scale=scale, tight=tight
    )

  def _read(self, path):
    """The picture, perhaps reduced, and the height and width of its file."""
    image = read_rgb(path, self._upright)
    sides = image.shape[:2]
    factor = (_MAX_PIXELS / image[..., 0].size) ** 0.5
    if self._regions.source == "network" and factor < 1:
      reduced = tuple(max(round(factor * side), 1) for side in sides)
      image = np.asarray(
        Image.fromarray(image).resize(reduced[::-1], Image.Resampling.BICUBIC)
      )
    return image, sides

  def _path(self, kind: str, key: str) -> Path:
    """File of a picture in a folder of the run, which is created."""
    path = self._folder.path / kind / f"{self._output[key]}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class SegmentPictures(_Pictures):
  """A name for every pixel: `labels/` and `pictures/`."""

  columns = ("name", "value", "share", "probability")

  def __init__(self, settings, data, clip):
    super().__init__(settings, data, clip)
    self._classes = with_background(self._classes, self._segment.background)
    self._synonyms = self._classes.synonyms

  def check(self, files):
    n_names = len(self._classes)
    require(
      n_names <= _MAX_NAMES,
      "predict.names",
      f"{n_names} names",
      f"at most {_MAX_NAMES}",
    )
    super().check(files)

  def _finder(self, encoder, images, matrices):
    segment = self._segment
    if self._regions.source != "none":
      return self._scorer(
        encoder, images, matrices, segment.logit_scale, tight=True
      ).label_maps
    segmenter = DenseSegmenter(encoder, segment, dtype=self._clip.dtype)
    return segmenter.finder(images.pixels, matrices)

  def _take(self, key: str, picture: tuple, found: Sequence[PixelMap]) -> Rows:
    (image, sides), (labels, probability), names = (
      picture,
      found[0],
      self._classes.names,
    )
    # Values of the nearest pixels, at the size of the file.
    pairs = zip(sides, labels.shape, strict=True)
    whole = labels[np.ix_(*(np.arange(new) * old // new for new, old in pairs))]
    # Of the label image's values: those of the picture, white for no class, else grey.
    colours = label_colours(labels)
    table = [*(to_rgb(colours.get(label, OTHER)) for label in range(255)), (1, 1, 1)]
    table_256x3 = np.rint(255 * np.array(table)).astype(np.uint8)
    with writing(self._folder.path):
      write_labels(self._path("labels", key), whole, len(names), table_256x3)
      overlay(self._path("pictures", key), image, labels, names, key)
    values, counts = np.unique(whole[whole >= 0], return_counts=True)
    rows = []
    for place in np.argsort(-counts, kind="stable"):
      value, share = int(values[place]), float(counts[place] / whole.size)
      row = {"name": names[value], "value": value, "share": share}
      if probability is not None:
        row["probability"] = float(probability[whole == value].mean())
      rows.append(row)
    return rows

  def _text(self, row):
    return f"{row['name']} {100 * row['share']:.1f}% of pixels"


class DetectPictures(_Pictures):
  """Boxes with names: `pictures/` and `detections.json`."""

  columns = ("name", "score", "x", "y", "width", "height")

  def _finder(self, encoder, images, matrices):
    # Numbers of the pictures: their names if all are numbers, as COCO's are; else 1, 2,
    # ..
    stems = map(_stem, self._keys)
    ids = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
    numbers = ids if len(set(ids)) == len(self._keys) else range(1, len(self._keys) + 1)
    self._ids, self._results = dict(zip(self._keys, numbers, strict=True)), []
    return self._scorer(encoder, images, matrices, self._detect.logit_scale).scored

  def _take(self, key: str, picture: tuple, found: Scored) -> Rows:
    (image, sides), [scores_RxC], names = picture, found.scores, self._classes.names
    limits = sides, self._detect, self._regions.mask_threshold, MAX_DETECTIONS["coco"]
    kept = detections_of(found.regions, scores_RxC, *limits)
    with writing(self._folder.path):
      boxes_picture(self._path("pictures", key), image, kept, names, key)
    # COCO results in pixels of the file.
    height, width = (a / b for a, b in zip(sides, image.shape, strict=False))
    kept = kept._replace(boxes=kept.boxes * np.array([width, height] * 2, np.float32))
    rows = [
      row | {"file": key, "name": names[row["category_id"] - 1]}
      for row in result_rows(self._ids[key], np.arange(1, len(names) + 1), kept)
    ]
    self._results += rows
    values = [(row["name"], row["score"], *row["bbox"]) for row in rows]
    return [dict(zip(self.columns, own, strict=True)) for own in values]

  def _text(self, row):
    return f"{row['name']} {row['score']:.2f}"

  def finish(self):
    write_json(self._folder.path / "detections.json", self._results)


def sized_images(files: Mapping[str, Path], upright: bool) -> Images:
  """Names and sizes of the pictures, but for those whose header can't be read.

  ImageError: two pictures of one stem, by which a file of regions names them.
  """
  shapes: dict[str, tuple[int, int]] = {}
  first: dict[str, str] = {}
  for name, path in files.items():
    if (other := first.setdefault(_stem(name), name)) != name:
      raise ImageError(
        f"{path}: has the stem of {other}; accepted: a stem for each picture"
      )
    with contextlib.suppress(ImageError):
      shapes[_stem(name)] = image_size(path, upright)
  sides, no_pixels = list(shapes.values()), lambda row: np.zeros((0, 0, 3), np.uint8)
  return Images(list(shapes), sides.__getitem__, no_pixels)


def _stem(name: str) -> str:
  return os.path.splitext(posixpath.basename(name))[0]
