"""Panoptic annotations: hand-written PNGs against the published rule, training sets, bad files."""

import json

import numpy as np
from PIL import Image
import pytest

from pomp_jax.config import validate
from pomp_jax.config.fields import TrainMasks
from pomp_jax.data.annotations import AnnotationError
from pomp_jax.data.mask_views import MaskViews
from pomp_jax.data.panoptic import read_panoptic
from pomp_jax.errors import InputError
from pomp_jax.inputs.mask_sets import open_mask_set
from tests.support.small_run import settings

# Two rows of three pixels, R, G, B. Ids: 7, 256 + 7, 65536, 0, 2 + 3 * 256 + 1 * 65536, 7.
PIXELS = np.array([[(7, 0, 0), (7, 1, 0), (0, 0, 1)], [(0, 0, 0), (2, 3, 1), (7, 0, 0)]], np.uint8)
IDS = ((7, 263, 65_536), (0, 66_306, 7))
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 90, "name": "sky-other"}, {"id": 4, "name": "dog"}]


def segment(number, category, crowd=0):
  box = {"bbox": [0, 0, 3, 2], "area": 1}
  return {"id": number, "category_id": category, "iscrowd": crowd} | box


def content():
  image = {"height": 2, "width": 3}
  segments = [segment(263, 4), segment(7, 3), segment(66_306, 3, crowd=1), segment(65_536, 90)]
  return {
    "images": [
      {"id": 5, "file_name": "e.jpg"} | image,
      {"id": 9, "file_name": "i.jpg"} | image,  # without an annotation
      {"id": 2, "file_name": "b.jpg"} | image,
    ],
    "annotations": [
      {"image_id": 2, "file_name": "b.png", "segments_info": []},
      {"image_id": 5, "file_name": "e.png", "segments_info": segments},
    ],
    "categories": CATEGORIES,
  }


@pytest.fixture
def root(tmp_path):
  (tmp_path / "panoptic.json").write_text(json.dumps(content()))
  (tmp_path / "names.txt").write_text("dog\tnovel\nsky-other\tbase\ncat\tbase\n")
  for folder in ("images", "masks"):
    (tmp_path / folder).mkdir()
  for name in "bei":
    Image.fromarray(255 - PIXELS).save(tmp_path / "images" / f"{name}.jpg")
  Image.fromarray(PIXELS).save(tmp_path / "masks" / "e.png")
  Image.fromarray(0 * PIXELS).save(tmp_path / "masks" / "b.png")
  return tmp_path


def fields_of(root, **changes):
  names = {"images": "images", "labels": "masks", "annotations": "panoptic.json"}
  paths = {field: str(root / name) for field, name in names.items()}
  return {"source": "panoptic", "names": str(root / "names.txt")} | paths | changes


def test_owners_are_the_segments_of_the_ids(root):
  panoptic = read_panoptic(root / "panoptic.json")
  assert [image.id for image in panoptic.annotations.images] == [5, 2]
  owners = panoptic.owners(0, root / "masks")
  ids = np.array([0, *(row["id"] for row in panoptic.annotations.rows[0])])
  np.testing.assert_array_equal(ids[owners + 1], IDS)
  assert (panoptic.owners(1, root / "masks") == -1).all()


def test_training_sees_base_classes_without_crowds(root):
  source = open_mask_set(TrainMasks(**fields_of(root)), 0)
  assert tuple(source.names) == ("sky-other", "cat") and len(source) == 2
  whole = source.region_map(0)
  assert whole.labels.tolist() == [-1, 1, -1, 0]  # novel, cat, crowd, sky
  assert whole.image.shape == (2, 3, 3)
  views, readable = MaskViews(source, 4, 3)(np.array([0]), np.array([0]))
  assert readable.all()
  assert sorted(views[0, 0]["labels"].tolist()) == [-1, 0, 1]
  # Without a list: the categories of the file.
  source = open_mask_set(TrainMasks(**fields_of(root, names="")), 0)
  assert tuple(source.names) == ("cat", "dog", "sky-other")


def test_a_whole_config(root):
  fields = {f"train_masks.{name}": value for name, value in fields_of(root).items()}
  fields["job"] = "train_masks"
  validate(settings(**fields))
  for name in ("labels", "annotations"):
    with pytest.raises(InputError, match=f"train_masks.{name}"):
      validate(settings(**fields | {f"train_masks.{name}": str(root / "none")}))


@pytest.mark.parametrize(
  ("row", "change", "match"),
  [
    (0, {"segments_info": None}, r"annotations\[0\].segments_info"),
    (1, {"image_id": 2}, r"annotations\[1\].image_id"),
    (1, {"image_id": 3}, "image_id"),
    (0, {"file_name": "../b.png"}, "file_name"),
    (0, {"file_name": "a.png"}, "a.png"),
    (1, {"id": 7}, "segments_info"),
    (1, {"id": 0}, "segments_info"),
    (1, {"id": 2**24}, "segments_info"),
    (1, {"category_id": 1}, "category"),
    (None, None, "annotations"),
  ],
)
def test_a_bad_json_is_one_line(root, row, change, match):
  value = content()
  if row is None:
    del value["annotations"]
  else:
    annotation = value["annotations"][row]
    of_segment = change.keys() & {"id", "category_id"}
    (annotation["segments_info"][0] if of_segment else annotation).update(change)
  (root / "panoptic.json").write_text(json.dumps(value))
  with pytest.raises(InputError, match=match) as error:
    open_mask_set(TrainMasks(**fields_of(root)), 0)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("pixels", "match"),
  [
    (PIXELS[..., 0], "mode L"),
    (PIXELS[:1], "3 x 1 pixels"),
    (PIXELS + np.uint8(1), "segment 65800"),
  ],
)
def test_a_png_that_does_not_fit_is_one_line(root, pixels, match):
  Image.fromarray(pixels).save(root / "masks" / "e.png")
  panoptic = read_panoptic(root / "panoptic.json")
  with pytest.raises(AnnotationError, match=match) as error:
    panoptic.owners(0, root / "masks")
  assert "e.png" in str(error.value) and "\n" not in str(error.value)
