"""Finds the regions of images with a trained network, as a folder that `segment` and `detect` read.

The network runs once, and any number of prompts and fusions are judged on what it found. Leaves in
the run's folder `regions/` and `results.json`; for annotated objects with their recall. A restart
resumes after the last block of images.
"""

from collections.abc import Callable, Sequence
import json
import logging
from typing import Any

import numpy as np

from pomp_jax import inputs
from pomp_jax.config import ConfigError, Settings
from pomp_jax.config.region_fields import Detect, Segment
from pomp_jax.data.images import PREPROCESSING_VERSION
from pomp_jax.errors import InputError
from pomp_jax.files.array_cache import file_stamps, fingerprint
from pomp_jax.files.paths import Path, is_file
from pomp_jax.files.run_folder import RunFolder, read_keyed, to_json, write_json, writing
from pomp_jax.files.terminal import steps_of
from pomp_jax.inference.proposals import found_objects
from pomp_jax.inputs.box_sets import BoxSet, open_box_set
from pomp_jax.inputs.networks import check_network, network_key_parts, open_network
from pomp_jax.inputs.pixel_sets import open_pixel_set
from pomp_jax.regions.files import RegionFolder, RegionWriter
from pomp_jax.regions.masks import hard_masks

log = logging.getLogger(__name__)

# Images in memory together.
_BLOCK = 32
_LEAST_IOU = 0.5
_VERSION = f"2, pixels {PREPROCESSING_VERSION}"


def check(config: Settings, workdir: str) -> None:
  """Opens network and images; writes nothing.

  Raises:
    ConfigError, ClipError, RunFolderError, MaskFormerError, PromptFileError, VocabularyError,
      AnnotationError, CategoryFileError, ImageError, PixelError: one line each.
  """
  RunFolder(workdir).check(config.job)
  check_network(config)
  if config.propose.images == "segment":
    open_pixel_set(config.segment)
    return
  boxes = open_box_set(config.detect)
  if config.detect.source == "coco":
    if not boxes.root:
      raise ConfigError("detect.images", "", "the folder of the images")
    boxes.annotations.check_images(boxes.root, sizes=True)


def run(config: Settings, workdir: str) -> dict[str, Any]:
  """Writes the regions of all images; returns what `results.json` holds.

  Raises:
    ImageError: an image can't be read.
    MaskFormerError: a checkpoint with another CLIP inside than the configured one.
  """
  folder = RunFolder(workdir)
  encoder = inputs.open_encoder(config)
  network = open_network(config, encoder, config.propose.batch_size)
  keys, image, files, boxes = _images(config)
  parts = [_VERSION, encoder.image_fingerprint, encoder.clip.name, config.clip.text_tower]
  # Without their prompts, which a network does not see.
  parts += [str(part) for part in (_data(config.segment), _data(config.detect), keys)]
  key = fingerprint([*parts, file_stamps(files), *network_key_parts(config)])
  stored = folder.read_results()
  if stored is not None and stored.get("key") == key:
    log.info("%s: these regions are written; nothing to do", workdir)
    return stored
  folder.create()
  # The results of an earlier network would vouch for the regions of both.
  folder.results.unlink(missing_ok=True)
  write_json(folder.config, config.to_dict())
  progress, regions = folder.path / "progress.json", folder.path / "regions"
  done = _images_done(progress, regions, key, keys)
  with writing(regions):
    # From now on no other start may resume with what is here.
    write_json(progress, {"key": key, "images": done})
    writer = RegionWriter(regions, network.header)
    starts = range(done, len(keys), _BLOCK)
    for start in steps_of(starts, "regions", f"blocks of {_BLOCK} images"):
      block = range(start, min(start + _BLOCK, len(keys)))
      found = network.proposer.regions([image(index) for index in block])
      for index, own in zip(block, found, strict=True):
        writer.write(keys[index], own)
      write_json(progress, {"key": key, "images": block.stop})
  results = {
    "job": config.job,
    "key": key,
    "clip_model": encoder.clip.name,
    "images": len(keys),
    "regions_per_image": network.file.config.n_queries,
    "trained_classes": len(network.file.trained_classes),
    "recall": boxes and _recall(boxes, RegionFolder(regions), config.regions.mask_threshold),
  }
  folder.write_results(json.loads(to_json(results)))
  progress.unlink(missing_ok=True)
  log.info("regions of %d images are in %s", len(keys), folder.path / "regions")
  return folder.read_results() or {}


def _images_done(progress: Path, regions: Path, key: str, keys: Sequence[str | int]) -> int:
  """Number of images whose regions an earlier start of the same key has written."""
  try:
    done = int((read_keyed(progress, key) or {}).get("images", 0))
  except (InputError, TypeError, ValueError) as error:
    log.warning("%s: can't be read (%s); starts at the first image", progress, error)
    return 0
  missing = [own for own in keys[:done] if not is_file(regions / f"{own}.npz")]
  if missing:
    log.warning("%s: no regions of image %s; starts at the first image", regions, missing[0])
  return 0 if missing else done


def _data(settings: Segment | Detect) -> dict[str, Any]:
  """The fields that say which images there are."""
  names = ("source", "images", "labels", "annotations", "names", "n_images", "scene_classes")
  return {name: getattr(settings, name) for name in names if hasattr(settings, name)}


def _images(
  config: Settings,
) -> tuple[Sequence[Any], Callable[[int], np.ndarray], Sequence[Any], BoxSet | None]:
  """Keys of the images, number -> pixels, the files read, and annotated objects if any."""
  if config.propose.images == "segment":
    pixels = open_pixel_set(config.segment)
    return pixels.keys, pixels.image, pixels.files, None
  boxes = open_box_set(config.detect)
  return boxes.keys, boxes.image, boxes.files(config.detect), boxes


def _recall(boxes: BoxSet, folder: RegionFolder, threshold: float) -> dict[str, Any] | None:
  """Share of the annotated objects that a mask covers, by group of classes; None without masks."""
  annotations = boxes.annotations
  if any("segmentation" not in row for rows in annotations.rows for row in rows):
    return None
  covered, classes = [], []
  for index in steps_of(range(len(boxes)), "recall", "images"):
    entry, truth = annotations.images[index], annotations.truth(index)
    sides = entry.height, entry.width
    masks = hard_masks(folder.read(entry.id, *sides).drawn(str(entry.id)), *sides, threshold)
    objects, single = annotations.run_lengths(index), np.flatnonzero(~truth.crowd)
    covered += found_objects(masks, [objects[row] for row in single], _LEAST_IOU).tolist()
    classes += truth.classes[single].tolist()
  if not classes:
    return None
  groups, found = np.array(boxes.classes.groups)[classes], np.array(covered)
  parts = {"all": np.ones(len(found), bool)} | {g: groups == g for g in ("base", "novel")}
  return {"iou": _LEAST_IOU} | {
    name: {"recall": float(found[part].mean()), "objects": int(part.sum())}
    for name, part in parts.items()
    if part.any()
  }
