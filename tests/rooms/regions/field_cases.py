"""Runs and cases of the fields of jobs with regions, see
`tests/rooms/test_each_field.py`."""

from collections.abc import Mapping
import contextlib
import json
import pathlib
import types

import numpy as np
from PIL import Image

from pomp_jax.config import Config, load_job
from pomp_jax.rooms.regions import (
  blocks,
  detect,
  image_sets,
  on_page,
  predict_tasks,
  proposals,
  propose,
  segment,
  train_masks,
  training_crops,
)
from pomp_jax.rooms.regions.mask_former import model, published_weights
from pomp_jax.rooms.regions.region_folder import Regions
from pomp_jax.rooms.regions.region_scorer import Scored
from pomp_jax.train import loop
from tests.rooms.regions.region_jobs import TEXTS as TEXTS_OF_OBJECTS
from tests.support.field_cases import PREDICTED, TEXTS
from tests.support.recorded_calls import (
  Calls,
  Case,
  Recorded,
  check_and_run,
  clip_case,
)
from tests.support.recorded_runs import name_pictures, open_training_images

OBJECTS = tuple(names[0] for names in TEXTS_OF_OBJECTS)
LABELS = {
  "data.source": "regions",
  "data.annotations": "REGIONS/labels",
  "data.root": "REGIONS/images",
  "data.names": "REGIONS/names.txt",
}
DETECTED = {
  "job": "detect",
  "clip.model": "REGIONS/clip",
  "regions.source": "truth",
  "detect.source": "coco",
  "detect.annotations": "REGIONS/objects.json",
  "detect.images": "REGIONS/images",
}
SCENES = {
  "job": "detect",
  "regions.source": "truth",
  "regions.crop": "context",
  "detect.n_images": 2,
}
SEGMENTED = {
  "job": "segment",
  "segment.n_images": 1,
  "segment.scene_classes": 48,
}
PROPOSED = {
  "job": "propose",
  "clip.model": "REGIONS/clip",
  "propose.network": "REGIONS/net.pth",
  "segment.n_images": 1,
  "segment.scene_classes": 48,
}
PREDICTED_REGIONS = PREDICTED | {
  "propose.network": "REGIONS/net.pth",
}
PAGE = {
  "job": "page",
  "regions.crop": "context",
}
MASKS = {
  "job": "train_masks",
  "clip.model": "REGIONS/clip",
  "train_masks.source": "folder",
  "train_masks.images": "REGIONS/images",
  "train_masks.labels": "REGIONS/labels",
  "train_masks.names": "REGIONS/names.txt",
  "train_masks.network": "small",
  "train_masks.targets": 4,
  "batch_size": 1,
}


class _Scorer:
  """Scores of regions, in the order of the names."""

  def __init__(
    self, regions, source, encoder, classes, matrices, *, logit_scale, **kwargs
  ):
    self._source = source
    self._n_prompts = len(matrices)
    self._n_classes = len(classes)

  def scored(self, block):
    for row, regions in zip(block, self._source.find(block), strict=True):
      n_scores = len(regions.boxes) * self._n_classes
      scores = np.linspace(1, 0, n_scores, dtype=np.float32)
      scores = scores.reshape(-1, self._n_classes)
      yield row, Scored(regions, self._n_prompts * [scores])


def open_crops(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The training images that are cut out by label images."""
  calls.note(training_crops, "open_pixels")
  calls.note(training_crops, "ArrayCache")
  calls.note(training_crops, "_Crops")
  open_training_images(calls, config, folder)


def predict_regions(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job predict, up to its patches or its scores of regions."""
  calls.note(predict_tasks, "DenseSegmenter", Recorded)
  calls.note(predict_tasks, "RegionScorer", Recorded)
  calls.note(predict_tasks, "open_region_source", lambda *args: None)
  calls.skip(predict_tasks, "check_region_source")
  name_pictures(calls, config, folder)


def detect_objects(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job detect, without crops and figures."""
  seen = calls.seen
  calls.open_encoder()
  calls.note(image_sets, "read_annotations")
  calls.note(image_sets, "Scenes")
  calls.note(blocks, "fingerprint")
  calls.note(detect, "Comparison")
  calls.note(detect, "RegionScorer", _Scorer)
  calls.note(detect, "average_precision", lambda *args, **kwargs: {})
  calls.skip(detect, "_draw")
  calls.skip(blocks, "finish_run")
  results = check_and_run(config, folder)
  data = seen["Comparison.data"]
  seen["classes"] = data.classes.names
  seen["synonyms"] = data.classes.synonyms
  seen["images"] = len(data.keys)
  seen["root"] = data.root
  seen["prompts"] = [prompt["label"] for prompt in results["prompts"]]
  seen["key"] = seen["fingerprint.parts"][4]
  seen["files"] = [file.name for file in sorted(folder.glob("detections/*"))]


def segment_patches(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job segment, up to its patches."""
  calls.open_encoder()
  calls.note(segment, "DenseSegmenter", Recorded)
  load_job(config.job).run(config, str(folder))


def propose_masks(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job propose, up to its network, then one picture up to its tower."""
  calls.open_encoder()
  calls.note(published_weights, "check_clip", lambda *args: None)
  calls.note(model, "mask_predictor", lambda *args: None)
  calls.note(proposals, "Proposer")
  calls.note(proposals, "network_key_parts")
  calls.note(propose, "fingerprint", Recorded)
  with contextlib.suppress(Recorded):
    load_job(config.job).run(config, str(folder))
  calls.seen["key"] = calls.seen["fingerprint.parts"][3]
  calls.note(proposals, "resized_image")
  calls.note(proposals, "split_rows", Recorded)
  network = proposals.open_network(config.propose, config.clip, 0.5, calls.encoder)
  with contextlib.suppress(Recorded):
    network.regions([np.zeros((40, 40, 3), np.uint8)])
  calls.seen["batch"] = len(calls.seen["split_rows.tree"][0])


def prepare_mask_training(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job train_masks, up to its training, and its step."""
  calls.open_encoder()
  calls.note(train_masks, "open_mask_set")
  calls.note(train_masks, "MaskViews")
  calls.note(train_masks, "precision_of")
  calls.note(train_masks, "make_mask_step", lambda **kwargs: lambda: None)
  calls.note(loop, "train", Recorded)
  with contextlib.suppress(Recorded):
    load_job(config.job).run(config, str(folder))
  calls.seen["train.run"].build_step()


def find_on_page(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """What the page does with the regions of a picture."""
  pixels = np.zeros((40, 40, 3), np.uint8)
  boxes = np.array([[1, 1, 9, 9], [1, 1, 9, 8], [20, 20, 30, 30]], np.float32)
  masks = np.full((3, 10, 10), 2**14, np.int16)
  regions = Regions(boxes, np.ones(3, np.float32), masks)
  network = types.SimpleNamespace(header=None, regions=lambda images: [regions])
  calls.open_encoder()
  calls.note(on_page, "open_network", lambda *args: network)
  calls.note(on_page, "DenseSegmenter")
  calls.note(on_page, "RegionEncoder")
  calls.note(on_page, "RegionScorer", _Scorer)
  calls.note(on_page, "select_detections")
  calls.note(Regions, "top")
  calls.patch.setattr(on_page, "_drawn", lambda *args: b"")
  calls.note(on_page, "RegionsOfPictures")
  page = on_page.RegionsOfPictures(calls.encoder, config.clip, config.page)
  if not page.finds:
    return
  rows = np.ones((2, calls.width), np.float32)
  question = (
    Image.fromarray(pixels),
    ("cat", "dog"),
    lambda: [rows],
    ["a prompt"],
  )
  page.segment(question)
  page.find_objects(question)
  page.name_boxes(question, boxes)


CASES = {
  "the CLIP of detect": clip_case("detect", SCENES),
  "the CLIP of segment": clip_case("segment", {"segment.n_images": 1}),
  "the CLIP of propose": clip_case("propose", {"propose.network": "REGIONS/net.pth"}),
  "the CLIP of train_masks": clip_case("train_masks", {}),
  "regions of label images": Case(
    run=open_crops,
    fields=LABELS,
    rows={
      "data.annotations": ("REGIONS/other/labels", "open_pixels.labels"),
      "data.root": ("REGIONS/other/images", "_Crops.root"),
      "data.names": (
        "REGIONS/other/names.txt",
        "names",
        ("tree", "road", "lake", "star"),
      ),
      "data.cache": ("ROOT/cache", "ArrayCache.folder"),
    },
  ),
  "names of pixels": Case(
    run=predict_regions,
    fields=PREDICTED,
    rows={
      "predict.task": ("segment", "DenseSegmenter.segment.size", 336),
      "segment.pamr": (3, "DenseSegmenter.segment.pamr"),
      "clip.dtype": ("bfloat16", "DenseSegmenter.dtype"),
    },
  ),
  "names of pixels in regions": Case(
    run=predict_regions,
    fields=PREDICTED_REGIONS | {"predict.task": "segment"},
    rows={
      "segment.logit_scale": (7.0, "RegionScorer.logit_scale"),
      "regions.expand": (1.7, "RegionScorer.regions.expand"),
      "propose.size": (64, "open_region_source.propose.size"),
    },
  ),
  "names of objects": Case(
    run=predict_regions,
    fields=PREDICTED_REGIONS | {"predict.task": "detect"},
    rows={
      "detect.logit_scale": (7.0, "RegionScorer.logit_scale"),
    },
  ),
  "objects": Case(
    run=detect_objects,
    fields=DETECTED,
    rows={
      "detect.annotations": ("REGIONS/other/objects.json", "read_annotations.path"),
      "detect.images": ("REGIONS/other/images", "root"),
      "detect.names": ("ROOT/classes.txt", "classes", (*OBJECTS, "tree")),
      "detect.n_images": (2, "images", 2),
      "detect.prompts": (TEXTS, "prompts", list(TEXTS)),
      "detect.output": (True, "files", ["0.json", "1.json"]),
      "detect.logit_scale": (7.0, "RegionScorer.logit_scale"),
      "clip.text_tower": ("reference", "key"),
    },
  ),
  "objects of several names": Case(
    run=detect_objects,
    fields=DETECTED | {"detect.annotations": "ROOT/lvis.json"},
    rows={
      "detect.synonyms": (
        True,
        "synonyms",
        tuple((name, f"a {name}") for name in OBJECTS),
      )
    },
  ),
  "objects of scenes": Case(
    run=detect_objects,
    fields=SCENES,
    rows={
      "detect.scene_classes": (480, "Scenes.n_classes"),
    },
  ),
  "annotated objects": Case(
    run=detect_objects,
    fields=DETECTED | {"detect.source": "world", "detect.n_images": 2},
    rows={
      "detect.source": ("coco", "classes", OBJECTS),
    },
  ),
  "patches": Case(
    run=segment_patches,
    fields=SEGMENTED,
    rows={
      "clip.dtype": ("bfloat16", "DenseSegmenter.dtype"),
      "segment.recipe": ("clip", "DenseSegmenter.segment.recipe"),
    },
  ),
  "a network": Case(
    run=propose_masks,
    fields=PROPOSED,
    rows={
      "clip.dtype": (
        "bfloat16",
        {"mask_predictor.dtype": "bfloat16", "network_key_parts.dtype": "bfloat16"},
      ),
      "clip.text_tower": ("reference", "key"),
      "propose.size": (64, "resized_image.size"),
      "propose.stride": (1, "resized_image.multiple"),
      "propose.batch_size": (3, "batch"),
    },
  ),
  "masks of a network": Case(
    run=propose_masks,
    fields=PROPOSED,
    rows={
      "regions.mask_threshold": (0.8, "Proposer.threshold*", [0.8, 0.5]),
    },
  ),
  "a training of masks": Case(
    run=prepare_mask_training,
    fields=MASKS,
    rows={
      "seed": (9, "train.run.seed"),
      "batch_size": (2, "train.run.total_steps", 6),
      "epochs": (3, "train.run.total_steps", 6),
      "log.every": (7, "train.run.log_every"),
      "checkpoint.keep": (7, "train.run.checkpoint.keep"),
      "data.max_corrupt": (0.5, "train.run.data.max_corrupt"),
      "clip.dtype": ("bfloat16", "precision_of.dtype"),
    },
  ),
  "seeds of masks": Case(
    run=prepare_mask_training,
    fields=MASKS,
    rows={
      "seed": (9, "MaskViews.seed"),
    },
  ),
  "seeds of scenes": Case(
    run=prepare_mask_training,
    fields=MASKS | {"train_masks.source": "world", "train_masks.n_images": 1},
    rows={
      "seed": (9, "open_mask_set.seed"),
    },
  ),
  "regions on the page": Case(
    run=find_on_page,
    fields=PAGE | {"propose.network": "a network"},
    rows={
      "regions.max_regions": (2, "top.k"),
      "regions.mask_threshold": (0.8, "open_network.mask_threshold"),
      "regions.expand": (1.7, "RegionEncoder.regions.expand"),
      "segment.logit_scale": (7.0, "RegionScorer.logit_scale*", [7.0, 9.0, 9.0]),
      "detect.logit_scale": (9.0, "RegionScorer.logit_scale*", [7.0, 9.0, 9.0]),
      "detect.min_score": (0.1, "select_detections.min_score"),
      "detect.nms": (0.1, "select_detections.max_iou"),
      "propose.size": (64, "open_network.propose.size"),
      "propose.network": ("another", "open_network.propose.network"),
    },
  ),
  "patches on the page": Case(
    run=find_on_page,
    fields=PAGE,
    rows={
      "segment.recipe": ("clip", "DenseSegmenter.segment.recipe"),
      "clip.dtype": ("bfloat16", "DenseSegmenter.dtype"),
    },
  ),
}

_REGIONS = (
  "tests/rooms/regions/test_region_fields.py::test_a_field_changes_what_it_names"
)
ELSEWHERE = {
  "segment.": _REGIONS,
  "regions.": _REGIONS,
  "detect.min_score": _REGIONS,
  "detect.nms": _REGIONS,
  "detect.top": _REGIONS,
  "propose.": (
    "tests/rooms/regions/test_propose.py::test_each_field_reaches_the_network"
  ),
  "train_masks.": (
    "tests/rooms/regions/test_train_masks.py::test_a_field_changes_what_it_names"
  ),
}


def write_files(folders: Mapping[str, pathlib.Path]) -> None:
  """Writes the objects of the region set with synonyms, and their names with one
  more."""
  root = folders["ROOT"]
  objects = json.loads((folders["REGIONS"] / "objects.json").read_text())
  for category in objects["categories"]:
    category["synonyms"] = [category["name"], f"a {category['name']}"]
  (root / "lvis.json").write_text(json.dumps(objects))
  lines = [f"{name}\tbase" for name in (*OBJECTS, "tree")]
  (root / "classes.txt").write_text("\n".join(lines))
