"""Views of images with region maps against the whole image; panoptic annotations as
such maps."""

import json

import numpy as np
from PIL import Image
import pytest

from pomp_jax.data.images import ImageError
from pomp_jax.errors import InputError
from pomp_jax.rooms.regions import mask_views
from pomp_jax.rooms.regions.annotations import read_panoptic
from pomp_jax.rooms.regions.class_splits import undivided
from pomp_jax.rooms.regions.fields import TrainMasks
from pomp_jax.rooms.regions.image_sets import open_mask_set
from pomp_jax.rooms.regions.region_errors import RegionError

LABELS = np.array([4, -1, 2], np.int32)


def maps(error=ImageError):
  """Three images, the last of which can't be read."""

  def read(index):
    if index == 2:
      raise error("image 2: broken")
    rng = np.random.default_rng(index)
    shape = (24, 36) if index else (30, 20)
    pixels = rng.integers(0, 256, (*shape, 3), np.uint8)
    return mask_views.RegionMap(
      pixels, rng.integers(-1, 3, shape).astype(np.int16), LABELS
    )

  return mask_views.RegionMaps(
    undivided("abcde"), np.arange(3), read, "image {}".format
  )


def test_the_whole_image_fits_and_begins_in_the_corner():
  views = mask_views.MaskViews(maps(), 48, 4)
  records, readable = views(np.array([0, 1]), np.array([0, 3]))
  assert records.shape == (2, 1) and readable.all()
  assert records["sides"][:, 0].tolist() == [[48, 32], [32, 48]]
  for record, index in zip(records[:, 0], (0, 1), strict=True):
    rows, columns = record["sides"]
    whole = maps().region_map(index)
    image = Image.fromarray(whole.image).resize(
      (columns, rows), Image.Resampling.BILINEAR
    )
    np.testing.assert_array_equal(record["image"][:rows, :columns], image)
    assert not record["image"][rows:].any() and not record["image"][:, columns:].any()
    assert (record["owners"][rows:] == -1).all() and (
      record["owners"][:, columns:] == -1
    ).all()


def test_a_view_is_cut_out_of_the_scaled_image():
  """Scales of height and width differ where sides are rounded; here 3 and 2 times."""
  whole = maps().region_map(0)
  place = mask_views.Place(90, 40, 7, 11, 40, 25, False)
  part = mask_views.cut(whole, place)
  rows = ((np.arange(40) + 7 + 0.5) / 3).astype(int)
  columns = ((np.arange(25) + 11 + 0.5) / 2).astype(int)
  np.testing.assert_array_equal(part.owners, whole.owners[np.ix_(rows, columns)])
  scaled = np.asarray(
    Image.fromarray(whole.image).resize((40, 90), Image.Resampling.BILINEAR)
  )
  inner = (slice(3, -3), slice(3, -3))  # the border of a cut knows nothing beyond it
  difference = part.image[inner].astype(int) - scaled[7:47, 11:36][inner]
  assert np.abs(difference).max() <= 1
  turned = mask_views.cut(whole, place._replace(flip=True))
  np.testing.assert_array_equal(turned.image, part.image[:, ::-1])
  np.testing.assert_array_equal(turned.owners, part.owners[:, ::-1])


def test_places_are_inside_and_follow_the_seed_image_and_epoch():
  place_of = mask_views.MaskViews(maps(), 32, 2, "crop_flip", seed=5).place
  drawn = [place_of(30, 20, index=index, epoch=1) for index in range(200)]
  for place in drawn:
    assert 0 <= place.top <= place.height - place.rows
    assert 0 <= place.left <= place.width - place.columns
    assert place.rows == min(32, place.height) and place.columns == min(32, place.width)
    assert abs(place.height / place.width - 1.5) < 0.1
  assert len(set(drawn)) > 150
  scales = [place.width / 32 for place in drawn]
  assert min(scales) < 0.6 and max(scales) > 1.9 and abs(np.mean(scales) - 1.25) < 0.1
  assert 0.35 < np.mean([place.flip for place in drawn]) < 0.65
  other = mask_views.MaskViews(maps(), 32, 2, "crop_flip", seed=6).place
  assert drawn[199] == place_of(30, 20, index=199, epoch=1)
  assert drawn[199] not in (
    place_of(30, 20, index=199, epoch=2),
    other(30, 20, index=199, epoch=1),
  )


def test_regions_without_pixel_or_class_are_dropped_and_the_largest_are_first():
  owners = np.array([[0, 0, 1, 1], [2, 2, 2, 4], [-1, 4, 4, 4]], np.int16)
  labels = np.array([7, -1, 9, 8, 6], np.int32)
  found, kept = mask_views.largest_regions(owners, labels, 5)
  assert kept.tolist() == [6, 9, 7]
  assert found.tolist() == [[2, 2, -1, -1], [1, 1, 1, 0], [-1, 0, 0, 0]]
  found, kept = mask_views.largest_regions(owners, labels, 1)
  assert kept.tolist() == [6]
  assert (found >= 0).sum() == 4


def test_smaller_masks_are_in_front():
  masks = np.zeros((3, 2, 4), bool)
  masks[0, :, :2], masks[1], masks[2, 0, 1:] = True, True, True
  assert mask_views.map_of_masks(masks).tolist() == [[0, 2, 2, 2], [0, 0, 1, 1]]
  assert (mask_views.map_of_masks(masks[:0]) == -1).all()


@pytest.mark.parametrize("error", [ImageError, RegionError])
def test_an_unreadable_image_or_label_is_told(error):
  views = mask_views.MaskViews(maps(error), 32, 2, "crop_flip")
  records, readable = views(np.array([2, 0]), np.array([0, 0]))
  assert readable.tolist() == [False, True]
  assert not records["image"][0].any() and records["image"][1].any()


# Two rows of three pixels, R, G, B. Ids: 7, 256 + 7, 65536, 0, 2 + 3 * 256 + 1 * 65536,
# 7.
PIXELS = np.array(
  [[(7, 0, 0), (7, 1, 0), (0, 0, 1)], [(0, 0, 0), (2, 3, 1), (7, 0, 0)]], np.uint8
)
IDS = ((7, 263, 65_536), (0, 66_306, 7))
CATEGORIES = [
  {"id": 3, "name": "cat"},
  {"id": 90, "name": "sky-other"},
  {"id": 4, "name": "dog"},
]


def segment(number, category, crowd=0):
  box = {"bbox": [0, 0, 3, 2], "area": 1}
  return {"id": number, "category_id": category, "iscrowd": crowd} | box


def content():
  image = {"height": 2, "width": 3}
  segments = [
    segment(263, 4),
    segment(7, 3),
    segment(66_306, 3, crowd=1),
    segment(65_536, 90),
  ]
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
  views, readable = mask_views.MaskViews(source, 4, 3)(np.array([0]), np.array([0]))
  assert readable.all()
  assert sorted(views[0, 0]["labels"].tolist()) == [-1, 0, 1]
  # Without a list: the categories of the file.
  source = open_mask_set(TrainMasks(**fields_of(root, names="")), 0)
  assert tuple(source.names) == ("cat", "dog", "sky-other")


@pytest.mark.parametrize(
  ("row", "change", "match"),
  [
    (0, {"segments_info": None}, r"annotations\[0\].segments_info"),
    (1, {"image_id": 2}, r"annotations\[1\].image_id"),
    (0, {"file_name": "../b.png"}, "file_name"),
    (0, {"file_name": "a.png"}, "a.png"),
    (1, {"id": 0}, "segments_info"),
    (None, None, "annotations"),
    ("images", {"id": [1]}, r"images\[0\].id"),
  ],
)
def test_a_bad_json_is_one_line(root, row, change, match):
  value = content()
  if row is None:
    del value["annotations"]
  elif row == "images":
    value["images"][0].update(change)
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
  with pytest.raises(RegionError, match=match) as error:
    panoptic.owners(0, root / "masks")
  assert "e.png" in str(error.value) and "\n" not in str(error.value)
