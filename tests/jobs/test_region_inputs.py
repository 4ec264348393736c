"""Bad input of `segment`, `detect` and `propose` is one line, and nothing is written.

Each check that a job makes has a case here; the rooms of the readers have all that can be wrong.
"""

import json
import shutil

import numpy as np
from PIL import Image
import pytest
import torch

from pomp_jax.config import validate
from pomp_jax.errors import InputError
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.regions.files import RegionHeader, RegionWriter
from tests.support.mask_params import TINY
from tests.support.pixel_sets import SIZES
from tests.support.region_jobs import in_place, regions_config, run_job, write_network

FILE = {"regions.source": "file", "regions.path": "NEW/regions"}
NETWORK = {"regions.source": "network", "propose.network": "NEW/net.pth"}


def wide_prompt(root, folder):
  save_prompt(folder / "wide.npz", Prompt(np.zeros((2, 40), np.float32), "another", "end"))


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


without_masks = regions_with(lambda stored: {n: a for n, a in stored.items() if n != "masks"})


def network_with(**changes):
  return lambda root, folder: write_network(folder / "net.pth", **changes)


def network_of_another_clip(root, folder):
  stored = torch.load(root / "net.pth", weights_only=True)
  stored["model"]["clip_adapter.clip_model.ln_final.weight"] = torch.ones(32)
  torch.save(stored, folder / "net.pth")


def label_beyond_the_list(root, folder):
  (folder / "labels").mkdir()
  Image.fromarray(np.full(SIZES[0], 4, np.uint8)).save(folder / "labels" / "0.png")


def objects_with(part, **changes):
  """Writes annotations of which the third image or object has other fields, or lacks them."""

  def write(root, folder):
    value = json.loads((root / "objects.json").read_text())
    row = value[part][2] | changes
    value[part][2] = {field: own for field, own in row.items() if own is not None}
    (folder / "bad.json").write_text(json.dumps(value))

  return write


# Name -> what the message names, fields, and what is written before. JOB is the job, ROOT the set,
# NEW the folder of what is written.
BAD = {
  "a prompt of another width": ("wide.npz", {"JOB.prompts": "NEW/wide.npz"}, wide_prompt),
  "regions of another CLIP": ("clip_model", FILE, another_clip),
  "an image without regions": ("0.npz", FILE, no_regions),
  "a box outside": ("3.npz: a box", FILE, regions_with(lambda s: s | {"boxes": s["boxes"] + 50})),
  "no embeddings to compare": ("regions.alone", FILE | {"regions.alone": True}, no_regions),
  "no network to compare": ("regions.alone", {"regions.alone": True}),
  "a network of another width": ("clip.model", NETWORK, network_with(config=TINY)),
  "a network that is none": (
    "regions.json",
    NETWORK | {"propose.network": "ROOT/regions/regions.json"},
  ),
  "another CLIP in a network": ("clip_adapter.clip_model", NETWORK, network_of_another_clip),
  "a network without a prompt": (
    "net.pth",
    NETWORK | {"propose.prompt": "network"},
    network_with(context=None),
  ),
  "no network": ("propose.network", NETWORK | {"propose.network": ""}),
  "no network with a prompt": (
    "propose.network",
    {"propose.network": "", "JOB.prompts": "network"},
  ),
  "no prompt of the network": (
    "propose.prompt",
    NETWORK | {"propose.network": "ROOT/net.pth", "propose.prompt": "no.npz"},
  ),
  "two origins": ("regions.path", NETWORK | {"regions.path": "ROOT/regions"}),
}
SEGMENT = {
  "a label": ("0.png", {"segment.labels": "NEW/labels"}, label_beyond_the_list),
  "a list of classes": ("coco_stufff", {"segment.names": "coco_stufff"}),
  "a later image without masks": ("regions.path", FILE, without_masks),
}
OBJECTS = {"detect.annotations": "NEW/bad.json"}
DETECT = {
  "no image": ("no.png", OBJECTS, objects_with("images", file_name="no.png")),
  "an image's size": ("2.png", OBJECTS, objects_with("images", height=480)),
  "no mask": ("bad.json", OBJECTS, objects_with("annotations", segmentation=None)),
  "a later image without masks": ("regions.crop", FILE, without_masks),
  # Embeddings alone need no image, but the plot does.
  "no pictures for the plot": (
    ".png: no such image",
    {"regions.source": "file", "regions.e_base": 0.0, "regions.e_novel": 0.0}
    | {"detect.images": "NEW"},
  ),
  "no folder for crops": ("detect.images", {"detect.images": ""}),
  "no folder for a network": (
    "detect.images",
    NETWORK | {"propose.network": "ROOT/net.pth", "detect.images": ""},
  ),
  "no regions": ("regions.source", {"regions.source": "none"}),
  "no annotations": ("detect.annotations", {"detect.annotations": "no.json"}),
}
PROPOSE = {
  "a folder without a network": ("masks.pth", {"propose.network": "ROOT/clip"}),
  "no such network": ("propose.network", {"propose.network": "nothing"}),
  "no folder": ("detect.images", {"propose.images": "detect", "detect.images": ""}),
  "another CLIP": ("clip.model", {"clip.model": "world"}),
}
CASES = [
  pytest.param((job, *case), id=f"{job}-{name}")
  for job, cases in (
    *(("segment", cases) for cases in (BAD, SEGMENT)),
    *(("detect", cases) for cases in (BAD, DETECT)),
    ("propose", PROPOSE),
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
    value = value.replace("NEW", str(tmp_path)) if isinstance(value, str) else value
    changes[field.replace("JOB", job)] = in_place(region_set, value)
  with pytest.raises(InputError) as caught:
    run_job(regions_config(region_set, job, **changes), tmp_path / "run")
  assert named in str(caught.value) and "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_a_background_excludes_ids_without_it(region_set):
  """Its value is 0, which `reduce_zero_label` ignores: all classes would be one too low."""
  fields = {"segment.background": ("ground",), "segment.label_values": "reduce_zero_label"}
  with pytest.raises(InputError, match=r"segment\.label_values"):
    validate(regions_config(region_set, "segment", **fields))
