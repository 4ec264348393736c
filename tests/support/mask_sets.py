"""A config of `train_masks` for the set of `pixel_sets.write_pixel_set`, and COCO JSON of it."""

import json
import pathlib

import numpy as np
from PIL import Image

from pomp_jax.config import Settings
from tests.support.pixel_sets import TEXTS
from tests.support.small_run import small_config


def train_masks_config(root: pathlib.Path, **changes) -> Settings:
  """Four steps of the small network on label images, with a CLIP in `clip/`."""
  settings = {
    "job": "train_masks",
    "clip.model": str(root / "clip"),
    "batch_size": 8,
    "steps": 4,
    "checkpoint.every": 2,
    "log.every": 1,
    "train_masks.source": "folder",
    "train_masks.images": str(root / "images"),
    "train_masks.labels": str(root / "labels"),
    "train_masks.names": str(root / "names.txt"),
    "train_masks.network": "small",
    "train_masks.size": 64,
    "train_masks.targets": 4,
    "train_masks.lr": 0.001,
  }
  return small_config(**settings | changes)


def write_objects(root: pathlib.Path) -> pathlib.Path:
  """Writes `objects.json`: each class of each label image as one object, as a polygon of its box.

  Later classes are drawn over earlier ones; of each image the first object is a crowd.
  """
  names = [names[0] for names in TEXTS]
  images, rows = [], []
  for number, file in enumerate(sorted((root / "labels").glob("*.png"))):
    labels = np.asarray(Image.open(file))
    height, width = labels.shape
    image = {"id": number, "file_name": file.name, "height": height, "width": width}
    images.append(image)
    for label in range(len(names)):
      ys, xs = np.nonzero(labels == label)
      if not len(xs):
        continue
      x0, y0, x1, y1 = (int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
      crowd = not any(row["image_id"] == number for row in rows)
      rows.append(
        {
          "id": len(rows) + 1,
          "image_id": number,
          "category_id": label,
          "bbox": [x0, y0, x1 - x0, y1 - y0],
          "area": (x1 - x0) * (y1 - y0),
          "iscrowd": int(crowd),
          "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        }
      )
  categories = [{"id": number, "name": name} for number, name in enumerate(names)]
  path = root / "objects.json"
  path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
  return path
