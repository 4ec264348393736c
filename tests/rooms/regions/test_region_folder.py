"""Regions in folders and COCO results: what is read; anything else is refused in one
line."""

import dataclasses
import json

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from pycocotools import mask as pycoco_mask
import pytest

from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.rooms.regions.region_errors import RegionError
from pomp_jax.rooms.regions.region_folder import (
  RegionFolder,
  RegionHeader,
  Regions,
  RegionWriter,
  open_regions,
)
from tests.support.fuzzing import allowed_errors, damaged, edited_json

HEIGHT, WIDTH = 30, 40
RNG = np.random.default_rng(0)
HEADER = RegionHeader(
  "a detector",
  "ViT-B/16",
  3,
  8,
  "softmax",
  100.0,
  tuple(map(float, range(1, 9))),
  ("cat", "dog"),
)
REGIONS = Regions(
  np.array([[0, 0, 40, 30], [3.5, 4, 20, 9]], np.float32),
  np.array([0.25, 0.75], np.float32),
  RNG.integers(0, 256, (2, 8, 10), np.uint8),
  RNG.normal(size=(2, 3, 8)).astype(np.float16),
)
SEVEN = 7, HEIGHT, WIDTH


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("regions")
  RegionWriter(path, HEADER).write(7, REGIONS)
  return path


@pytest.fixture(scope="module")
def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_equal(found, expected):
  for part, other in zip(found, expected, strict=True):
    assert (part is None) == (other is None)
    if other is not None:
      assert part.dtype == other.dtype
      np.testing.assert_array_equal(part, other)


def test_round_trip(folder):
  regions = RegionFolder(folder)
  assert regions.header == HEADER
  assert regions.check([SEVEN]) is None
  assert_equal(regions.read(7, HEIGHT, WIDTH), REGIONS)
  assert_equal(regions.read(7, HEIGHT, WIDTH, 1), REGIONS.top(1))
  assert sorted(p.name for p in folder.iterdir()) == ["7.npz", "regions.json"]


def test_boxes_alone_and_no_region(tmp_path):
  writer = RegionWriter(tmp_path / "new", RegionHeader("a network"))
  writer.write("street", Regions(REGIONS.boxes))
  soft = Regions(REGIONS.boxes, masks=REGIONS.masks.astype(np.float16))
  writer.write("soft", soft)
  writer.write("sky", Regions(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)))
  regions = RegionFolder(tmp_path / "new")
  assert regions.header == RegionHeader("a network")
  assert_equal(regions.read("street", HEIGHT, WIDTH), Regions(REGIONS.boxes))
  assert_equal(regions.read("soft", HEIGHT, WIDTH), soft)
  assert len(regions.read("sky", HEIGHT, WIDTH).boxes) == 0
  sky, street = ((key, HEIGHT, WIDTH) for key in ("sky", "street"))
  assert regions.check([sky]) is None and regions.check([sky, street, sky]) == "street"


def test_arrays_of_other_writers(folder, tmp_path):
  """NumPy's savez, float64, a box beyond the image by rounding, embeddings of any
  norm."""
  RegionWriter(tmp_path, HEADER)
  boxes = REGIONS.boxes.astype(float)
  boxes[0, 2] = 40.6
  for factor in (1, 1e6, 1e-9):
    embeddings = REGIONS.embeddings.astype(float) * factor
    np.savez(tmp_path / "7.npz", boxes=boxes, embeddings=embeddings)
    found = RegionFolder(tmp_path).read(7, HEIGHT, WIDTH)
    assert_equal(
      found, Regions(REGIONS.boxes, None, None, embeddings.astype(np.float32))
    )


@pytest.mark.parametrize(
  ("field", "array", "part"),
  [
    ("boxes", REGIONS.boxes + 20, "a box"),
    ("boxes", np.full((2, 4), np.nan), "boxes"),
    ("boxes", np.zeros((2, 4), int), "boxes"),
    ("objectness", np.array([0.5, 2]), "objectness"),
    ("objectness", np.array([0.5]), "objectness"),
    ("masks", np.zeros((2, 8, 10), np.uint16), "masks"),
    ("masks", np.full((2, 8, 10), np.nan, np.float16), "masks"),
    ("objectnesr", REGIONS.objectness, "an array"),
    ("embeddings", REGIONS.embeddings[:, :2], "embeddings"),
    ("embeddings", REGIONS.embeddings * np.float16(np.inf), "embeddings"),
    ("embeddings", None, "embeddings"),
  ],
)
def test_unusable_arrays(tmp_path, field, array, part):
  RegionWriter(tmp_path, HEADER)
  arrays = {
    k: v for k, v in (REGIONS._asdict() | {field: array}).items() if v is not None
  }
  np.savez(tmp_path / "7.npz", **arrays)
  with pytest.raises(RegionError) as error:
    RegionFolder(tmp_path).read(7, HEIGHT, WIDTH)
  assert f"7.npz: {part}" in str(error.value)
  if field == "boxes" or array is None or np.isfinite(array).all():
    with pytest.raises(RegionError) as early:
      RegionFolder(tmp_path).check([SEVEN])
    assert str(early.value) == str(error.value)


def test_a_header_that_names_fewer_rows_is_noticed(tmp_path):
  RegionWriter(tmp_path, HEADER)
  np.savez(
    tmp_path / "7.npz", boxes=np.tile(np.array([[0, 0, 9, 9]], np.float32), (900, 1))
  )
  content = (tmp_path / "7.npz").read_bytes()
  assert content.count(b"(900, 4)") == 1
  (tmp_path / "7.npz").write_bytes(content.replace(b"(900, 4)", b"(800, 4)"))
  with pytest.raises(RegionError, match="boxes is damaged"):
    RegionFolder(tmp_path).read(7, HEIGHT, WIDTH)


def test_a_file_of_another_image_is_noticed(tmp_path):
  """Of another writer, without the key, it is taken as it is."""
  writer = RegionWriter(tmp_path, HEADER)
  for key in (7, 8):
    writer.write(key, REGIONS)
  (tmp_path / "8.npz").replace(tmp_path / "7.npz")
  for read in (
    RegionFolder(tmp_path).check,
    lambda images: RegionFolder(tmp_path).read(*SEVEN),
  ):
    with pytest.raises(RegionError, match=rf"{tmp_path}/7\.npz: key is '8'"):
      read([SEVEN])
  np.savez(tmp_path / "7.npz", key=7.0, **REGIONS._asdict())
  with pytest.raises(RegionError, match=r"7\.npz: key is float64"):
    RegionFolder(tmp_path).check([SEVEN])
  np.savez(tmp_path / "7.npz", **REGIONS._asdict())
  assert_equal(RegionFolder(tmp_path).read(*SEVEN), REGIONS)


def test_missing_and_impossible_keys(folder):
  regions = RegionFolder(folder)
  with pytest.raises(RegionError, match=r"8\.npz"):
    regions.check([SEVEN, (8, HEIGHT, WIDTH)])
  for key in ("../7", "a/b", "a\0"):
    with pytest.raises(RegionError, match="file name"):
      regions.read(key, HEIGHT, WIDTH)
  with pytest.raises(VocabularyError, match=r"regions\.json"):
    RegionFolder(folder / "missing")


@pytest.mark.parametrize(
  ("field", "bad"),
  [
    ("stages", 0),
    ("activation", "relu"),
    ("scale", 0),
    ("null", [1.0] * 7),
    ("trained_classes", [1]),
    ("format_version", 2),
  ],
)
def test_an_unusable_header(tmp_path, files, field, bad):
  value = json.loads(files["regions.json"])
  del value["checksum"]  # files of other writers have none
  (value if field in value else value["embeddings"])[field] = bad
  (tmp_path / "regions.json").write_text(json.dumps(value))
  with pytest.raises(RegionError, match=field):
    RegionFolder(tmp_path)


def test_a_flipped_bit_of_the_header_is_noticed(tmp_path, files):
  changed = bytearray(files["regions.json"])
  changed[changed.index(b"100.0")] ^= 8  # 900
  (tmp_path / "regions.json").write_bytes(changed)
  with pytest.raises(RegionError, match=r"regions\.json"):
    RegionFolder(tmp_path)


def test_embeddings_of_another_clip():
  HEADER.check_fits("openai/clip-vit-base-patch16", 8, "folder")
  for name in ("runs/my_clip", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"):
    HEADER.check_fits(name, 8, "folder")
  for clip_model, width in (("ViT-B/16", 9), ("openai/clip-vit-base-patch32", 8)):
    with pytest.raises(
      RegionError, match=f"folder/regions.json: clip_model.*{clip_model}"
    ):
      HEADER.check_fits(clip_model, width, "folder")
  dataclasses.replace(HEADER, stages=0).check_fits("RN50", 1024, "folder")


@pytest.mark.parametrize("kind", ["damaged", "edited header"])
def test_fuzzed_files(tmp_path, files, kind):
  header = json.loads(files["regions.json"])
  del header["checksum"]
  changes = {
    "damaged": st.sampled_from(sorted(files)).flatmap(
      lambda name: st.tuples(st.just(name), damaged([files[name]]))
    ),
    "edited header": st.tuples(
      st.just("regions.json"),
      edited_json(header, *header["embeddings"], "sigmoid", "format_version"),
    ),
  }

  @given(changes[kind])
  def check(change):
    for name, data in (files | dict([change])).items():
      (tmp_path / name).write_bytes(data)
    with allowed_errors(RegionError, VocabularyError, within=[tmp_path]):
      source = RegionFolder(tmp_path)
      found = source.read(7, HEIGHT, WIDTH)
      assert (found.boxes >= 0).all() and (found.boxes <= [WIDTH, HEIGHT] * 2).all()
      if source.header.stages:
        sizes = (len(found.boxes), source.header.stages, source.header.width)
        assert found.embeddings.shape == sizes

  check()


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
  rows = [
    RESULTS[3] | {"bbox": [0, 0, 8, 6], "segmentation": rle(m)}
    for m in (MASK, ~MASK, MASK)
  ]
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
