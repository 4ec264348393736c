"""Every field of `regions` and `segment`, and some of `detect`, reach what they name.

A row says which argument of which function becomes what. Figures, label maps or detections change
with it.
"""

import pytest

from pomp_jax import inputs
from pomp_jax.config import FIELDS
from pomp_jax.errors import InputError
from pomp_jax.inputs import pixel_sets, region_scorer, segmenter
from pomp_jax.jobs import detect, segment
from pomp_jax.regions.files import RegionFolder
from pomp_jax.regions.scores import Fusion
from tests.support.region_jobs import detections, in_place, label_maps, regions_config, run_job
from tests.support.spies import spy

FILE = {"regions.source": "file"}
CONTEXT = {"regions.crop": "context"}
PATCHES = {"regions.source": "none", "segment.size": 48, "segment.window": 32, "segment.stride": 16}
ONE = {"segment.n_images": 1}
NO_FOLDERS = {"segment.images": "", "segment.labels": "", "segment.names": ""}
WORLD = {"segment.source": "world"} | NO_FOLDERS
BACKGROUND = PATCHES | {"segment.background": "ground"}
UNSURE = BACKGROUND | {"segment.background_below": 0.9}
# Field -> another value or other fields, what both runs have beside the usual config, the
# `function.argument` that it reaches, and what this becomes (the value itself if not said).
SEGMENT = {
  "regions.source": ("file", {}, "open_regions.path", "ROOT/regions"),
  "regions.path": ("OTHER/regions", FILE, "open_regions.path"),
  "regions.max_regions": (2, FILE, "read.most"),
  "regions.mask_threshold": (0.8, FILE, "hard_masks.threshold"),
  "regions.crop": ("context", {}, "CropSettings.square", True),
  "regions.size": (64, FILE | {"regions.mask_threshold": 0.45}, "hard_masks.height", 64),
  "regions.expand": (1.7, CONTEXT, "CropSettings.expand"),
  "regions.e_base": (1.0, FILE, "region_scores.fusion", Fusion(1.0, 0.8, "drop")),
  "regions.e_novel": (0.0, FILE, "region_scores.fusion", Fusion(0.2, 0.0, "drop")),
  "regions.null": ("gate", FILE, "region_scores.fusion", Fusion(0.2, 0.8, "gate")),
  "regions.objectness": (True, FILE, "region_scores.objectness"),
  "regions.alone": (True, FILE, "results.labels", 6),
  "segment.source": (WORLD, ONE, "open_scenes.n_scenes", 1),
  "segment.images": ("OTHER/images", {}, "open_pixels.images"),
  "segment.labels": ("OTHER/labels", FILE, "open_pixels.labels"),
  "segment.names": ("OTHER/names.txt", {}, "results.classes", ("tree", "road", "lake", "star")),
  "segment.label_values": ("reduce_zero_label", {}, "open_pixels.values"),
  "segment.ignore": (254, {}, "open_pixels.ignore"),
  "segment.n_images": (2, {}, "results.images"),
  "segment.scene_classes": (480, WORLD | ONE, "open_scenes.n_classes"),
  "segment.prompts": ("the {}", {}, "class_matrix.prompt"),
  "segment.recipe": ("clip", PATCHES, "DenseSettings.recipe"),
  "segment.logit_scale": (1.0, FILE, "region_scores.logit_scale"),
  "segment.size": (64, PATCHES, "DenseSettings.size"),
  "segment.window": (16, PATCHES, "DenseSettings.window"),
  "segment.stride": (8, PATCHES, "DenseSettings.stride"),
  "segment.pamr": (3, PATCHES, "DenseSettings.pamr"),
  "segment.background": ("ground", PATCHES, "class_matrix.first", ("background", "ground")),
  "segment.background_below": (0.9, BACKGROUND, "DenseSettings.background_below"),
  "segment.output": (False, {}, "results.label_images", 2),
}
# With masked crops of true regions.
DETECT = {
  "regions.expand": (1.7, {}, "CropSettings.expand"),
  "regions.crop": ("context", {}, "CropSettings.square", True),
  "detect.logit_scale": (1.0, {}, "region_scores.logit_scale"),
  "detect.min_score": (0.6, {}, "select_detections.min_score"),
  "detect.nms": (0.1, {}, "select_detections.max_iou"),
  "detect.top": (1, {}, "select_detections.top"),
}
ROWS = [("segment", field, *row) for field, row in SEGMENT.items()]
ROWS += [("segment", "regions.expand", 1.7, FILE, "CropSettings.expand")]
ROWS += [("segment", "segment.logit_scale", 100.0, UNSURE, "DenseSettings.logit_scale")]
ROWS += [("detect", field, *row) for field, row in DETECT.items()]
SPIED = (
  *((inputs.regions, name) for name in ("open_regions", "hard_masks", "CropSettings")),
  *((region_scorer, name) for name in ("region_scores", "select_detections")),
  *((pixel_sets, name) for name in ("open_pixels", "open_scenes")),
  *((job, "class_matrix") for job in (segment, detect)),
  (segmenter, "DenseSettings"),
  (RegionFolder, "read"),
)


def test_each_field_has_a_row():
  groups = ("regions.", "segment.")
  assert sorted(SEGMENT) == sorted(field for field in FIELDS if field.startswith(groups))


@pytest.fixture(scope="module")
def outcome(region_set, tmp_path_factory):
  """A function: job, fields -> arguments by `function.argument`, and what the run leaves."""
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
      maps = [[labels.tolist() for labels in label_maps(workdir, number)] for number in range(6)]
      if "class_matrix.named" in seen:
        seen["class_matrix.prompt"] = seen["class_matrix.named"].prompt
        seen["class_matrix.first"] = seen["class_matrix.synonyms"][0]
      seen["results.labels"], seen["results.images"] = len(results["prompts"]), results["images"]
      seen["results.classes"] = tuple(results["classes"])
      seen["results.label_images"] = sum(map(len, maps))
      rows = detections(workdir) if job == "detect" else None
      found[key] = dict(seen), (repr(results["figures"]), maps, rows)
    return found[key]

  with pytest.MonkeyPatch.context() as patch:
    seen = spy(patch, SPIED)
    for job in (segment, detect):
      patch.setattr(job, "_SHOWN", 1)
      patch.setattr(job, "_write_report", lambda *given: None)
    yield run


@pytest.mark.parametrize(
  "row", [pytest.param(row, id=f"{row[0]}-{row[1]}-{row[4]}") for row in ROWS]
)
def test_a_field_changes_what_it_names(outcome, region_set, row):
  job, field, value, beside, argument, *becomes = row
  value = in_place(region_set, value)
  beside = {name: in_place(region_set, own) for name, own in beside.items()}
  before, left = outcome(job, beside)
  after, leaves = outcome(job, beside | (value if isinstance(value, dict) else {field: value}))
  (expected,) = [in_place(region_set, own) for own in becomes] or [value]
  assert after[argument] == expected != before.get(argument)
  assert not isinstance(left, str), left
  # A value of the labels that is no longer ignored is refused.
  assert not isinstance(leaves, str) or field == "segment.ignore", leaves
  assert left != leaves
