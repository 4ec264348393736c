"""Images, a CLIP and networks for the jobs that find, name and train regions; their
configs."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import pathlib
import tempfile
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
import numpy as np
from PIL import Image
import torch
from torch.nn import functional
from transformers import CLIPModel

from pomp_jax.clip.load import Clip, load_clip
from pomp_jax.config import Config
from pomp_jax.rooms.regions.mask_former.model import Params, parameter_shapes
from pomp_jax.rooms.regions.mask_former.published_weights import (
  MaskFormerFile,
  write_mask_former,
)
from pomp_jax.rooms.regions.mask_former.sizes import MaskFormerConfig, SmallSizes
from pomp_jax.rooms.regions.region_folder import RegionHeader, Regions, RegionWriter
from tests.support.clips import pooled, write_random_clip
from tests.support.small_run import small_config

TINY = MaskFormerConfig(
  embedding=12,
  backbone=SmallSizes((8, 8, 8, 16), groups=2),
  width=16,
  mask_width=8,
  groups=4,
  n_queries=5,
  n_layers=2,
  n_heads=2,
  mlp=16,
  embedding_mlp=8,
  dropout=0.5,
)
# Names of each class.
TEXTS = (("the cat", "dog"), ("sky",), ("star",), ("house", "home of the star"))
TRAINED = ("the cat", "sky")
SIZES = ((40, 56), (33, 48), (48, 32), (40, 56), (36, 40))
WIDTH = 24  # of the embeddings
NETWORK = dataclasses.replace(TINY, embedding=WIDTH)
CONTEXT = np.random.default_rng(5).normal(size=(4, 32)).astype(np.float32)


def write_region_set(root: pathlib.Path) -> None:
  """Writes `clip/`, a pixel set with `objects.json`, another one in `other/`, and two
  networks.

  The networks are `net.pth`, which has a prompt inside, and `other.pth`.
  """
  write_random_clip(root / "clip")
  for seed, folder in enumerate((root, root / "other")):
    write_pixel_set(folder, str(root / "clip"), seed)
    write_objects(folder)
  (root / "other" / "names.txt").write_text("tree\nroad\nlake\nstar\n")
  write_network(root / "net.pth")
  write_network(root / "other.pth", seed=1)


def write_pixel_set(root: pathlib.Path, clip_model: str, seed: int = 0) -> None:
  """Writes `images/`, `labels/` of 4 by 4 blocks, `names.txt`, and `regions/` with
  embeddings.

  The regions name `clip_model` as their CLIP.
  """
  rng = np.random.default_rng(seed)
  for name in ("images", "labels"):
    (root / name).mkdir(parents=True)
  lines = (
    "the cat, dog\tbase",
    "sky\tbase",
    "star\tnovel",
    "house, home of the star\tnovel",
  )
  (root / "names.txt").write_text("\n".join(lines))
  null = (1.0,) * WIDTH
  header = RegionHeader(
    "a network", clip_model, 1, WIDTH, "softmax", 20.0, null, ("sky",)
  )
  writer = RegionWriter(root / "regions", header)
  for number, (height, width) in enumerate(SIZES):
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(image).save(root / "images" / f"{number}.png")
    blocks = rng.choice([0, 1, 2, 3, 255], (4, 4)).astype(np.uint8)
    labels = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    labels.save(root / "labels" / f"{number}.png")
    boxes = np.tile(np.array([0, 0, width, height], np.float32), (6, 1))
    masks = np.kron(rng.integers(0, 256, (6, 3, 3)), np.ones((1, 4, 4))).astype(
      np.uint8
    )
    masks[0] = 40  # below the threshold everywhere
    embeddings = rng.normal(size=(6, 1, WIDTH)).astype(np.float16)
    objectness = rng.random(6).astype(np.float32)
    writer.write(str(number), Regions(boxes, objectness, masks, embeddings))


def write_objects(root: pathlib.Path) -> None:
  """Writes `objects.json`: each class of each label image as one object, as a polygon
  of its box.

  The first object of each image is a crowd.
  """
  images, rows = [], []
  for number, file in enumerate(sorted((root / "labels").glob("*.png"))):
    labels = np.asarray(Image.open(file))
    height, width = labels.shape
    images.append(
      {"id": number, "file_name": file.name, "height": height, "width": width}
    )
    for order, label in enumerate(np.intersect1d(labels, range(len(TEXTS))).tolist()):
      ys, xs = np.nonzero(labels == label)
      x0, y0, x1, y1 = (
        int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
      )
      row = {
        "id": len(rows) + 1,
        "image_id": number,
        "category_id": label,
        "iscrowd": order == 0,
      }
      row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
      rows.append(row | {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]})
  categories = [{"id": number, "name": names[0]} for number, names in enumerate(TEXTS)]
  value = {"images": images, "annotations": rows, "categories": categories}
  (root / "objects.json").write_text(json.dumps(value))


def random_params(config: MaskFormerConfig = TINY, seed: int = 0) -> Params:
  """Draws all parameters: scales about 1, vectors about 0, kernels by their fan-in."""
  rng = np.random.default_rng(seed)

  def draw(path, shape):
    values = rng.standard_normal(shape, np.float32)
    if path[-1] in ("scale", "var"):
      return 1 + 0.1 * np.abs(values)
    if path[-1] == "kernel":
      return values * np.float32((2 / np.prod(shape[:-1])) ** 0.5)
    return values if len(shape) > 1 else 0.1 * values

  flat = flatten_dict(parameter_shapes(config))
  return unflatten_dict(
    {path: draw(path, tuple(shape)) for path, shape in flat.items()}
  )


def write_network(path, seed=0, context=CONTEXT, classes=TRAINED, **changes):
  """Writes a random network; `changes` are those of `NETWORK`."""
  config = dataclasses.replace(NETWORK, **changes)
  with open(path, "wb") as file:
    write_mask_former(
      file, MaskFormerFile(config, random_params(config, seed), classes), context
    )


def regions_config(root: pathlib.Path, job: str, **changes) -> Config:
  """The config of a job for a `write_region_set`: with true regions, or four steps
  of training."""
  images, labels, names = (
    str(root / file) for file in ("images", "labels", "names.txt")
  )
  settings = {
    "job": job,
    "clip.model": str(root / "clip"),
    "detect.source": "coco",
    "detect.annotations": str(root / "objects.json"),
    "detect.images": images,
    "detect.names": names,
    "regions.source": "truth",
    "propose.network": str(root / "net.pth"),
    "train_masks.network": "small",
    "train_masks.size": 64,
    "train_masks.targets": 4,
    "train_masks.lr": 0.001,
    "batch_size": 8,
    "steps": 4,
    "checkpoint.every": 2,
    "log.every": 1,
  }
  for name in ("segment", "train_masks"):
    settings |= {
      f"{name}.images": images,
      f"{name}.labels": labels,
      f"{name}.names": names,
    }
    settings[f"{name}.source"] = "folder"
  for name in ("segment", "detect"):
    settings |= {f"{name}.prompts": ("a photo of a {}.", "{}!"), f"{name}.output": True}
  if changes.get("regions.source") == "file":
    settings["regions.path"] = str(root / "regions")
  return small_config(**settings | changes)


def in_place(root: pathlib.Path, value: Any, **folders: pathlib.Path) -> Any:
  """A text with paths: ROOT is that of a `write_region_set`, OTHER of its other set."""
  for name, folder in {"OTHER": root / "other", "ROOT": root, **folders}.items():
    value = value.replace(name, str(folder)) if isinstance(value, str) else value
  return value


def label_maps(workdir: pathlib.Path, prompt: int = 0) -> list[np.ndarray]:
  """The label maps under a prompt that `segment` has written; -1 for no class."""
  files = sorted((workdir / "labels" / str(prompt)).glob("*.png"))
  maps = [np.asarray(Image.open(file)).astype(int) for file in files]
  return [np.where(labels < len(TEXTS), labels, -1) for labels in maps]


def detections(workdir: pathlib.Path, prompt: int = 0) -> list[dict[str, Any]]:
  """The rows under a prompt that `detect` has written."""
  return json.loads((workdir / "detections" / f"{prompt}.json").read_text())


def assert_same_detections(
  found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]
) -> None:
  """Asserts that rows of results, in any order, have the same images, categories,
  boxes, scores."""
  key = lambda row: (row["image_id"], row["category_id"], *np.round(row["bbox"], 2))
  found, expected = sorted(found, key=key), sorted(expected, key=key)
  assert [key(row)[:2] for row in found] == [key(row)[:2] for row in expected]
  for field in ("bbox", "score"):
    numbers = [[row[field] for row in rows] for rows in (found, expected)]
    np.testing.assert_allclose(*numbers, atol=2e-3)


def crop_feature(
  encode: Callable[[torch.Tensor], torch.Tensor],
  clip: Clip,
  image: np.ndarray,
  mask: np.ndarray,
) -> torch.Tensor:
  """ZSSeg's crop of a mask [H,W] (not empty) out of an image [H,W,3], and its unit
  feature [E].

  `encode` is the image tower in torch. Size and normalisation of images are those of
  `clip`.
  """
  mean, std = (torch.tensor(values)[:, None, None] for values in (clip.mean, clip.std))
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
  pixels = torch.tensor(image[box].transpose(2, 0, 1)) / 255
  pixels = torch.where(torch.tensor(mask[box]), pixels, mean)
  size = (clip.image_size,) * 2
  crop = functional.interpolate(pixels[None].float(), size, mode="bicubic")
  with torch.no_grad():
    return functional.normalize(encode((crop - mean) / std))[0]


@functools.cache
def _torch_clip() -> tuple[CLIPModel, Clip]:
  """The CLIP of `write_region_set` in torch, and as it is loaded."""
  with tempfile.TemporaryDirectory() as folder:
    return write_random_clip(pathlib.Path(folder)), load_clip(folder)


def torch_crop(image: np.ndarray, mask: np.ndarray) -> torch.Tensor:
  """Unit feature [E] of a crop by the CLIP of `write_region_set`."""
  model, clip = _torch_clip()
  return crop_feature(
    lambda pixels: pooled(model.get_image_features(pixels)), clip, image, mask
  )


def torch_texts(texts: Sequence[str]) -> torch.Tensor:
  """Unit features [N,E] of whole texts by the CLIP of `write_region_set`."""
  model, clip = _torch_clip()
  tokens = clip.tokenizer(list(texts), return_tensors="pt", padding=True)
  with torch.no_grad():
    return functional.normalize(pooled(model.get_text_features(**tokens)))
