"""Each field of `segment`, `detect` and `propose` reaches what it names; bad input
is one line."""

import json
import shutil

import numpy as np
from PIL import Image
import pytest
import safetensors.torch
import torch

from pomp_jax.config import fields_of
from pomp_jax.errors import InputError
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.rooms.regions import (
  blocks,
  crop_features,
  detect,
  image_sets,
  region_scorer,
  region_sources,
  segment,
)
from pomp_jax.rooms.regions import detections as detections_module
from pomp_jax.rooms.regions.region_folder import (
  RegionFolder,
  RegionHeader,
  RegionWriter,
)
from tests.rooms.regions.region_jobs import (
  SIZES,
  TINY,
  detections,
  in_place,
  label_maps,
  regions_config,
  write_network,
)
from tests.support.checks import spy
from tests.support.small_run import run_job

FILE = {"regions.source": "file"}
CONTEXT = {"regions.crop": "context"}
PATCHES = {
  "regions.source": "none",
  "segment.size": 48,
  "segment.window": 32,
  "segment.stride": 16,
}
ONE = {"segment.n_images": 1}
NO_FOLDERS = {"segment.images": "", "segment.labels": "", "segment.names": ""}
WORLD = {"segment.source": "world"} | NO_FOLDERS
BACKGROUND = PATCHES | {"segment.background": "ground"}
UNSURE = BACKGROUND | {"segment.background_below": 0.9}
# Field -> another value or other fields, what both runs have beside the usual config,
# the `function.argument` that it reaches, and what this becomes (the value itself if
# not said).
SEGMENT = {
  "regions.source": ("file", {}, "open_regions.path", "ROOT/regions"),
  "regions.path": ("OTHER/regions", FILE, "open_regions.path"),
  "regions.max_regions": (2, FILE, "read.most"),
  "regions.mask_threshold": (0.8, FILE, "hard_masks.threshold"),
  "regions.crop": ("context", {}, "Cropping.square", True),
  "regions.size": (
    64,
    FILE | {"regions.mask_threshold": 0.45},
    "hard_masks.height",
    64,
  ),
  "regions.expand": (1.7, CONTEXT, "Cropping.expand"),
  "regions.e_base": (1.0, FILE, "fusion.e_base"),
  "regions.e_novel": (0.0, FILE, "fusion.e_novel"),
  "regions.null": ("gate", FILE, "fusion.null"),
  "regions.objectness": (True, FILE, "fusion.objectness"),
  "regions.alone": (True, FILE, "results.labels", 6),
  "segment.source": (WORLD, ONE, "Scenes.n_scenes", 1),
  "segment.images": ("OTHER/images", {}, "open_pixels.images"),
  "segment.labels": ("OTHER/labels", FILE, "open_pixels.labels"),
  "segment.names": (
    "OTHER/names.txt",
    {},
    "results.classes",
    ("tree", "road", "lake", "star"),
  ),
  "segment.label_values": ("reduce_zero_label", {}, "open_pixels.values"),
  "segment.ignore": (254, {}, "open_pixels.ignore"),
  "segment.n_images": (2, {}, "results.images"),
  "segment.scene_classes": (480, WORLD | ONE, "Scenes.n_classes"),
  "segment.prompts": ("the {}", {}, "class_matrix.prompt"),
  "segment.recipe": ("clip", PATCHES, "patches.recipe"),
  "segment.logit_scale": (1.0, FILE, "region_scores.logit_scale"),
  "segment.size": (64, PATCHES, "patches.size"),
  "segment.window": (16, PATCHES, "patches.window"),
  "segment.stride": (8, PATCHES, "patches.stride"),
  "segment.pamr": (3, PATCHES, "patches.pamr"),
  "segment.background": (
    "ground",
    PATCHES,
    "class_matrix.first",
    ("background", "ground"),
  ),
  "segment.background_below": (0.9, BACKGROUND, "patches.background_below"),
  "segment.output": (False, {}, "results.label_images", 2),
}
# With masked crops of true regions.
DETECT = {
  "regions.expand": (1.7, {}, "Cropping.expand"),
  "regions.crop": ("context", {}, "Cropping.square", True),
  "detect.logit_scale": (1.0, {}, "region_scores.logit_scale"),
  "detect.min_score": (0.6, {}, "select_detections.min_score"),
  "detect.nms": (0.1, {}, "select_detections.max_iou"),
  "detect.top": (1, {}, "select_detections.top"),
}
ROWS = [("segment", field, *row) for field, row in SEGMENT.items()]
ROWS += [("segment", "regions.expand", 1.7, FILE, "Cropping.expand")]
ROWS += [("segment", "segment.logit_scale", 100.0, UNSURE, "patches.logit_scale")]
ROWS += [("detect", field, *row) for field, row in DETECT.items()]
SPIED = (
  *((region_sources, "open_regions"), (crop_features, "Cropping")),
  *((region_scorer, name) for name in ("region_scores", "hard_masks")),
  (detections_module, "select_detections"),
  *((image_sets, name) for name in ("open_pixels", "Scenes")),
  (blocks, "class_matrix"),
  (segment, "DenseSegmenter"),
  (RegionFolder, "read"),
)


def test_each_field_has_a_row():
  groups = ("regions.", "segment.")
  assert sorted(SEGMENT) == sorted(
    field for field in fields_of() if field.startswith(groups)
  )


@pytest.fixture(scope="module")
def outcome(region_set, tmp_path_factory):
  """A function: job, fields -> arguments by `function.argument`, and what the run
  leaves."""
  found = {}

  def run(job, changes):
    key = repr((job, sorted(changes.items())))
    if key not in found:
      seen.clear()
      workdir = tmp_path_factory.mktemp("run")
      try:
        results = run_job(regions_config(region_set, job, **changes), workdir)
      except InputError as error:
        return dict(seen), str(error)
      maps = [
        [labels.tolist() for labels in label_maps(workdir, number)]
        for number in range(6)
      ]
      if "DenseSegmenter.segment" in seen:
        fields = vars(seen["DenseSegmenter.segment"])
        seen.update({f"patches.{name}": value for name, value in fields.items()})
      if "region_scores.fusion" in seen:
        fields = vars(seen["region_scores.fusion"])
        seen.update({f"fusion.{name}": value for name, value in fields.items()})
      if "class_matrix.named" in seen:
        seen["class_matrix.prompt"] = seen["class_matrix.named"].prompt
        seen["class_matrix.first"] = seen["class_matrix.synonyms"][0]
      seen["results.labels"], seen["results.images"] = (
        len(results["prompts"]),
        results["images"],
      )
      seen["results.classes"] = tuple(results["classes"])
      seen["results.label_images"] = sum(map(len, maps))
      rows = detections(workdir) if job == "detect" else None
      found[key] = dict(seen), (repr(results["figures"]), maps, rows)
    return found[key]

  with pytest.MonkeyPatch.context() as patch:
    seen = spy(patch, SPIED)
    for job in (segment, detect):
      patch.setattr(job, "_SHOWN", 1)
      patch.setattr(job, "_draw", lambda *given: None)
    patch.setattr(blocks, "finish_run", lambda *given: None)
    yield run


@pytest.mark.parametrize(
  "row", [pytest.param(row, id=f"{row[0]}-{row[1]}-{row[4]}") for row in ROWS]
)
def test_a_field_changes_what_it_names(outcome, region_set, row):
  job, field, value, beside, argument, *becomes = row
  value = in_place(region_set, value)
  beside = {name: in_place(region_set, own) for name, own in beside.items()}
  before, left = outcome(job, beside)
  after, leaves = outcome(
    job, beside | (value if isinstance(value, dict) else {field: value})
  )
  (expected,) = [in_place(region_set, own) for own in becomes] or [value]
  assert after[argument] == expected != before.get(argument)
  assert not isinstance(left, str), left
  # A value of the labels that is no longer ignored is refused.
  assert not isinstance(leaves, str) or field == "segment.ignore", leaves
  assert left != leaves


NEW_FILE = {"regions.source": "file", "regions.path": "NEW/regions"}
NETWORK = {"regions.source": "network", "propose.network": "NEW/net.pth"}


def wide_prompt(root, folder):
  save_prompt(
    folder / "wide.npz", Prompt(np.zeros((2, 40), np.float32), "another", "end")
  )


def no_regions(root, folder, header=None):
  RegionWriter(folder / "regions", header or RegionHeader("a net"))


def another_clip(root, folder):
  no_regions(root, folder, RegionHeader("a net", "ViT-B/32", 1, 512))


def regions_with(change):
  """Writes regions of which a later image's arrays are changed."""

  def write(root, folder):
    shutil.copytree(root / "regions", folder / "regions")
    file = folder / "regions" / "3.npz"
    np.savez(file, **change(dict(np.load(file))))

  return write


boxes_outside = regions_with(lambda stored: stored | {"boxes": stored["boxes"] + 50})
without_masks = regions_with(
  lambda stored: {n: a for n, a in stored.items() if n != "masks"}
)


def network_with(**changes):
  return lambda root, folder: write_network(folder / "net.pth", **changes)


def network_of_another_clip(root, folder):
  model = safetensors.torch.load_file(root / "net.pth")
  model["clip_adapter.clip_model.ln_final.weight"] = torch.ones(32)
  with safetensors.safe_open(root / "net.pth", "pt") as file:
    facts = json.loads(file.metadata()["mask_former"])
  del facts["crc32"]  # of the tensors before
  torch.save({"model": model, "mask_former": json.dumps(facts)}, folder / "net.pth")


def label_beyond_the_list(root, folder):
  (folder / "labels").mkdir()
  Image.fromarray(np.full(SIZES[0], 4, np.uint8)).save(folder / "labels" / "0.png")


def objects_with(part, **changes):
  """Writes annotations of which the third image or object has other fields, or lacks
  them."""

  def write(root, folder):
    value = json.loads((root / "objects.json").read_text())
    row = value[part][2] | changes
    value[part][2] = {field: own for field, own in row.items() if own is not None}
    (folder / "bad.json").write_text(json.dumps(value))

  return write


# Name -> what the message names, fields, and what is written before. JOB is the job,
# ROOT the set, NEW the folder of what is written.
BAD = {
  "a prompt of another width": (
    "wide.npz",
    {"JOB.prompts": "NEW/wide.npz"},
    wide_prompt,
  ),
  "regions of another CLIP": ("clip_model", NEW_FILE, another_clip),
  "an image without regions": ("0.npz", NEW_FILE, no_regions),
  "a box outside": ("3.npz: a box", NEW_FILE, boxes_outside),
  "no embeddings to compare": (
    "regions.alone",
    NEW_FILE | {"regions.alone": True},
    no_regions,
  ),
  "no network to compare": ("regions.alone", {"regions.alone": True}),
  "a network of another width": (
    "clip.model",
    NETWORK,
    network_with(embedding=TINY.embedding),
  ),
  "no network's file": (
    "s.json",
    NETWORK | {"propose.network": "ROOT/regions/regions.json"},
  ),
  "another CLIP in a network": (
    "clip_adapter.clip_model",
    NETWORK,
    network_of_another_clip,
  ),
  "no prompt": (
    "net.pth",
    NETWORK | {"propose.prompt": "network"},
    network_with(context=None),
  ),
  "no network": ("propose.network", NETWORK | {"propose.network": ""}),
  "a prompt of no network": (
    "propose.network",
    {"propose.network": "", "JOB.prompts": "network"},
  ),
  "no such prompt": (
    "propose.prompt",
    NETWORK | {"propose.prompt": "no.npz"},
    network_with(),
  ),
  "two origins": ("regions.path", NETWORK | {"regions.path": "ROOT/regions"}),
}
BAD_SEGMENT = {
  "a label": ("0.png", {"segment.labels": "NEW/labels"}, label_beyond_the_list),
  "a list of classes": ("coco_stufff", {"segment.names": "coco_stufff"}),
  "a later image without masks": ("regions.path", NEW_FILE, without_masks),
  # Its value is 0, which `reduce_zero_label` ignores: all classes would be one too low.
  "a background in ids without it": (
    "segment.label_values",
    {"segment.background": ("ground",), "segment.label_values": "reduce_zero_label"},
  ),
}
OBJECTS = {"detect.annotations": "NEW/bad.json"}
BAD_DETECT = {
  "no image": ("no.png", OBJECTS, objects_with("images", file_name="no.png")),
  "an image's size": ("2.png", OBJECTS, objects_with("images", height=480)),
  "no mask": ("bad.json", OBJECTS, objects_with("annotations", segmentation=None)),
  "a later image without masks": ("regions.crop", NEW_FILE, without_masks),
  # Embeddings alone need no image, but the plot does.
  "no pictures for the plot": (
    ".png: no such image",
    {"regions.source": "file", "regions.e_base": 0.0, "regions.e_novel": 0.0}
    | {"detect.images": "NEW"},
  ),
  "no folder for crops": ("detect.images", {"detect.images": ""}),
  "no regions": ("regions.source", {"regions.source": "none"}),
  "no annotations": ("detect.annotations", {"detect.annotations": "no.json"}),
}
BAD_PROPOSE = {
  "a folder without a network": ("masks.safetensors", {"propose.network": "ROOT/clip"}),
  "no such network": ("propose.network", {"propose.network": "nothing"}),
  "no folder": ("detect.images", {"propose.images": "detect", "detect.images": ""}),
  "another CLIP": ("clip.model", {"clip.model": "world"}),
}
CASES = [
  pytest.param((job, *case), id=f"{job}-{name}")
  for job, cases in (
    *(("segment", cases) for cases in (BAD, BAD_SEGMENT)),
    *(("detect", cases) for cases in (BAD, BAD_DETECT)),
    ("propose", BAD_PROPOSE),
  )
  for name, case in cases.items()
]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_nothing_is_written(region_set, tmp_path, case):
  job, named, fields, *write = case
  for own in write:
    own(region_set, tmp_path)
  changes = {"regions.source": "none"} if job == "propose" else {}
  for field, value in fields.items():
    changes[field.replace("JOB", job)] = in_place(region_set, value, NEW=tmp_path)
  with pytest.raises(InputError) as caught:
    run_job(regions_config(region_set, job, **changes), tmp_path / "run")
  assert named in str(caught.value) and "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()
