"""A small set of images with label images, names and regions, and a config of `segment` for it."""

import pathlib

import numpy as np
from PIL import Image

from pomp_jax.config import Settings
from pomp_jax.rooms.regions.files import RegionHeader, Regions, RegionWriter
from tests.support.small_run import small_config

NAMES = "the cat, dog\tbase\nsky\tbase\nstar\tnovel\nhouse, home of the star\tnovel\n"
# The same, class by class.
TEXTS = (("the cat", "dog"), ("sky",), ("star",), ("house", "home of the star"))
SIZES = ((40, 56), (33, 48), (48, 32), (40, 56), (36, 40))
WIDTH = 24  # of the embeddings


def write_pixel_set(root: pathlib.Path, clip_model: str, seed: int = 0) -> None:
  """Writes `images/`, `labels/` of 4 by 4 blocks, `names.txt`, and `regions/` with embeddings.

  Args:
    root: folder for all.
    clip_model: CLIP that the regions name.
    seed: random seed.
  """
  rng = np.random.default_rng(seed)
  for name in ("images", "labels"):
    (root / name).mkdir(parents=True)
  (root / "names.txt").write_text(NAMES)
  null = (1.0,) * WIDTH
  header = RegionHeader("a network", clip_model, 1, WIDTH, "softmax", 20.0, null, ("sky",))
  writer = RegionWriter(root / "regions", header)
  for number, (height, width) in enumerate(SIZES):
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(image).save(root / "images" / f"{number}.png")
    blocks = rng.choice([0, 1, 2, 3, 255], (4, 4)).astype(np.uint8)
    labels = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    labels.save(root / "labels" / f"{number}.png")
    boxes = np.tile(np.array([0, 0, width, height], np.float32), (6, 1))
    masks = np.kron(rng.integers(0, 256, (6, 3, 3)), np.ones((1, 4, 4))).astype(np.uint8)
    masks[0] = 40  # below the threshold everywhere
    embeddings = rng.normal(size=(6, 1, WIDTH)).astype(np.float16)
    objectness = rng.random(6).astype(np.float32)
    writer.write(str(number), Regions(boxes, objectness, masks, embeddings))


def segment_config(root: pathlib.Path, **changes) -> Settings:
  """The config of `segment` for a set of `write_pixel_set` with a CLIP in `clip/`."""
  settings = {
    "job": "segment",
    "clip.model": str(root / "clip"),
    "segment.source": "folder",
    "segment.images": str(root / "images"),
    "segment.labels": str(root / "labels"),
    "segment.names": str(root / "names.txt"),
    "segment.prompts": ("a photo of a {}.", "{}!"),
    "segment.output": True,
    "regions.source": "truth",
  }
  if changes.get("regions.source") == "file":
    settings["regions.path"] = str(root / "regions")
  return small_config(**settings | changes)
