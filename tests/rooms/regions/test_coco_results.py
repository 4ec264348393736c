"""Regions from COCO results."""

import json

from hypothesis import given
import numpy as np
from pycocotools import mask as pycoco_mask
import pytest

from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.rooms.regions.region_errors import RegionError
from pomp_jax.rooms.regions.region_folder import open_regions
from tests.support.fuzzing import allowed_errors, damaged, edited_json


def rle(mask):
  found = pycoco_mask.encode(np.asfortranarray(mask, np.uint8))
  return {"size": list(found["size"]), "counts": found["counts"].decode()}


MASK = np.zeros((6, 8), bool)
MASK[2:5, 1:5] = True
RESULTS = [
  {"image_id": 4, "category_id": 1, "bbox": [1, 2, 3, 2], "score": 0.5},
  {"image_id": 4, "category_id": 7, "bbox": [1, 2, 3, 2], "score": 0.75},
  {"image_id": 4, "category_id": 7, "bbox": [0, 0, 8, 6], "score": 1.04},
  {"image_id": 5, "category_id": 0, "score": 0.25, "segmentation": rle(MASK)},
  {"image_id": 5, "category_id": 1, "score": 0.25, "segmentation": rle(MASK)},
]


def opened(tmp_path, results):
  path = tmp_path / "results.json"
  path.write_text(json.dumps(results))
  return open_regions(path)


def test_results_merge_duplicates_and_ignore_categories(tmp_path, caplog):
  regions = opened(tmp_path, RESULTS)
  found = regions.read(4, 6, 8)
  np.testing.assert_array_equal(found.boxes, [[0, 0, 8, 6], [1, 2, 4, 4]])
  np.testing.assert_allclose(found.objectness, [1, 0.75])
  assert found.masks is None and found.embeddings is None and regions.header is None
  found = regions.read(5, 6, 8)
  np.testing.assert_array_equal(found.boxes, [[1, 2, 5, 5]])
  np.testing.assert_array_equal(found.masks, MASK[None])
  assert len(regions.read(6, 6, 8).boxes) == 0
  assert len(regions.read(4, 6, 8, 1).boxes) == 1
  four, five, nine = ((key, 6, 8) for key in (4, 5, 9))
  assert regions.check([five, four]) == 4 and not caplog.records
  assert regions.check([five, nine]) is None
  assert "results.json: results of 1 of 2 images" in caplog.text
  with pytest.raises(RegionError, match=r"results\.json"):
    regions.check([nine])


def test_boxes_and_masks_of_different_rows(tmp_path):
  rows = [RESULTS[0] | {"image_id": 5}, RESULTS[3]]
  found = opened(tmp_path, rows).read(5, 6, 8)
  np.testing.assert_array_equal(found.boxes, [[1, 2, 4, 4], [1, 2, 5, 5]])
  assert found.masks is None
  # Two masks may share a box.
  rows = [RESULTS[3] | {"bbox": [0, 0, 8, 6], "segmentation": rle(m)} for m in (MASK, ~MASK, MASK)]
  found = opened(tmp_path, rows).read(5, 6, 8)
  np.testing.assert_array_equal(found.masks, [MASK, ~MASK])


NONE = {"image_id": 4, "score": 0.5, "segmentation": {}}
CHANGES = ({"score": -3.5}, {"image_id": "4"}, {"bbox": None}, {"bbox": [1, 2, 3]})
NAN = {"bbox": [1, 2, 3, float("nan")]}


@pytest.mark.parametrize(
  "bad", [{}, [3], [NONE], *([RESULTS[0] | change] for change in (*CHANGES, NAN))]
)
def test_unusable_results(tmp_path, bad):
  with pytest.raises(RegionError, match=r"results\.json: .*(file|result 0)"):
    opened(tmp_path, bad)


def test_a_region_outside_its_image(tmp_path):
  for key, height, part in ((4, 3, "a box"), (5, 7, "size")):
    regions = opened(tmp_path, [row for row in RESULTS if row["image_id"] == key])
    with pytest.raises(RegionError, match=part):
      regions.read(key, height, 8)
    with pytest.raises(RegionError, match=part):
      regions.check([(key, height, 8)])


@given(
  edited_json(RESULTS, "bbox", "score", "segmentation", "counts", "size")
  | damaged([json.dumps(RESULTS).encode()])
)
def test_fuzzed_results(tmp_path_factory, data):
  path = tmp_path_factory.getbasetemp() / "fuzzed.json"
  path.write_bytes(data)
  with allowed_errors(RegionError, VocabularyError, within=[path]):
    regions = open_regions(path)
    for key in (4, 5):
      found = regions.read(key, 6, 8)
      assert (found.boxes >= 0).all() and (found.boxes <= [8, 6, 8, 6]).all()
      assert len(found.objectness) == len(found.boxes)
