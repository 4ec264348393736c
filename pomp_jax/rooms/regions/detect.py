"""Boxes with classes under prompts side by side: average precision, results, pictures.

Regions are the annotated boxes, those of a file or of a network. Their classes are
those of crops, of a detector's embeddings, or of both. With embeddings of a file alone
no image is read.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from pomp_jax import hosts
from pomp_jax.data.images import PREPROCESSING_VERSION
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.evaluate import opening
from pomp_jax.files.run_folder import RunFolder, write_json, writing
from pomp_jax.report.labels import counted
from pomp_jax.rooms.regions import region_sources
from pomp_jax.rooms.regions.blocks import Blocks, Comparison, Taken, check_prompts
from pomp_jax.rooms.regions.box_metrics import average_precision
from pomp_jax.rooms.regions.detections import (
  MAX_DETECTIONS,
  Detections,
  detections_of,
  result_rows,
)
from pomp_jax.rooms.regions.fields import DetectConfig
from pomp_jax.rooms.regions.image_sets import BoxSet, open_box_set
from pomp_jax.rooms.regions.plots import detection_sheet
from pomp_jax.rooms.regions.region_scorer import RegionScorer, Scored, short_labels

# Images between two saves.
_BLOCK = 32
# Images in the plot.
_SHOWN = 6
_VERSION = f"3, pixels {PREPROCESSING_VERSION}"


def check(config: DetectConfig, workdir: str) -> None:
  """Opens annotations, regions and prompts; writes nothing. InputError: one line."""
  regions, detect, propose = config.regions, config.detect, config.propose
  clip_model = config.clip.model
  boxes, masked = open_box_set(detect), regions.crop == "masked"
  read = (
    region_sources.needs_crops(regions) or regions.source == "network" or boxes.root
  )
  if detect.source == "coco" and read:
    boxes.check_images()
  check_prompts(detect, propose, boxes.classes.synonyms, clip_model)
  region_sources.check_region_source(regions, propose, clip_model, boxes, "detect")
  if masked and regions.source == "truth":
    for index in range(len(boxes.keys)):
      boxes.regions(index, masks=True)


def run(config: DetectConfig, workdir: str) -> dict[str, Any]:
  """Detects on the images that are missing, and sums up: returns what `results.json`
  holds.

  Processes other than the first may return an empty dict.
  """
  folder, boxes = RunFolder(workdir), open_box_set(config.detect)
  regions, detect, propose, clip = (
    config.regions,
    config.detect,
    config.propose,
    config.clip,
  )
  encoder = opening.open_encoder(
    clip, config.mesh.class_size, config.data.feature_store
  )
  ours = Comparison(_VERSION, encoder, boxes, detect, regions, propose, clip)
  if (finished := folder.finished(key=ours.key)) is not None:
    return finished
  masked = regions.crop == "masked"
  images = dataclasses.replace(
    boxes, annotated=lambda index: boxes.regions(index, masked)[0]
  )
  source = region_sources.open_region_source(regions, propose, clip, encoder, images)
  scorer = RegionScorer(
    regions,
    source,
    encoder,
    boxes.classes,
    ours.matrices(),
    logit_scale=detect.logit_scale,
  )
  of_truth = regions.source == "truth"
  annotations = boxes.annotations
  most = MAX_DETECTIONS["coco" if annotations.frequencies is None else "lvis"]

  def take(found: Iterator[tuple[int, Scored]]) -> Taken:
    """Of each image `rows` of COCO results under each prompt, and classes of true
    regions.

    These are `labels`, and `best`, under each prompt the class of the highest score.
    """
    taken = []
    for index, one in found:
      limits = boxes.shape(index), detect, regions.mask_threshold, most
      kept = [
        detections_of(one.regions, scores_RxC, *limits) for scores_RxC in one.scores
      ]
      image_id = annotations.images[index].id
      rows = [result_rows(image_id, annotations.category_ids, own) for own in kept]
      labels = boxes.regions(index, masks=False)[1].tolist() if of_truth else []
      best = [
        own_RxC.argmax(axis=1).tolist() if labels else [] for own_RxC in one.scores
      ]
      taken.append({"rows": rows, "labels": labels, "best": best})
    return Taken({"images": taken})

  blocks = Blocks(folder, config.to_dict(), ours.key, len(boxes.keys), _BLOCK)
  blocks.run(scorer.scored, take, "detection")
  if not hosts.is_first():
    return {}
  figures = {}
  # Hold the detections of one prompt at a time.
  for number, named in enumerate(ours.prompts):
    rows, labels, best = [], [], []
    for image in _images(blocks):
      rows += image["rows"][number]
      labels += image["labels"]
      best += image["best"][number]
    precision_of = functools.partial(
      average_precision, annotations, rows, groups=ours.groups
    )
    figures[named.label] = own = {"detections": len(rows), "box": precision_of("box")}
    # Masks of annotated regions are the true ones, so their AP says nothing.
    if of_truth:
      own["top1"] = _top1(np.array(labels, int), np.array(best, int), ours.groups)
    elif all("segmentation" in row for row in itertools.chain(rows, *annotations.rows)):
      own["mask"] = precision_of("mask")
    if detect.output:
      path = folder.path / "detections" / f"{number}.json"
      with writing(path):
        path.parent.mkdir(exist_ok=True)
      write_json(path, rows)
  results = {
    "prompts": [{"label": named.label, "step": named.step} for named in ours.prompts],
    "images": len(boxes.keys),
    "objects": sum(map(len, annotations.rows)),
    "figures": figures,
  }

  pictured = detect.source == "world" or detect.images
  draw = lambda results: _draw(folder, boxes, blocks, results) if pictured else None
  return ours.write(blocks, results, draw)


def _images(blocks: Blocks) -> Iterator[dict[str, Any]]:
  return (image for piece in blocks.pieces() for image in piece.facts["images"])


def _top1(
  labels: np.ndarray, best: np.ndarray, groups: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Accuracy of the class of the highest score among all classes, of the true
  regions."""
  parts = {"all": np.ones(len(labels), bool)}
  parts |= {name: np.isin(labels, members) for name, members in groups.items()}
  return {
    name: {
      "top1": (best == labels)[part].mean() if part.any() else None,
      "objects": part.sum(),
    }
    for name, part in parts.items()
  }


def _draw(
  folder: RunFolder, boxes: BoxSet, blocks: Blocks, results: Mapping[str, Any]
) -> None:
  """Draws some of the images with their boxes."""
  shown = spread_evenly(_SHOWN, len(boxes.keys)).tolist()
  class_of = {int(number): n for n, number in enumerate(boxes.annotations.category_ids)}
  drawn = []
  for index, image in (
    (n, image) for n, image in enumerate(_images(blocks)) if n in shown
  ):
    regions, classes = boxes.regions(index, masks=False)
    pictures = [Detections(regions.boxes, np.ones(len(classes), np.float32), classes)]
    for rows in image["rows"]:
      corners = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
      corners[:, 2:] += corners[:, :2]
      own = np.array([class_of[row["category_id"]] for row in rows], int)
      scores = np.array([row["score"] for row in rows], np.float32)
      pictures.append(Detections(corners, scores, own))
    drawn.append(pictures)
  titles = [
    "annotated",
    *short_labels([prompt["label"] for prompt in results["prompts"]]),
  ]
  counts = (
    (len(boxes.keys), "image"),
    (results["objects"], "object"),
    (len(results["classes"]), "class"),
  )
  title = f"{len(shown)} of {', '.join(counted(*one) for one in counts)}"
  path, images = (
    folder.plots / "detections.png",
    [boxes.pixels(index) for index in shown],
  )
  detection_sheet(path, images, drawn, titles, boxes.classes.names, title)
