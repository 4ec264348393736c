"""Average precision of detections, as COCO and LVIS define it, by faster-coco-eval."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Int
import numpy as np

from pomp_jax.rooms.regions.annotations import FREQUENCIES, Annotations
from pomp_jax.rooms.regions.detections import MAX_DETECTIONS

# evaluated at a time: the library holds an entry for each and each image
_CATEGORIES = 100
_KINDS = {"box": "bbox", "mask": "segm"}


def average_precision(
  annotations: Annotations,
  results: Sequence[Mapping[str, Any]],
  kind: str = "box",
  groups: Mapping[str, Int[np.ndarray, " n"]] | None = None,
) -> dict[str, Any]:
  """Computes average precision over IoU thresholds 0.50, 0.55, .., 0.95.

  COCO: AP, AP50, AP75, and APs, APm, APl by the object's area (below 32^2 and 96^2
  pixels). LVIS (annotations with frequencies): the same, and APr, APc, APf of rare,
  common and frequent classes. On an image, only classes that are known to be present or
  absent count, unmatched detections of classes that are not exhaustively annotated are
  ignored, and 300 detections count in all.

  Compares boxes or masks (`kind`) of the `result_rows` of all images. Returns fractions
  of 1, None where no object is annotated; `per_class`, the AP of each of the C classes;
  under the name of each group of classes, such as base and novel, its AP and AP50. To
  compare masks, each detection must have one; RegionError if an object has none.
  """
  # [thresholds, recalls, categories, areas]; -1 where no object is annotated.
  precision = _precision(annotations, results, kind)
  ids = annotations.category_ids.tolist()
  row_of = {number: row for row, number in enumerate(sorted(n for n in ids if n >= 0))}
  rows_C = np.array([row_of.get(number, -1) for number in ids])
  figures: dict[str, Any] = _averages(precision, np.arange(precision.shape[2]))
  figures |= {f"AP{area}": _mean(precision[..., n]) for n, area in enumerate("sml", 1)}
  frequencies = annotations.frequencies or ()
  for frequency in FREQUENCIES if frequencies else ():
    members = np.array([own == frequency for own in frequencies])
    figures[f"AP{frequency}"] = _mean(precision[:, :, rows_C[members], 0])
  for name, classes in (groups or {}).items():
    rows = rows_C[classes]
    figures[name] = {
      k: v for k, v in _averages(precision, rows[rows >= 0]).items() if k != "AP75"
    }
  figures["per_class"] = [
    _mean(precision[:, :, row, 0]) if row >= 0 else None for row in rows_C.tolist()
  ]
  return figures


def _precision(
  annotations: Annotations, results: Sequence[Mapping[str, Any]], kind: str
) -> np.ndarray:
  """Precision of the categories in ascending order of their ids."""
  lvis = annotations.frequencies is not None
  most = MAX_DETECTIONS["lvis" if lvis else "coco"]
  of_category: dict[int, list[Mapping[str, Any]]] = {}
  if lvis:
    # The highest scores of each image; of equal ones the first.
    best = sorted(results, key=lambda row: (row["image_id"], -row["score"]))
    of_images = itertools.groupby(best, lambda row: row["image_id"])
    results = [row for _, rows in of_images for row in [*rows][:most]]
  for row in results:
    of_category.setdefault(row["category_id"], []).append(row)
  value = _ground_truth(annotations, kind)
  ids = sorted(category["id"] for category in value["categories"])
  truth = COCO(value)
  # The library takes a detection's area from what is left in its row.
  unread = "segmentation" if kind == "box" else "bbox"
  parts = []
  for start in range(0, len(ids), _CATEGORIES):
    part = ids[start : start + _CATEGORIES]
    own = [row for number in part for row in of_category.get(number, ())]
    found = [{k: v for k, v in row.items() if k != unread} for row in own]
    detected = truth.loadRes(found) if found else COCO(value | {"annotations": []})
    silent = lambda *_: None  # takes the library's progress lines
    evaluation = COCOeval_faster(
      truth, detected, _KINDS[kind], lvis_style=lvis, print_function=silent
    )
    evaluation.params.maxDets = [most] if lvis else [1, 10, most]
    evaluation.params.catIds = part
    evaluation.evaluate()
    evaluation.accumulate()
    parts.append(np.asarray(evaluation.eval["precision"])[..., -1])
  return np.concatenate(parts, axis=2)


def _averages(precision: np.ndarray, rows: np.ndarray) -> dict[str, float | None]:
  own = precision[:, :, rows, 0]
  return {"AP": _mean(own), "AP50": _mean(own[0]), "AP75": _mean(own[5])}


def _mean(precision: np.ndarray) -> float | None:
  measured = precision[precision > -1]
  return float(measured.mean()) if measured.size else None


def _ground_truth(annotations: Annotations, kind: str) -> dict[str, Any]:
  """The data set in the form that faster-coco-eval reads and writes to."""
  rows: list[dict[str, Any]] = []
  for index, image in enumerate(annotations.images):
    for row in annotations.rows[index]:
      area = row.get("area", row["bbox"][2] * row["bbox"][3])
      own = {
        "id": len(rows) + 1,
        "image_id": image.id,
        "category_id": row["category_id"],
      }
      own |= {"bbox": row["bbox"], "area": area, "iscrowd": int(row.get("iscrowd", 0))}
      if kind == "mask":
        own["segmentation"] = annotations.run_lengths_of(index, row)
      rows.append(own)
  ids, names = annotations.category_ids.tolist(), annotations.names
  frequencies = annotations.frequencies or ("",) * len(names)
  categories = [
    {"id": number, "name": name, "frequency": frequency}
    for number, name, frequency in zip(ids, names, frequencies, strict=True)
    if number >= 0
  ]
  images = [image._asdict() for image in annotations.images]
  return {"images": images, "annotations": rows, "categories": categories}
