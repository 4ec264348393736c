"""COCO's and LVIS's annotations: what is read, and what is refused."""

import copy
import json

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.rooms.regions.annotations import annotations_of, read_annotations
from pomp_jax.rooms.regions.region_errors import RegionError
from tests.support.fuzzing import allowed_errors, damaged, edited_json


def small():
  """One image with a polygon, a crowd as RLE, and a box alone."""
  crowd = {"size": [6, 8], "counts": [6, 12, 30]}  # columns 1 and 2
  return {
    "images": [{"id": 4, "file_name": "val/a.jpg", "height": 6, "width": 8}],
    "categories": [
      {"id": 9, "name": "bow_(weapon)", "synonyms": ["bow"]},
      {"id": 2, "name": "cat"},
    ],
    "annotations": [
      {"id": 1, "image_id": 4, "category_id": 9, "bbox": [1, 2, 3, 2], "iscrowd": 0, "area": 6,
       "segmentation": [[1, 2, 4, 2, 4, 4, 1, 4]]},
      {"id": 2, "image_id": 4, "category_id": 2, "bbox": [1, 0, 2, 6], "iscrowd": 1,
       "segmentation": crowd},
      {"id": 3, "image_id": 4, "category_id": 2, "bbox": [6.5, 5, 2, 1]},
    ],
  }  # fmt: skip


def test_a_small_file(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(json.dumps(small()))
  annotations = read_annotations(path)
  assert annotations.names == ("cat", "bow (weapon)")
  assert annotations.category_ids.tolist() == [2, 9]
  assert annotations.synonyms == (("cat",), ("bow (weapon)", "bow"))
  assert annotations.frequencies is None
  truth = annotations.truth(0)
  # The third box ends half a pixel beyond the image.
  np.testing.assert_array_equal(
    truth.boxes, [[1, 2, 4, 4], [1, 0, 3, 6], [6.5, 5, 8, 6]]
  )
  assert truth.classes.tolist() == [1, 0, 0]
  assert truth.crowd.tolist() == [False, True, False]


def test_masks_of_polygons_and_rle():
  value = small()
  del value["annotations"][2]
  masks = annotations_of(value).masks(0)
  expected = np.zeros((2, 6, 8), bool)
  expected[0, 2:4, 1:4] = True
  expected[1, :, 1:3] = True
  np.testing.assert_array_equal(masks, expected)
  # A polygon of fewer than three points is empty.
  value["annotations"][0]["segmentation"].append([1, 2, 3, 4])
  np.testing.assert_array_equal(annotations_of(value).masks(0), expected)
  value["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
  assert not annotations_of(value).masks(0)[0].any()


def test_names_give_the_order_and_may_be_more():
  annotations = annotations_of(small(), names=["dog", "bow_(weapon)", "cat"])
  assert annotations.names == ("dog", "bow (weapon)", "cat")
  assert annotations.category_ids.tolist() == [-1, 9, 2]
  assert annotations.synonyms[:2] == (("dog",), ("bow (weapon)", "bow"))
  assert annotations.truth(0).classes.tolist() == [1, 2, 2]
  with pytest.raises(RegionError, match=r"category 9.*bow \(weapon\)"):
    annotations_of(small(), names=["dog", "cat"])


def test_lvis_fields():
  value = small()
  value["images"][0] = {
    "id": 4, "height": 6, "width": 8, "neg_category_ids": [2], "not_exhaustive_category_ids": [9],
    "coco_url": "http://images.cocodataset.org/val2017/000000397133.jpg",
  }  # fmt: skip
  value["categories"][0]["frequency"], value["categories"][1]["frequency"] = "r", "f"
  annotations = annotations_of(value, names=["bow (weapon)", "dog", "cat"])
  assert annotations.frequencies == ("r", "", "f")
  assert annotations.images[0].file_name == "val2017/000000397133.jpg"
  assert annotations.images[0].neg_category_ids == (2,)
  assert annotations.images[0].not_exhaustive_category_ids == (9,)
  value["categories"][1]["frequency"] = "x"
  with pytest.raises(RegionError, match="category 2"):
    annotations_of(value)


@pytest.mark.parametrize(
  ("field", "row", "key", "bad"),
  [
    ("images", 0, "id", "4"),
    ("images", 0, "width", 2**40),
    ("images", 0, "file_name", "../../etc/passwd"),
    ("images", 0, "file_name", "/etc/passwd"),
    ("images", 0, "file_name", "gs://another-bucket/x.jpg"),
    ("annotations", 1, "image_id", 5),
    ("annotations", 1, "category_id", 3),
    ("annotations", 1, "bbox", [1, 2, 3]),
    ("annotations", 1, "bbox", [-9, 2, 3, 3]),
    ("annotations", 1, "bbox", [1, 2, float("nan"), 3]),
    ("annotations", 1, "segmentation", [[1, 2, 3, 4, 5]]),
    ("annotations", 1, "segmentation", {"size": [600, 800], "counts": "04"}),
    ("categories", 0, "id", 2**63),
    ("categories", 1, "id", 9),
  ],
)
def test_an_unusable_field(field, row, key, bad):
  value = small()
  value[field][row][key] = bad
  with pytest.raises((RegionError, VocabularyError)) as error:
    annotations_of(value, "a.json")
  message = str(error.value)
  assert message.startswith("a.json: ") and "\n" not in message
  # Ids are of no class before they are of a row.
  assert (
    str(bad) if (field, row) == ("categories", 0) else f"{field}[{row}]"
  ) in message


@pytest.mark.parametrize(
  "change", [{"images": [], "annotations": []}, {"annotations": None}]
)
def test_a_missing_list(change):
  with pytest.raises((RegionError, VocabularyError), match=next(iter(change))):
    annotations_of(small() | change)


@pytest.mark.parametrize(
  "counts", [[3, 4], [3, -4, 49], "", "04", "zzzzzz", [48, 2**40]]
)
def test_damaged_rle(counts):
  value = small()
  value["annotations"][1]["segmentation"]["counts"] = counts
  with pytest.raises(RegionError, match="annotation 2"):
    annotations_of(value).masks(0)


_WORDS = (
  "id",
  "bbox",
  "segmentation",
  "counts",
  "size",
  "image_id",
  "category_id",
  "cat",
)
_LVIS = copy.deepcopy(small())
_LVIS["images"][0] |= {"neg_category_ids": [2], "not_exhaustive_category_ids": [9]}
_LVIS["categories"][0]["frequency"] = _LVIS["categories"][1]["frequency"] = "c"


@given(
  data=edited_json(small(), *_WORDS)
  | edited_json(_LVIS, *_WORDS, "frequency", "r")
  | damaged([json.dumps(small()).encode()]),
  names=st.sampled_from([None, ["cat", "bow (weapon)"], ["dog"]]),
)
def test_fuzzed(tmp_path_factory, data, names):
  path = tmp_path_factory.getbasetemp() / "fuzzed.json"
  path.write_bytes(data)
  with allowed_errors(RegionError, VocabularyError, within=[path]):
    annotations = read_annotations(path, names)
    for index, image in enumerate(annotations.images):
      boxes = annotations.truth(index).boxes
      assert (boxes >= 0).all() and (boxes <= [image.width, image.height] * 2).all()
      if image.height * image.width < 10_000:
        masks = annotations.masks(index)
        assert masks.shape == (len(boxes), image.height, image.width)
