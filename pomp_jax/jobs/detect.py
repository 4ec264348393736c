"""Boxes with classes under prompts side by side: average precision, results, pictures.

Regions are the annotated boxes, those of a file or those of a network. Their classes are those of
crops, of a detector's embeddings, or of both. With embeddings of a file alone no image is read.

Leaves in the run's folder `results.json` with every figure, `results.md`, `report.html`,
`plots/detections.png` and, with `detect.output`, `detections/<number of the prompt>.json`. A
restart resumes after the last block of images.

With several processes all of them work on each block together, and the first writes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import json
import logging
from typing import Any, NamedTuple

import numpy as np

from pomp_jax import hosts, inputs
from pomp_jax.analysis.detection import Boxes, detection_sheet
from pomp_jax.analysis.labels import counted, prompt_labels
from pomp_jax.analysis.run_report import write_run_report
from pomp_jax.config import ConfigError, Settings
from pomp_jax.data.images import PREPROCESSING_VERSION
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import file_stamps, fingerprint
from pomp_jax.files.paths import Path, remove_folder
from pomp_jax.files.run_folder import (
  RunFolder,
  read_json,
  read_keyed,
  to_json,
  with_provenance,
  write_json,
  writing,
)
from pomp_jax.files.terminal import steps_of, waiting
from pomp_jax.inference.box_metrics import (
  MAX_DETECTIONS,
  average_precision,
  coco_results,
)
from pomp_jax.inference.class_matrix import ClassMatrix, check_prompt, class_matrix, key_parts
from pomp_jax.inference.named_prompts import NamedPrompt
from pomp_jax.inputs.box_sets import BoxSet, open_box_set
from pomp_jax.inputs.networks import read_prompts_of
from pomp_jax.inputs.region_scorer import RegionScorer, Seen, detections_of
from pomp_jax.inputs.region_sources import (
  Images,
  check_region_source,
  open_region_source,
  region_key_parts,
)
from pomp_jax.inputs.regions import (
  check_alone,
  compared,
  needs_crops,
  trained_classes,
)
from pomp_jax.regions.files import Regions

log = logging.getLogger(__name__)

# Images between two saves.
_BLOCK = 32
# Images in the plot.
_SHOWN = 6
_VERSION = f"3, pixels {PREPROCESSING_VERSION}"


class _Found(NamedTuple):
  """One image under all prompts.

  Attributes:
    rows: under each prompt, rows of COCO results.
    labels: classes of the true regions; empty for other regions.
    best: under each prompt, class of the highest score of each true region.
  """

  rows: list[list[dict[str, Any]]]
  labels: list[int]
  best: list[list[int]]

  def of_prompt(self, number: int) -> "_Found":
    """The same under one prompt alone."""
    return _Found([self.rows[number]], self.labels, [self.best[number]])


def check(config: Settings, workdir: str) -> None:
  """Opens annotations, regions and prompts; writes nothing.

  Raises:
    ConfigError, ClipError, PromptFileError, CheckpointError, RunFolderError, VocabularyError,
      AnnotationError, CategoryFileError, ImageError, RegionFileError, MaskFormerError: one line
      each.
  """
  RunFolder(workdir).check(config.job)
  check_alone(config.regions)
  crops, masked = needs_crops(config.regions), config.regions.crop == "masked"
  boxes = open_box_set(config.detect)
  network = config.regions.source == "network"
  if config.detect.source == "coco" and (crops or network or boxes.root):
    if not boxes.root:
      accepted = f"the folder of the images, which {'the network' if network else 'crops'} need"
      raise ConfigError("detect.images", "", accepted + "s" * network)
    with waiting("checking all images"):
      boxes.annotations.check_images(boxes.root, sizes=True)
  clip_config = inputs.clip_config(config.clip.model)
  for named in read_prompts_of(config.detect.prompts, "detect.prompts", config):
    check_prompt(named, boxes.classes.synonyms, clip_config, config.clip.model)
  boxes_alone = check_region_source(config, _images_of(config, boxes))
  if masked and crops and boxes_alone is not None:
    accepted = f"context (image {boxes_alone} has regions without masks)"
    raise ConfigError("regions.crop", "masked", accepted)
  if masked and config.regions.source == "truth":
    for index in range(len(boxes)):
      boxes.regions(index, masks=True)


def run(config: Settings, workdir: str) -> dict[str, Any]:
  """Detects on the images that are missing, and sums up: returns what `results.json` holds.

  Processes other than the first return an empty dict.

  Raises:
    ImageError, RegionFileError: an image or its regions can't be read.
    MaskFormerError: a network with another CLIP inside than the configured one.
  """
  folder, first = RunFolder(workdir), hosts.is_first()
  encoder = inputs.open_encoder(config)
  boxes = open_box_set(config.detect)
  plain = read_prompts_of(config.detect.prompts, "detect.prompts", config)
  prompts = compared(config.regions, plain)
  key = _key(config, encoder, boxes, prompts)
  results = (folder.read_results() if first else None) or {}
  if hosts.from_first(results.get("key") == key, "whether the detection is done"):
    log.info("%s: this detection has finished; nothing to do", workdir)
    return results
  matrices = [class_matrix(encoder, boxes.classes.synonyms, named) for named in plain]
  detect = _detector(config, encoder, boxes, matrices)
  if first:
    folder.create()
    write_json(folder.config, config.to_dict())
  progress, blocks = folder.path / "progress", []
  for start in steps_of(range(0, len(boxes), _BLOCK), "detection", f"blocks of {_BLOCK} images"):
    blocks.append(progress / f"{start:07d}.json")
    done = first and read_keyed(blocks[-1], key) is not None
    if not hosts.from_first(done, "whether a block is done"):
      images = list(detect(range(start, min(start + _BLOCK, len(boxes)))))
      if first:
        with writing(progress):
          progress.mkdir(exist_ok=True)
        write_json(blocks[-1], {"key": key, "images": [image._asdict() for image in images]})
  if not first:
    return {}
  results = {"key": key, **_results(config, encoder, boxes, prompts)}
  # One prompt's detections at a time are in memory.
  with writing(folder.path):
    for number, named in enumerate(prompts):
      found = [image.of_prompt(number) for image in _images(blocks)]
      results["figures"][named.label] = _figures(config, boxes, found)
      if config.detect.output:
        path = folder.path / "detections" / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, [row for image in found for row in image.rows[0]])
    stored = with_provenance(results)
    _write_report(config, folder, boxes, blocks, stored)
  # Last: a folder with results is a finished run.
  folder.write_results(stored)
  with contextlib.suppress(OSError):
    remove_folder(progress)
  log.info("figures and pictures are in %s", folder.path)
  return json.loads(to_json(results))


def _images(blocks: Sequence[Path]) -> Iterator[_Found]:
  """Images of the blocks, in order."""
  for path in blocks:
    for image in read_json(path)["images"]:
      yield _Found(**image)


def _detector(
  config: Settings, encoder: Encoder, boxes: BoxSet, matrices: Sequence[ClassMatrix]
) -> Callable[[Sequence[int]], Iterator[_Found]]:
  """Numbers of images -> what is found; crops are made once for all prompts."""
  images, true = _images_of(config, boxes), config.regions.source == "truth"
  source = open_region_source(config, encoder, images)
  scorer = RegionScorer(
    config.regions,
    encoder,
    source.header,
    trained_classes(source.header, boxes.classes),
    logit_scale=config.detect.logit_scale,
  )

  def detect(block):
    pixels = images.pixels if scorer.sees_pixels else lambda index: None
    seen = (
      Seen(pixels(index), regions, f"image {images.keys[index]}")
      for index, regions in zip(block, source.regions(block), strict=True)
    )
    for index, (one, scores) in zip(block, scorer.scores(seen, matrices), strict=True):
      labels = boxes.regions(index, masks=False)[1].tolist() if true else []
      rows = [_rows_of(config, boxes, index, one.regions, own_RxC) for own_RxC in scores]
      best = [own_RxC.argmax(axis=1).tolist() if labels else [] for own_RxC in scores]
      yield _Found(rows, labels, best)

  return detect


def _images_of(config: Settings, boxes: BoxSet) -> Images:
  """Images of a block are decoded once."""
  masked, sizes = config.regions.crop == "masked", boxes.annotations.images
  return Images(
    boxes.keys,
    lambda index: (sizes[index].height, sizes[index].width),
    functools.lru_cache(_BLOCK)(boxes.image),
    lambda index: boxes.regions(index, masks=masked)[0],
  )


def _rows_of(config: Settings, boxes: BoxSet, index: int, regions: Regions, scores_RxC):
  """Detections of an image as rows of COCO results."""
  annotations = boxes.annotations
  image = annotations.images[index]
  detections = detections_of(
    regions,
    scores_RxC,
    (image.height, image.width),
    detect=config.detect,
    mask_threshold=config.regions.mask_threshold,
    most=MAX_DETECTIONS["coco" if annotations.frequencies is None else "lvis"],
  )
  return coco_results(annotations, index, detections)


def _key(config: Settings, encoder: Encoder, boxes: BoxSet, prompts: Sequence[NamedPrompt]) -> str:
  """Of all that the figures depend on; a file counts by its size and modification time."""
  parts = [_VERSION, encoder.image_fingerprint, encoder.clip.name, str(config.detect)]
  parts += [config.clip.text_tower, str(boxes.keys), str(boxes.classes)]
  parts += region_key_parts(config, boxes.keys)
  parts += [file_stamps(boxes.files(config.detect))]
  for named in prompts:
    parts += key_parts(named, boxes.classes.synonyms)
  return fingerprint(parts)


def _results(
  config: Settings, encoder: Encoder, boxes: BoxSet, prompts: Sequence[NamedPrompt]
) -> dict[str, Any]:
  return {
    "job": config.job,
    "clip_model": encoder.clip.name,
    "regions": config.regions.source,
    "prompts": [{"label": named.label, "step": named.step} for named in prompts],
    "images": len(boxes),
    "objects": sum(map(len, boxes.annotations.rows)),
    "classes": boxes.classes.names,
    "groups": boxes.classes.groups,
    "figures": {},
  }


def _figures(config: Settings, boxes: BoxSet, found: Sequence[_Found]) -> dict[str, Any]:
  """Figures of the images under one prompt."""
  annotations = boxes.annotations
  groups = {name: boxes.classes.indices(name) for name in ("base", "novel")}
  groups = {name: members for name, members in groups.items() if len(members)}
  rows = [row for image in found for row in image.rows[0]]
  figures: dict[str, Any] = {"detections": len(rows)}
  if config.regions.source == "truth":
    figures["top1"] = _top1(found, groups)
  figures["box"] = average_precision(annotations, rows, "box", groups)
  annotated = all("segmentation" in row for of_image in annotations.rows for row in of_image)
  # Annotated regions have the true masks.
  if config.regions.source != "truth" and annotated and all("segmentation" in row for row in rows):
    figures["mask"] = average_precision(annotations, rows, "mask", groups)
  return figures


def _top1(found: Sequence[_Found], groups: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Accuracy of the class of the highest score among all classes, of the true regions."""
  labels = np.array([label for image in found for label in image.labels], int)
  best = np.array([label for image in found for label in image.best[0]], int)
  parts = {"all": np.ones(len(labels), bool)}
  parts |= {name: np.isin(labels, members) for name, members in groups.items()}
  return {
    name: {"top1": (best == labels)[part].mean() if part.any() else None, "objects": part.sum()}
    for name, part in parts.items()
  }


def _write_report(
  config: Settings,
  folder: RunFolder,
  boxes: BoxSet,
  blocks: Sequence[Path],
  results: dict[str, Any],
) -> None:
  """Writes tables, pictures, and the page with both."""
  if config.detect.source != "coco" or config.detect.images:  # no pictures without images
    _draw(folder, boxes, blocks, results)
  write_run_report(folder, config, results, "results.md")


def _draw(
  folder: RunFolder, boxes: BoxSet, blocks: Sequence[Path], results: Mapping[str, Any]
) -> None:
  """Draws some of the images with their boxes."""
  shown = spread_evenly(_SHOWN, len(boxes)).tolist()
  class_of = {int(number): n for n, number in enumerate(boxes.annotations.category_ids)}
  drawn = []
  for index, image in enumerate(_images(blocks)):
    if index not in shown:
      continue
    regions, classes = boxes.regions(index, masks=False)
    pictures = [Boxes(regions.boxes, classes, np.ones(len(classes), np.float32))]
    for rows in image.rows:
      corners = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
      corners[:, 2:] += corners[:, :2]
      own = np.array([class_of[row["category_id"]] for row in rows], int)
      pictures.append(Boxes(corners, own, np.array([row["score"] for row in rows], np.float32)))
    drawn.append(pictures)
  titles = ["annotated", *prompt_labels([prompt["label"] for prompt in results["prompts"]])]
  counts = (len(boxes), "image"), (results["objects"], "object"), (len(results["classes"]), "class")
  title = f"{len(shown)} of {', '.join(counted(*one) for one in counts)}"
  images = [boxes.image(index) for index in shown]
  path = folder.plots / "detections.png"
  detection_sheet(path, images, drawn, titles, boxes.classes.names, title)
