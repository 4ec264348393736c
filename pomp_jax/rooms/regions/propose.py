"""Finds the regions of images with a trained network, as a folder that `segment` and
`detect` read.

The network runs once. Any number of prompts and fusions can then be evaluated on its
regions. Leaves `regions/`, and `results.json` with the recall of annotated objects. A
restart resumes after the last complete block.
"""

from collections.abc import Iterator, Sequence
import json
import logging
from typing import Any

import numpy as np

from pomp_jax.data.images import PREPROCESSING_VERSION
from pomp_jax.evaluate import opening
from pomp_jax.files.paths import file_stamps
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.run_folder import RunFolder, to_json, writing
from pomp_jax.files.terminal import steps_of
from pomp_jax.rooms.regions import proposals
from pomp_jax.rooms.regions.blocks import Blocks, Taken
from pomp_jax.rooms.regions.fields import Detect, ProposeConfig, Segment
from pomp_jax.rooms.regions.image_sets import BoxSet, open_box_set, open_pixel_set
from pomp_jax.rooms.regions.masks import hard_masks
from pomp_jax.rooms.regions.region_folder import RegionFolder, Regions, RegionWriter

log = logging.getLogger(__name__)

# Number of images in memory at a time.
_BLOCK = 32
# An object counts as found if the IoU of a mask with it is at least this.
_LEAST_IOU = 0.5
_VERSION = f"2, pixels {PREPROCESSING_VERSION}"
# Fields of `segment` and `detect` that name images. Each job lacks some of the fields.
_IMAGE_FIELDS = (
  "source",
  "images",
  "labels",
  "annotations",
  "names",
  "n_images",
  "scene_classes",
)


def check(config: ProposeConfig, workdir: str) -> None:
  """Opens network and images, writes nothing; InputError if one is unusable."""
  proposals.check_network(config.propose, config.clip.model)
  if config.propose.images == "segment":
    open_pixel_set(config.segment)
    return
  boxes = open_box_set(config.detect)
  if config.detect.source == "coco":
    boxes.check_images()


def run(config: ProposeConfig, workdir: str) -> dict[str, Any]:
  """Writes the regions of all images; returns what `results.json` holds."""
  folder = RunFolder(workdir)
  threshold = config.regions.mask_threshold
  encoder = opening.open_encoder(
    config.clip, config.mesh.class_size, config.data.feature_store
  )
  proposer = proposals.open_network(config.propose, config.clip, threshold, encoder)
  boxes = None
  if config.propose.images == "detect":
    boxes = open_box_set(config.detect)
  images = boxes or open_pixel_set(config.segment)
  key = fingerprint(
    [
      _VERSION,
      encoder.image_fingerprint,
      encoder.clip.name,
      config.clip.text_tower,
      # Leave out the prompts of these jobs: the network's regions depend on none.
      str(_image_fields(config.segment)),
      str(_image_fields(config.detect)),
      str(images.keys),
      file_stamps(images.files),
      *proposals.network_key_parts(config.propose, threshold, config.clip.dtype),
    ]
  )
  finished = folder.finished(key=key)
  if finished is not None:
    return finished
  blocks = Blocks(folder, config.to_dict(), key, len(images.keys), _BLOCK)
  regions = folder.path / "regions"

  def find(block: Sequence[int]) -> Iterator[tuple[int, Regions]]:
    pixels = [images.pixels(row) for row in block]
    return zip(block, proposer.regions(pixels), strict=True)

  def take(proposed: Iterator[tuple[int, Regions]]) -> Taken:
    files = {}
    for index, regions_of_image in proposed:
      name = images.keys[index]
      files[f"{regions.name}/{name}.npz"] = writer.write(name, regions_of_image)
    return Taken(files=files)

  with writing(regions):
    writer = RegionWriter(regions, proposer.header)
    blocks.run(find, take, "regions")
  blocks.check_files()
  recall = None
  if boxes is not None:
    recall = _recall(boxes, RegionFolder(regions), threshold)
  results = {
    "job": config.job,
    "key": key,
    "clip_model": encoder.clip.name,
    "images": len(images.keys),
    "regions_per_image": proposer.network.config.n_queries,
    "trained_classes": len(proposer.network.trained_classes),
    "recall": recall,
  }
  folder.write_results(results)
  blocks.store.remove()
  log.info("regions of %d images are in %s", len(images.keys), regions)
  return json.loads(to_json(results))


def _image_fields(settings: Segment | Detect) -> dict[str, Any]:
  """The fields of a job, by name, that say which images it has."""
  values = {}
  for name in _IMAGE_FIELDS:
    if hasattr(settings, name):
      values[name] = getattr(settings, name)
  return values


def _recall(
  boxes: BoxSet, folder: RegionFolder, threshold: float
) -> dict[str, Any] | None:
  """Share of the annotated objects that a mask covers, by group of classes.

  None if an object has no mask, or if there is no object.
  """
  annotations = boxes.annotations
  if any("segmentation" not in row for rows in annotations.rows for row in rows):
    return None
  covered: list[bool] = []
  classes: list[int] = []
  for index in steps_of(range(len(boxes.keys)), "recall", "images"):
    key = boxes.keys[index]
    truth = annotations.truth(index)
    height, width = boxes.shape(index)
    soft = folder.read(key, height, width).drawn(str(key))
    masks = hard_masks(soft, height, width, threshold)
    run_lengths = annotations.run_lengths(index)
    # Leave out crowds, since a mask covers a single object.
    single = np.flatnonzero(~truth.crowd)
    objects = [run_lengths[row] for row in single]
    covered += proposals.found_objects(masks, objects, _LEAST_IOU).tolist()
    classes += truth.classes[single].tolist()
  if not classes:
    return None
  is_covered = np.array(covered)
  groups = np.array(boxes.classes.groups)[classes]
  parts = {"all": np.ones(len(is_covered), bool)}
  for name in ("base", "novel"):
    parts[name] = groups == name
  recall: dict[str, Any] = {"iou": _LEAST_IOU}
  for name, part in parts.items():
    if part.any():
      recall[name] = {
        "recall": float(is_covered[part].mean()),
        "objects": int(part.sum()),
      }
  return recall
