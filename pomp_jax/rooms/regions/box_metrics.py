"""Average precision of detections, as COCO and LVIS define it, by faster-coco-eval."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Int
import numpy as np

from pomp_jax.rooms.regions.annotations import FREQUENCIES, Annotations
from pomp_jax.rooms.regions.detections import MAX_DETECTIONS

# Categories that are evaluated at a time: the library holds an entry for each pair of a
# category and an image.
_CATEGORIES = 100
_KINDS = {"box": "bbox", "mask": "segm"}


def average_precision(
  annotations: Annotations,
  results: Sequence[Mapping[str, Any]],
  kind: str = "box",
  groups: Mapping[str, Int[np.ndarray, " n"]] | None = None,
) -> dict[str, Any]:
  """Computes average precision over IoU thresholds 0.50, 0.55, .., 0.95.

  COCO has AP, AP50, AP75, and APs, APm, APl of objects with areas up to 32^2 pixels, up
  to 96^2 pixels, and above. LVIS (annotations with frequencies) adds APr, APc, APf of
  rare, common and frequent classes. An image of LVIS evaluates only the classes that
  are known to be present or absent, ignores unmatched detections of classes that are
  not exhaustively annotated, and counts 300 detections in all.

  Args:
    annotations: true objects of all images.
    results: `result_rows` of all images, each with a mask if masks are compared.
    kind: what is compared, "box" or "mask".
    groups: numbers of the classes in each group, such as base and novel.

  Returns:
    Figures by name, as fractions of 1, or None if no object is annotated. `per_class`
    lists the AP of the C classes. The name of a group has the AP and AP50 of the group.

  Raises:
    RegionError: masks are compared, and an object has none.
  """
  # [thresholds, recalls, categories, areas]; -1 where no object is annotated.
  precision = _precision(annotations, results, kind)
  rows_C = _rows_of_classes(annotations)
  every_row = np.arange(precision.shape[2])
  figures: dict[str, Any] = _averages(precision, every_row)
  # Index 0 is any area.
  for area, name in enumerate(("APs", "APm", "APl"), 1):
    figures[name] = _mean(precision[..., area])
  if annotations.frequencies:
    for frequency in FREQUENCIES:
      members = np.array([own == frequency for own in annotations.frequencies])
      figures[f"AP{frequency}"] = _mean(precision[:, :, rows_C[members], 0])
  for name, classes in (groups or {}).items():
    rows = rows_C[classes]
    averages = _averages(precision, rows[rows >= 0])
    figures[name] = {"AP": averages["AP"], "AP50": averages["AP50"]}
  figures["per_class"] = [
    _mean(precision[:, :, row, 0]) if row >= 0 else None for row in rows_C.tolist()
  ]
  return figures


def _rows_of_classes(annotations: Annotations) -> np.ndarray:
  """Index of each class among the categories of `_precision`; -1 for no category."""
  ids = annotations.category_ids.tolist()
  known = sorted(number for number in ids if number >= 0)
  row_of_id = {number: row for row, number in enumerate(known)}
  return np.array([row_of_id.get(number, -1) for number in ids])


def _precision(
  annotations: Annotations, results: Sequence[Mapping[str, Any]], kind: str
) -> np.ndarray:
  """Precision [thresholds, recalls, categories, areas]; categories by ascending id."""
  is_lvis = annotations.frequencies is not None
  most = MAX_DETECTIONS["lvis" if is_lvis else "coco"]
  if is_lvis:
    results = _best_of_images(results, most)
  # The library computes a detection's area from its box or its mask. Drop the one that
  # is not compared, so that the area is that of the other.
  unread = "segmentation" if kind == "box" else "bbox"
  by_category: dict[int, list[Mapping[str, Any]]] = {}
  for row in results:
    kept = {key: value for key, value in row.items() if key != unread}
    by_category.setdefault(row["category_id"], []).append(kept)
  content = _ground_truth(annotations, kind)
  truth = COCO(content)
  ids = sorted(category["id"] for category in content["categories"])
  parts = []
  for start in range(0, len(ids), _CATEGORIES):
    part = ids[start : start + _CATEGORIES]
    rows = [row for number in part for row in by_category.get(number, ())]
    detected = truth.loadRes(rows) if rows else COCO(content | {"annotations": []})
    evaluation = COCOeval_faster(
      truth,
      detected,
      _KINDS[kind],
      lvis_style=is_lvis,
      print_function=lambda *_: None,  # drops the library's progress lines
    )
    evaluation.params.maxDets = [most] if is_lvis else [1, 10, most]
    evaluation.params.catIds = part
    evaluation.evaluate()
    evaluation.accumulate()
    parts.append(np.asarray(evaluation.eval["precision"])[..., -1])
  return np.concatenate(parts, axis=2)


def _best_of_images(
  results: Sequence[Mapping[str, Any]], most: int
) -> list[Mapping[str, Any]]:
  """The `most` detections of the highest scores on each image.

  Of detections with equal scores the first are kept.
  """
  ordered = sorted(results, key=lambda row: (row["image_id"], -row["score"]))
  best: list[Mapping[str, Any]] = []
  for _, rows in itertools.groupby(ordered, lambda row: row["image_id"]):
    best += itertools.islice(rows, most)
  return best


def _averages(precision: np.ndarray, rows: np.ndarray) -> dict[str, float | None]:
  """AP over all thresholds, at IoU 0.50 and at 0.75, for objects of any area."""
  of_any_area = precision[:, :, rows, 0]
  return {
    "AP": _mean(of_any_area),
    "AP50": _mean(of_any_area[0]),
    "AP75": _mean(of_any_area[5]),
  }


def _mean(precision: np.ndarray) -> float | None:
  measured = precision[precision > -1]
  return float(measured.mean()) if measured.size else None


def _ground_truth(annotations: Annotations, kind: str) -> dict[str, Any]:
  """Copies the annotations in COCO's form, because faster-coco-eval changes them."""
  objects: list[dict[str, Any]] = []
  for index, image in enumerate(annotations.images):
    for row in annotations.rows[index]:
      _, _, width, height = row["bbox"]
      entry = {
        "id": len(objects) + 1,
        "image_id": image.id,
        "category_id": row["category_id"],
        "bbox": row["bbox"],
        "area": row.get("area", width * height),
        "iscrowd": int(row.get("iscrowd", 0)),
      }
      if kind == "mask":
        entry["segmentation"] = annotations.run_lengths_of(index, row)
      objects.append(entry)
  ids = annotations.category_ids.tolist()
  frequencies = annotations.frequencies or ("",) * len(ids)
  categories = [
    {"id": number, "name": name, "frequency": frequency}
    for number, name, frequency in zip(ids, annotations.names, frequencies, strict=True)
    if number >= 0
  ]
  images = [image._asdict() for image in annotations.images]
  return {"images": images, "annotations": objects, "categories": categories}
