"""Roots of the tables of regions: mocked data of the true layout, and a random CLIP."""

import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.rooms.regions.class_splits import ClassSplit, read_class_split
from pomp_jax.rooms.regions.region_folder import RegionHeader, Regions, RegionWriter
from tests.support.clips import write_random_clip

WIDTH = 24  # of the random CLIP's embedding
SIDE = 24  # pixels of an image
IMAGES = 4  # of a data set
# Names and values of the label images, as the packaged configs say.
_PIXELS = {
  "coco_stuff_156": ("coco_stuff", "listed"),
  "voc_15": ("voc", "reduce_zero_label"),
  "ade20k": ("ade20k:lines", "reduce_zero_label"),
  "pascal_context": ("pascal_context", "index"),
}


def write_clip(root: pathlib.Path) -> str:
  """Writes a random CLIP whose text tower takes long lines."""
  write_random_clip(root, positions=200)
  return str(root)


def write_segmentation(root: pathlib.Path, clip: str, *data: str) -> None:
  """Writes data sets of tables 4, 5 and 13 with regions of each row.

  Args:
    root: folder of the data sets.
    clip: folder of the CLIP.
    data: names of packaged configs.
  """
  for number, name in enumerate(data):
    rng = np.random.default_rng(number)
    classes = read_class_split(_PIXELS[name][0])
    for index in range(IMAGES):
      _write_labels(root / name, str(index), classes, _PIXELS[name][1], rng)
    table = "4" if "156" in name or "voc" in name else "5"
    folders = [f"table{table}_zsseg", f"table{table}_pomp"]
    if table == "5":
      folders.append("table13")
    for folder in folders:
      _write_row(root / name / folder, clip, range(IMAGES), True, rng)
      context_MxD = rng.normal(size=(4, 32)).astype(np.float32)
      save_prompt(root / name / folder / "prompt.npz", Prompt(context_MxD, clip))


def _write_labels(
  root: pathlib.Path,
  key: str,
  classes: ClassSplit,
  values: str,
  rng: np.random.Generator,
) -> None:
  for folder in ("images", "labels"):
    (root / folder).mkdir(parents=True, exist_ok=True)
  pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
  Image.fromarray(pixels).save(root / "images" / f"{key}.png")
  label_QxQ = rng.integers(0, len(classes.names), (3, 3))
  if values == "listed":
    assert classes.values is not None
    own = np.array([of_class[0] for of_class in classes.values])
    label_QxQ = own[label_QxQ]
  elif values == "reduce_zero_label":
    label_QxQ = label_QxQ + 1
  labels = np.kron(label_QxQ, np.ones((8, 8), int)).astype(np.uint8)
  Image.fromarray(labels).save(root / "labels" / f"{key}.png")


def _write_row(
  folder: pathlib.Path,
  clip: str,
  keys: Any,
  masks: bool,
  rng: np.random.Generator,
) -> None:
  """Writes `regions/` with embeddings: four quarters of each image."""
  folder.mkdir(parents=True)
  null = tuple(rng.normal(size=WIDTH).tolist())
  header = RegionHeader("a network", clip, 1, WIDTH, "softmax", 20.0, null, ())
  writer = RegionWriter(folder / "regions", header)
  half = SIDE // 2
  for key in keys:
    boxes = [[x, y, x + half, y + half] for x in (0, half) for y in (0, half)]
    embeddings = rng.normal(size=(4, 1, WIDTH)).astype(np.float16)
    drawn = None
    if masks:
      drawn = np.zeros((4, SIDE, SIDE), np.uint8)
      for row, (x0, y0, x1, y1) in enumerate(boxes):
        drawn[row, y0:y1, x0:x1] = 255
    objectness = rng.random(4).astype(np.float32)
    regions = Regions(np.array(boxes, np.float32), objectness, drawn, embeddings)
    writer.write(key if masks and isinstance(key, str) else str(key), regions)


def write_detection(
  root: pathlib.Path, clip: str, data: str, folders: tuple[str, ...], masks: bool
) -> None:
  """Writes a data set of tables 6 and 7 with regions and class vectors of each row.

  Args:
    root: folder of the data sets.
    clip: folder of the CLIP.
    data: name of a packaged config.
    folders: of the rows.
    masks: whether objects and regions have masks.
  """
  rng = np.random.default_rng(0)
  (root / data).mkdir(parents=True)
  if data == "coco_65":
    names = read_class_split("coco").names
  else:
    names = tuple(f"kind {letter}" for letter in "abcdef")
  content = _annotations(names, data == "lvis", masks, rng)
  (root / data / "annotations.json").write_text(json.dumps(content))
  for folder in folders:
    _write_row(root / data / folder, clip, range(1, IMAGES + 1), masks, rng)
    features_CxE = rng.normal(size=(len(names), WIDTH)).astype(np.float32)
    features_CxE /= np.linalg.norm(features_CxE, axis=1, keepdims=True)
    np.save(root / data / folder / "classes.npy", features_CxE)


def _annotations(
  names: tuple[str, ...], lvis: bool, masks: bool, rng: np.random.Generator
) -> dict[str, Any]:
  """COCO's or LVIS's JSON: two objects an image."""
  categories: list[dict[str, Any]] = []
  for number, name in enumerate(names):
    category: dict[str, Any] = {"id": number + 1, "name": name}
    if lvis:
      category |= {"frequency": "rcf"[number % 3], "synonyms": [name]}
    categories.append(category)
  images: list[dict[str, Any]] = []
  rows: list[dict[str, Any]] = []
  for image in range(1, IMAGES + 1):
    entry = {"id": image, "file_name": f"{image}.jpg", "height": SIDE, "width": SIDE}
    if lvis:
      entry |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    images.append(entry)
    for corner in (0, SIDE // 2):
      label = int(rng.integers(len(names)))
      side = SIDE // 2
      row = {"id": len(rows) + 1, "image_id": image, "category_id": label + 1}
      row |= {"bbox": [corner, corner, side, side], "area": side * side, "iscrowd": 0}
      if masks:
        end = corner + side
        polygon = [corner, corner, end, corner, end, end, corner, end]
        row["segmentation"] = [polygon]
      rows.append(row)
  return {"images": images, "annotations": rows, "categories": categories}
