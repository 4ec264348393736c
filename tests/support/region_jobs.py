"""Images, a CLIP and networks for the jobs that find, name and train regions; their configs."""

from collections.abc import Sequence
import dataclasses
import functools
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
from PIL import Image
import torch
from transformers import CLIPModel

from pomp_jax.clip import load_clip
from pomp_jax.clip.load import Clip
from pomp_jax.config import Settings, load_job, validate
from pomp_jax.rooms.regions.mask_former.weights import MaskFormerFile, write_mask_former
from tests.support.clips import write_random_clip
from tests.support.mask_params import TINY, random_params
from tests.support.mask_sets import write_objects
from tests.support.pixel_sets import segment_config, write_pixel_set
from tests.support.region_oracle import crop_feature, image_tower, text_features

NETWORK = dataclasses.replace(TINY, embedding=24)
CONTEXT = np.random.default_rng(5).normal(size=(4, 32)).astype(np.float32)
TRAINED = ("the cat", "sky")


def write_region_set(root: pathlib.Path) -> None:
  """Writes `clip/`, a pixel set with `objects.json`, another one in `other/`, and two networks.

  The networks are `net.pth`, which has a prompt inside, and `other.pth`.
  """
  write_random_clip(root / "clip")
  for seed, folder in enumerate((root, root / "other")):
    write_pixel_set(folder, str(root / "clip"), seed)
    write_objects(folder)
  (root / "other" / "names.txt").write_text("tree\nroad\nlake\nstar\n")
  write_network(root / "net.pth")
  write_network(root / "other.pth", seed=1)


def write_network(path, seed=0, config=NETWORK, context=CONTEXT, classes=TRAINED):
  """Writes a random network."""
  with open(path, "wb") as file:
    write_mask_former(file, MaskFormerFile(config, random_params(config, seed), classes), context)


@functools.cache
def _torch_clip() -> tuple[CLIPModel, Clip]:
  """The CLIP of `write_region_set` in torch, and as it is loaded."""
  with tempfile.TemporaryDirectory() as folder:
    return write_random_clip(pathlib.Path(folder)), load_clip(folder)


def torch_crop(image: np.ndarray, mask: np.ndarray) -> torch.Tensor:
  """Unit feature of a crop by the CLIP of `write_region_set`."""
  model, clip = _torch_clip()
  return crop_feature(image_tower(model), clip, image, mask)


def torch_texts(texts: Sequence[str]) -> torch.Tensor:
  """Unit features of texts by the CLIP of `write_region_set`."""
  return text_features(*_torch_clip(), texts)


def regions_config(root: pathlib.Path, job: str, **changes) -> Settings:
  """The config of `segment`, `detect` or `propose`, with true regions, for a `write_region_set`."""
  settings = {
    "job": job,
    "detect.source": "coco",
    "detect.annotations": str(root / "objects.json"),
    "detect.images": str(root / "images"),
    "detect.names": str(root / "names.txt"),
    "detect.prompts": ("a photo of a {}.", "{}!"),
    "detect.output": True,
    "propose.network": str(root / "net.pth"),
  }
  return segment_config(root, **settings | changes)


def in_place(root: pathlib.Path, value: Any) -> Any:
  """A value with the folder of a `write_region_set` for ROOT, and its other set's for OTHER."""
  if not isinstance(value, str):
    return value
  return value.replace("OTHER", str(root / "other")).replace("ROOT", str(root))


def run_job(config: Settings, workdir: pathlib.Path) -> dict[str, Any]:
  """Validates, checks and runs as the command line does."""
  validate(config)
  job = load_job(config.job)
  job.check(config, str(workdir))
  return job.run(config, str(workdir))


def label_maps(workdir: pathlib.Path, prompt: int = 0, n_classes: int = 4) -> list[np.ndarray]:
  """The label maps under a prompt that `segment` has written; -1 for no class."""
  files = sorted((workdir / "labels" / str(prompt)).glob("*.png"))
  maps = [np.asarray(Image.open(file)).astype(int) for file in files]
  return [np.where(labels < n_classes, labels, -1) for labels in maps]


def detections(workdir: pathlib.Path, prompt: int = 0) -> list[dict[str, Any]]:
  """The rows under a prompt that `detect` has written."""
  return json.loads((workdir / "detections" / f"{prompt}.json").read_text())


def assert_same_detections(
  found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]
) -> None:
  """Asserts that rows of results, in any order, have the same images, categories, boxes, scores."""
  key = lambda row: (row["image_id"], row["category_id"], *np.round(row["bbox"], 2))
  found, expected = sorted(found, key=key), sorted(expected, key=key)
  assert [key(row)[:2] for row in found] == [key(row)[:2] for row in expected]
  for field in ("bbox", "score"):
    numbers = [[row[field] for row in rows] for rows in (found, expected)]
    np.testing.assert_allclose(*numbers, atol=2e-3)
