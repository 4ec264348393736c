"""A user's pictures, names and a network for the tasks of `predict`, on a small random CLIP."""

import dataclasses
import pathlib

import numpy as np
from PIL import Image

from pomp_jax.config import Settings, validate
from pomp_jax.evaluate import predict
from pomp_jax.rooms.regions.mask_former.weights import MaskFormerFile, write_mask_former
from tests.support.clips import write_random_clip
from tests.support.mask_params import TINY, random_params
from tests.support.mask_sets import write_objects
from tests.support.pixel_sets import write_pixel_set
from tests.support.small_run import small_config

NAMES = ("the cat", "sky", "star", "house")


def write_pictures(root: pathlib.Path) -> None:
  """Writes `clip/`, `images/` with labels, `regions/`, `list.txt`, `run/masks.safetensors`."""
  write_random_clip(root / "clip")
  write_pixel_set(root, str(root / "clip"))
  write_objects(root)
  (root / "list.txt").write_text("\n".join(NAMES))
  (root / "run").mkdir()
  write_network(root / "run" / "masks.safetensors", 1)


def write_network(path: pathlib.Path, seed: int, embedding: int = 24) -> None:
  """Writes a random network that knows two classes."""
  config = dataclasses.replace(TINY, embedding=embedding, n_queries=12, dropout=0.0)
  params = random_params(config, seed)
  with open(path, "wb") as file:
    write_mask_former(file, MaskFormerFile(config, params, ("the cat", "sky")))


def predict_config(root: pathlib.Path, **changes) -> Settings:
  """The config of `predict` for what `write_pictures` wrote."""
  settings = {
    "job": "predict",
    "clip.model": str(root / "clip"),
    "predict.images": str(root / "images"),
    "predict.names": str(root / "list.txt"),
    "predict.prompt": "a photo of a {}.",
    "detect.min_score": 0.0,
  }
  return small_config(**settings | changes)


def run_predict(config: Settings, workdir: pathlib.Path) -> dict:
  """Validates, checks and runs."""
  validate(config)
  predict.check(config, str(workdir))
  return predict.run(config, str(workdir))


def read_map(path: pathlib.Path) -> np.ndarray:
  """Values of a label image."""
  return np.asarray(Image.open(path))
