"""Each field of `predict`, and of the groups that its tasks read, changes what it names."""

import json
import shutil

import numpy as np
import pytest

from pomp_jax.config import FIELDS
from tests.support.pictures import (
  open_encoders_once,
  predict_config,
  read_map,
  run_predict,
  write_network,
  write_pictures,
)

SEGMENT, DETECT = {"predict.task": "segment"}, {"predict.task": "detect"}
PATCHES = SEGMENT | {"segment.size": 48, "segment.window": 32, "segment.stride": 16}
FILE = {"regions.source": "file", "regions.path": "ROOT/regions"}
PIXELS, OBJECTS = SEGMENT | FILE, DETECT | FILE
NETWORK = DETECT | {
  "propose.network": "ROOT/run",
  "regions.objectness": True,
}
# Field -> another value, alone or with fields that it needs, and what both runs have beside the
# usual config.
CHANGES = {
  "predict.task": ("detect", FILE),
  "predict.prompt": ("the {}", {}),
  "predict.images": ("ROOT/images/3.png", {}),
  "predict.names": ("ROOT/other.txt", {}),
  "predict.top": (2, {}),
  "segment.recipe": ("clip", PATCHES),
  "segment.size": (64, PATCHES),
  "segment.window": (16, PATCHES),
  "segment.stride": (8, PATCHES),
  "segment.pamr": (3, PATCHES),
  "segment.logit_scale": (1.0, PATCHES),
  "segment.background": ("ground;earth", PATCHES),
  "segment.background_below": (0.9, PATCHES | {"segment.background": "ground"}),
  "detect.min_score": (0.3, OBJECTS),
  "detect.nms": (0.99, NETWORK),
  "detect.top": (3, OBJECTS),
  "detect.logit_scale": (1.0, OBJECTS),
  "regions.source": (FILE, SEGMENT),
  "regions.path": ("ROOT/other/regions", OBJECTS),
  "regions.max_regions": (2, PIXELS),
  "regions.mask_threshold": (0.8, OBJECTS),
  "regions.crop": ("context", OBJECTS),
  "regions.size": (24, OBJECTS),
  "regions.expand": (1.7, NETWORK | {"regions.crop": "context"}),
  "regions.e_base": (1.0, PIXELS),
  "regions.e_novel": (0.0, PIXELS),
  "regions.null": ("gate", OBJECTS),
  "regions.objectness": (True, OBJECTS),
  "propose.network": ("ROOT/other.pth", NETWORK),
  "propose.prompt": ("the {}!", NETWORK),
  "propose.size": (64, NETWORK),
  "propose.stride": (1, NETWORK),
}
# Of no effect: `batch_size` is of speed alone, and the others are of data sets.
OTHERS = (
  *("segment.source", "segment.images", "segment.labels", "segment.names", "segment.prompts"),
  *(
    "segment.label_values",
    "segment.ignore",
    "segment.n_images",
    "segment.output",
    "segment.scene_classes",
  ),
  *("detect.source", "detect.annotations", "detect.images", "detect.names", "detect.synonyms"),
  *("detect.n_images", "detect.prompts", "detect.output", "detect.scene_classes"),
  *("regions.alone", "propose.images", "propose.batch_size"),
)


def test_each_field_has_a_row():
  groups = ("predict.", "segment.", "detect.", "regions.", "propose.")
  assert sorted([*CHANGES, *OTHERS]) == sorted(f for f in FIELDS if f.startswith(groups))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
  """A function: fields -> results, detections and label images."""
  root = tmp_path_factory.mktemp("fields")
  write_pictures(root)
  write_network(root / "other.pth", 2)
  (root / "other.txt").write_text("tree\nroad\nlake\nstar\n")
  shutil.copytree(root / "regions", root / "other" / "regions")
  shutil.copy(root / "regions" / "0.npz", root / "other" / "regions" / "3.npz")
  found = {}

  def run(changes):
    key = repr(sorted(changes.items()))
    if key not in found:
      workdir = tmp_path_factory.mktemp("run")
      own = {
        field: value.replace("ROOT", str(root)) if isinstance(value, str) else value
        for field, value in changes.items()
      }
      # Two pictures, of different sizes.
      images = root / "two"
      if not images.exists():
        images.mkdir()
        for name in ("0.png", "3.png"):
          shutil.copy(root / "images" / name, images / name)
      results = run_predict(predict_config(root, **{"predict.images": str(images)} | own), workdir)
      file = workdir / "detections.json"
      detections = json.loads(file.read_text()) if file.exists() else None
      maps = [read_map(file).tolist() for file in sorted(workdir.rglob("labels/**/*.png"))]
      shutil.rmtree(workdir)
      found[key] = results["images"], detections, maps
    return found[key]

  with pytest.MonkeyPatch.context() as patch:
    open_encoders_once(patch)
    yield run


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_changes_what_it_names(outcome, field):
  value, beside = CHANGES[field]
  change = value if isinstance(value, dict) else {field: value}
  assert outcome(beside) != outcome(beside | change)


def test_pictures_together_change_nothing(outcome):
  one, other = outcome(NETWORK), outcome(NETWORK | {"propose.batch_size": 1})
  for ours, theirs in zip(one[1], other[1], strict=True):
    assert (ours["name"], ours["file"]) == (theirs["name"], theirs["file"])
    np.testing.assert_allclose(ours["score"], theirs["score"], atol=1e-3)
