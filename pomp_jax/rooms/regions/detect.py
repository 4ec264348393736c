"""Compares prompts on boxes with classes: average precision, results, pictures.

Regions are annotated boxes, or come from a file or a network. CLIP's features of crops,
a detector's embeddings, or both classify the regions. With embeddings of a file alone,
no image is read.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from pomp_jax import hosts
from pomp_jax.data.images import PREPROCESSING_VERSION
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.evaluate import opening
from pomp_jax.files.run_folder import RunFolder, write_json, writing
from pomp_jax.report.labels import counted
from pomp_jax.rooms.regions import region_sources
from pomp_jax.rooms.regions.annotations import Annotations
from pomp_jax.rooms.regions.blocks import Blocks, Comparison, Taken, check_prompts
from pomp_jax.rooms.regions.box_metrics import average_precision
from pomp_jax.rooms.regions.detections import (
  MAX_DETECTIONS,
  Detections,
  detections_of,
  result_rows,
)
from pomp_jax.rooms.regions.fields import Detect, DetectConfig
from pomp_jax.rooms.regions.image_sets import BoxSet, open_box_set
from pomp_jax.rooms.regions.plots import detection_sheet
from pomp_jax.rooms.regions.region_scorer import RegionScorer, Scored, short_labels

# Images between two saves.
_BLOCK = 32
# Images in the plot.
_SHOWN = 6
_VERSION = f"3, pixels {PREPROCESSING_VERSION}"


def check(config: DetectConfig, workdir: str) -> None:
  """Opens annotations, regions and prompts; writes nothing.

  Raises:
    InputError: annotations, images, regions or a prompt are unusable.
  """
  regions = config.regions
  detect = config.detect
  clip_model = config.clip.model
  boxes = open_box_set(detect)
  reads_images = (
    region_sources.needs_crops(regions) or regions.source == "network" or boxes.root
  )
  if detect.source == "coco" and reads_images:
    boxes.check_images()
  check_prompts(detect, config.propose, boxes.classes.synonyms, clip_model)
  region_sources.check_region_source(
    regions, config.propose, clip_model, boxes, "detect"
  )
  if regions.crop == "masked" and regions.source == "truth":
    # Decode all masks: this raises if an object has none.
    for index in range(len(boxes.keys)):
      boxes.regions(index, masks=True)


def run(config: DetectConfig, workdir: str) -> dict[str, Any]:
  """Detects on the images that have no stored detections yet, and computes figures.

  Returns:
    Content of `results.json`. Processes other than the first may return an empty dict.
  """
  folder = RunFolder(workdir)
  boxes = open_box_set(config.detect)
  regions = config.regions
  detect = config.detect
  propose = config.propose
  clip = config.clip
  encoder = opening.open_encoder(
    clip, config.mesh.class_size, config.data.feature_store
  )
  comparison = Comparison(_VERSION, encoder, boxes, detect, regions, propose, clip)
  finished = folder.finished(key=comparison.key)
  if finished is not None:
    return finished
  needs_masks = regions.crop == "masked"
  images = dataclasses.replace(
    boxes, annotated=lambda index: boxes.regions(index, needs_masks)[0]
  )
  source = region_sources.open_region_source(regions, propose, clip, encoder, images)
  scorer = RegionScorer(
    regions,
    source,
    encoder,
    boxes.classes,
    comparison.matrices(),
    logit_scale=detect.logit_scale,
  )
  take = functools.partial(
    _take,
    boxes=boxes,
    detect=detect,
    mask_threshold=regions.mask_threshold,
    of_truth=regions.source == "truth",
  )
  blocks = Blocks(folder, config.to_dict(), comparison.key, len(boxes.keys), _BLOCK)
  blocks.run(scorer.scored, take, "detection")
  if not hosts.is_first():
    return {}
  figures = {}
  for number, named in enumerate(comparison.prompts):
    # Hold the detections of one prompt at a time.
    detections = _detections_of_prompt(blocks, number)
    figures[named.label] = _figures(
      detections, boxes.annotations, comparison.groups, regions.source == "truth"
    )
    if detect.output:
      path = folder.path / "detections" / f"{number}.json"
      with writing(path):
        path.parent.mkdir(exist_ok=True)
      write_json(path, detections.rows)
  results = {
    "prompts": [
      {"label": named.label, "step": named.step} for named in comparison.prompts
    ],
    "images": len(boxes.keys),
    "objects": sum(map(len, boxes.annotations.rows)),
    "figures": figures,
  }

  def draw(results: Mapping[str, Any]) -> None:
    # With embeddings of a file, the images may be missing.
    if detect.source == "world" or detect.images:
      _draw(folder, boxes, blocks, results)

  return comparison.write(blocks, results, draw)


def _take(
  scored: Iterator[tuple[int, Scored]],
  boxes: BoxSet,
  detect: Detect,
  mask_threshold: float,
  of_truth: bool,
) -> Taken:
  """Collects the facts that a block stores of each image.

  `rows` has COCO results under each prompt. For true regions, `labels` has their
  classes, and `best` has the classes of the highest score under each prompt.
  """
  annotations = boxes.annotations
  benchmark = "coco" if annotations.frequencies is None else "lvis"
  most = MAX_DETECTIONS[benchmark]
  facts = []
  for index, (regions, scores) in scored:
    image_id = annotations.images[index].id
    rows = []
    for scores_RxC in scores:
      detections = detections_of(
        regions, scores_RxC, boxes.shape(index), detect, mask_threshold, most
      )
      rows.append(result_rows(image_id, annotations.category_ids, detections))
    labels: list[int] = []
    if of_truth:
      labels = boxes.regions(index, masks=False)[1].tolist()
    best: list[list[int]] = [[] for _ in scores]
    if labels:
      best = [scores_RxC.argmax(axis=1).tolist() for scores_RxC in scores]
    facts.append({"rows": rows, "labels": labels, "best": best})
  return Taken({"images": facts})


class _PromptDetections(NamedTuple):
  """Detections of one prompt on all images."""

  rows: list[dict[str, Any]]  # COCO results
  labels: list[int]  # classes of true regions
  best: list[int]  # classes of the highest score of the true regions


def _detections_of_prompt(blocks: Blocks, number: int) -> _PromptDetections:
  """Joins the stored detections of a prompt over all blocks."""
  detections = _PromptDetections([], [], [])
  for image in _images(blocks):
    detections.rows.extend(image["rows"][number])
    detections.labels.extend(image["labels"])
    detections.best.extend(image["best"][number])
  return detections


def _figures(
  detections: _PromptDetections,
  annotations: Annotations,
  groups: Mapping[str, np.ndarray],
  of_truth: bool,
) -> dict[str, Any]:
  """Figures of one prompt: AP of boxes, and top-1 of true regions or AP of masks."""
  rows = detections.rows
  precision_of = functools.partial(average_precision, annotations, rows, groups=groups)
  figures: dict[str, Any] = {"detections": len(rows), "box": precision_of("box")}
  if of_truth:
    # Annotated regions have the true masks, so the AP of masks says nothing.
    figures["top1"] = _top1(
      np.array(detections.labels, int), np.array(detections.best, int), groups
    )
  elif all("segmentation" in row for row in itertools.chain(rows, *annotations.rows)):
    figures["mask"] = precision_of("mask")
  return figures


def _images(blocks: Blocks) -> Iterator[dict[str, Any]]:
  """Yields the stored facts of each image."""
  for piece in blocks.pieces():
    yield from piece.facts["images"]


def _top1(
  labels: np.ndarray, best: np.ndarray, groups: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Share of true regions whose class has the highest score of all, also by group."""
  parts = {"all": np.ones(len(labels), bool)}
  for name, members in groups.items():
    parts[name] = np.isin(labels, members)
  is_right = best == labels
  return {
    name: {
      "top1": is_right[part].mean() if part.any() else None,
      "objects": part.sum(),
    }
    for name, part in parts.items()
  }


def _draw(
  folder: RunFolder, boxes: BoxSet, blocks: Blocks, results: Mapping[str, Any]
) -> None:
  """Draws some of the images with their boxes."""
  indices = spread_evenly(_SHOWN, len(boxes.keys)).tolist()
  class_of = {int(number): n for n, number in enumerate(boxes.annotations.category_ids)}
  sets_of_images = []
  for index, image in enumerate(_images(blocks)):
    if index not in indices:
      continue
    regions, classes = boxes.regions(index, masks=False)
    # Draw the annotations first, with a score of 1.
    scores_of_truth = np.ones(len(classes), np.float32)
    sets = [Detections(regions.boxes, scores_of_truth, classes)]
    for rows in image["rows"]:
      corners = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
      # From x, y, width, height to the two corners.
      corners[:, 2:] += corners[:, :2]
      scores = np.array([row["score"] for row in rows], np.float32)
      labels = np.array([class_of[row["category_id"]] for row in rows], int)
      sets.append(Detections(corners, scores, labels))
    sets_of_images.append(sets)
  labels_of_prompts = [prompt["label"] for prompt in results["prompts"]]
  counts = [
    counted(len(boxes.keys), "image"),
    counted(results["objects"], "object"),
    counted(len(results["classes"]), "class"),
  ]
  detection_sheet(
    folder.plots / "detections.png",
    images=[boxes.pixels(index) for index in indices],
    boxes=sets_of_images,
    titles=["annotated", *short_labels(labels_of_prompts)],
    names=boxes.classes.names,
    title=f"{len(indices)} of {', '.join(counts)}",
  )
