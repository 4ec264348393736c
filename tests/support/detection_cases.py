"""Random annotations in COCO's and LVIS's form, and detections near them."""

import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools import mask as pycoco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HEIGHT, WIDTH = 150, 170
IOU_TYPES = {"box": "bbox", "mask": "segm"}


def random_annotations(
  seed: int, n_images: int = 6, n_classes: int = 6, lvis: bool = False
) -> dict[str, Any]:
  """Draws boxes of all sizes; every second object is an ellipse, and some are
  crowds."""
  rng = np.random.default_rng(seed)
  ids = rng.permutation(3 * n_classes)[:n_classes] + 1
  categories = [
    {"id": int(number), "name": f"thing {i}"} for i, number in enumerate(ids)
  ]
  images, rows = [], []
  for i in range(n_images):
    image = {"id": 7 * i + 3, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH}
    images.append(image)
    present = rng.choice(ids, rng.integers(1, n_classes), replace=False)
    for _ in range(rng.integers(1, 9)):
      side = rng.choice([15, 60, 130], p=[0.4, 0.4, 0.2]) * rng.uniform(0.7, 1, 2)
      corner = rng.uniform(0, [WIDTH, HEIGHT] - side)
      row = {
        "id": len(rows) + 1,
        "image_id": image["id"],
        "category_id": int(rng.choice(present)),
      }
      row["bbox"] = [*corner.tolist(), *side.tolist()]
      row["segmentation"] = polygon(corner, side, 4 if rng.random() < 0.5 else 24)
      row["area"] = float(side.prod()) * rng.uniform(0.5, 1)
      row["iscrowd"] = 0 if lvis else int(rng.random() < 0.15)
      rows.append(row)
    if lvis:
      absent = [int(n) for n in ids if n not in present]
      image["neg_category_ids"] = [n for n in absent if rng.random() < 0.6]
      image["not_exhaustive_category_ids"] = [
        int(n) for n in present if rng.random() < 0.4
      ]
  for i, category in enumerate(categories if lvis else ()):
    category |= {"frequency": "rcf"[i % 3], "synonyms": [category["name"]]}
  return {"images": images, "annotations": rows, "categories": categories}


def polygon(corner: np.ndarray, side: np.ndarray, corners: int) -> list[list[float]]:
  """A rectangle (4 corners) or an ellipse in a box."""
  angle = np.arange(corners) * 2 * np.pi / corners + np.pi / 4
  reach = np.sqrt(2) if corners == 4 else 1.0
  points = (
    corner
    + side / 2
    + reach * side / 2 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  )
  return [points.ravel().tolist()]


def random_detections(
  value: dict[str, Any], seed: int, n_random: int = 10
) -> list[dict[str, Any]]:
  """Draws moved, doubled, mislabelled and unrelated boxes, with masks; many scores
  are equal."""
  rng = np.random.default_rng(seed)
  ids = [category["id"] for category in value["categories"]]
  size_of = {
    image["id"]: (image["height"], image["width"]) for image in value["images"]
  }
  found = []

  def add(image_id: int, category: int, box: np.ndarray) -> None:
    height, width = size_of[image_id]
    corner = np.clip(box[:2], 0, [width - 2, height - 2])
    side = np.minimum(box[2:], [width, height] - corner)
    shape = polygon(corner, side, 4 if rng.random() < 0.5 else 24)
    rle = pycoco_mask.merge(pycoco_mask.frPyObjects(shape, height, width))
    rle["counts"] = rle["counts"].decode()
    row = {
      "image_id": image_id,
      "category_id": category,
      "score": round(rng.random(), 1),
    }
    found.append(
      row | {"bbox": [*corner.tolist(), *side.tolist()], "segmentation": rle}
    )

  for row in value["annotations"]:
    for _ in range(rng.integers(0, 3)):
      category = row["category_id"] if rng.random() < 0.8 else int(rng.choice(ids))
      moved = np.array(row["bbox"]) + rng.normal(0, 0.06, 4) * np.tile(
        row["bbox"][2:], 2
      )
      add(row["image_id"], category, np.maximum(moved, [0, 0, 2, 2]))
  for image in value["images"]:
    for _ in range(n_random):
      add(
        image["id"], int(rng.choice(ids)), rng.uniform([0, 0, 5, 5], [100, 100, 60, 60])
      )
  order = rng.permutation(len(found))
  return [found[i] for i in order]


def only(results: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
  """Copies of results that hold only boxes or only masks, as detectron2 passes them
  on."""
  rows = copy.deepcopy(results)
  for row in rows:
    del row["segmentation" if kind == "box" else "bbox"]
  return rows


def pycoco(value, results, kind):
  """pycocotools' evaluation: figures, and precision [thresholds, recalls,
  categories]."""
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO()
    truth.dataset = copy.deepcopy(value)
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(only(results, kind)), IOU_TYPES[kind])
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
  figures = dict(zip(names, evaluation.stats[:6], strict=True))
  return figures, evaluation.eval["precision"][:, :, :, 0, -1], evaluation.params.catIds
