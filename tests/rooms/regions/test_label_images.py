"""Label images and their class lists; crops of annotated regions as an image source."""

import io
import json
import pickle

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as pycoco_mask
import pytest

from pomp_jax.config import ConfigError, defaults, validate
from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.data.images import ImageError
from pomp_jax.data.source import Source, SourceError
from pomp_jax.errors import InputError
from pomp_jax.evaluate import opening
from pomp_jax.rooms.regions import label_images, training_crops
from pomp_jax.rooms.regions.class_splits import (
  CLASS_SPLITS,
  ClassSplit,
  read_class_split,
)
from pomp_jax.rooms.regions.label_images import IGNORED, open_pixels, write_labels
from pomp_jax.rooms.regions.region_errors import RegionError
from tests.rooms.regions.region_jobs import SIZES, write_pixel_set
from tests.support.detection_cases import random_annotations
from tests.support.pictures import encode, natural_image
from tests.support.small_run import small_config

CLASSES = ClassSplit(
  (("cat",), ("dog",), ("sky",)), ("base", "base", "novel"), ((1,), (4, 5), (9,))
)
VALUES = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)


@pytest.fixture
def folders(tmp_path):
  """Two images and one pair; the other image has no label."""
  for name in ("images", "labels"):
    (tmp_path / name).mkdir()
  rng = np.random.default_rng(0)
  for stem in ("a", "b"):
    pixels = rng.integers(0, 256, (2, 3, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / f"{stem}.png")
  Image.fromarray(VALUES).save(tmp_path / "labels" / "a.png")
  return tmp_path


def opened(folders, values="index", **options):
  return open_pixels(folders / "images", folders / "labels", CLASSES, values, **options)


def test_pairs_by_stem(folders):
  pixels = opened(folders)
  assert pixels.keys == ("a",) and len(pixels) == 1
  with Image.open(folders / "images" / "a.png") as image:
    np.testing.assert_array_equal(pixels.image(0), np.asarray(image))
  np.testing.assert_array_equal(pixels.labels(0), [[0, 1, 2], [IGNORED, 2, 0]])


def test_reduce_zero_label_equals_mmsegs_arithmetic(folders):
  # mmseg: 0 becomes 255, all others go down by one, and 254 becomes 255.
  expected = VALUES.copy()
  expected[expected == 0] = 255
  expected = (expected - 1).astype(int)
  expected[expected == 254] = IGNORED
  np.testing.assert_array_equal(
    opened(folders, "reduce_zero_label").labels(0), expected
  )


def test_listed_values_palettes_and_16_bits(folders):
  label = folders / "labels" / "a.png"
  palette = Image.fromarray(np.array([[1, 4, 5], [9, 9, 255]], np.uint8), mode="P")
  palette.putpalette(list(range(255, -1, -1)) * 3)
  palette.save(label)
  expected = np.array([[0, 1, 1], [2, 2, IGNORED]])
  np.testing.assert_array_equal(opened(folders, "listed").labels(0), expected)
  Image.fromarray(np.array([[0, 1, 2], [2, 1, 65535]], np.uint16)).save(label)
  expected = [[0, 1, 2], [2, 1, IGNORED]]
  np.testing.assert_array_equal(opened(folders, ignore=65535).labels(0), expected)


@pytest.mark.parametrize("n_classes", [3, 255, 256, 2400])
def test_written_labels_are_read_again(folders, n_classes):
  labels = np.array([[0, 1, n_classes - 1], [IGNORED, 2, 0]], np.int32)
  write_labels(folders / "labels" / "a.png", labels, n_classes)
  classes = ClassSplit(tuple((str(c),) for c in range(n_classes)), ("-",) * n_classes)
  ignore = 255 if n_classes <= 255 else 65535
  pixels = open_pixels(folders / "images", folders / "labels", classes, ignore=ignore)
  np.testing.assert_array_equal(pixels.labels(0), labels)


def save(path, pixels):
  """Writes a label image, or removes it."""
  path.unlink(missing_ok=True)
  if isinstance(pixels, bytes):
    path.write_bytes(pixels)
  elif pixels is not None:
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
  ("file", "pixels", "parts"),
  [
    ("images/a.bmp", VALUES, ["a.bmp", "a.png"]),
    ("labels/a.png", VALUES + 1, ["value 3", "a.png"]),
    ("labels/a.png", VALUES[:, :2], ["2 x 2", "a.png"]),
    ("labels/a.png", np.stack([VALUES] * 3, axis=-1), ["RGB", "a.png"]),
    ("labels/a.tiff", np.full((2, 3), 70_000, np.int32), ["16 bits", "a.tiff"]),
    ("labels/a.png", b"\x89PNG\r\n\x1a\n", ["a.png"]),
    ("labels/a.png", None, ["labels"]),
  ],
)
def test_unusable_folders_and_labels(folders, file, pixels, parts):
  (folders / "labels" / "a.png").unlink()
  save(folders / file, pixels)
  with pytest.raises((RegionError, ImageError, SourceError)) as error:
    opened(folders).labels(0)
  assert all(part in str(error.value) for part in parts) and "\n" not in str(
    error.value
  )


def test_fields_and_missing_folders(folders):
  names = ClassSplit(CLASSES.synonyms, CLASSES.groups)
  for options, error in (
    ({"ignore": 2}, "2"),
    ({"classes": names, "values": "listed"}, "third column"),
    ({"labels": folders / "missing"}, "missing"),
  ):
    fields = {
      "images": folders / "images",
      "labels": folders / "labels",
      "classes": CLASSES,
    }
    with pytest.raises((RegionError, ImageError, SourceError), match=error):
      open_pixels(**fields | options)


@pytest.mark.parametrize(
  ("name", "n", "n_base", "n_novel"),
  [
    ("ade20k", 150, 0, 0),
    ("ade20k:lines", 150, 0, 0),
    ("coco", 80, 48, 17),
    ("coco_stuff", 171, 156, 15),
    ("pascal_context", 59, 0, 0),
    ("voc", 20, 15, 5),
  ],
)
def test_packaged_lists(name, n, n_base, n_novel):
  classes = read_class_split(name)
  assert name.removesuffix(":lines") in CLASS_SPLITS
  if "ade20k" in name:
    texts = [text for names in classes.synonyms for text in names]
    found = len(texts), "road, route" in texts, sum("," in text for text in texts)
    assert found == ((150, True, 41) if ":" in name else (225, False, 0))
  assert len(classes) == len(set(classes.names)) == n
  assert (len(classes.indices("base")), len(classes.indices("novel"))) == (
    n_base,
    n_novel,
  )


def test_novel_classes_of_coco_stuff_and_voc_are_the_published_ones():
  stuff = read_class_split("coco_stuff")
  values = np.array([20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171])
  assert [stuff.values[c] for c in stuff.indices("novel")] == [(v,) for v in values]
  voc = read_class_split("voc")
  assert voc.names[15:] == ("pottedplant", "sheep", "sofa", "train", "tvmonitor")
  assert voc.indices("novel").tolist() == [15, 16, 17, 18, 19]
  with pytest.raises(VocabularyError, match="coco_stuff"):
    read_class_split("coco_things")


def test_a_users_file(tmp_path):
  path = tmp_path / "names.txt"
  path.write_text("sofa, couch\tnovel\t3, 4\r\ncat\tbase\t0\n", encoding="utf-8")
  assert read_class_split(f"{path}:lines").names == ("sofa, couch", "cat")
  classes = read_class_split(path)
  assert classes.names == ("sofa", "cat")
  assert classes.synonyms == (("sofa", "couch"), ("cat",))
  assert classes.groups == ("novel", "base")
  assert classes.values == ((3, 4), (0,))


@pytest.mark.parametrize(
  ("text", "part"),
  [
    ("", "empty"),
    ("cat\ncat", "repeats"),
    ("cat, cat", "line 1"),
    ("cat,", "line 1"),
    ("cat\tbase\ndog", "line 2"),
    ("cat\tseen", "seen"),
    ("cat\tbase\tx", "line 1"),
    ("cat\tbase\t1\ndog\tbase\t1", "line 2"),
    ("cat\tbase\t65536", "65536"),
    ("cat\tbase\t1\t2", "4 columns"),
    ("cat\x1b\tbase", "U+001B"),
  ],
)
def test_an_unusable_file(tmp_path, text, part):
  path = tmp_path / "names.txt"
  path.write_text(text, encoding="utf-8")
  with pytest.raises(VocabularyError) as error:
    read_class_split(path)
  assert part in str(error.value) and str(path) in str(error.value)


NAMES = "cat\tbase\t3\nsky\tnovel\t0\nstar\tbase\t2\nhouse\t-\t1\n"
FILL = np.array([122.77, 116.75, 104.09])  # CLIP's mean


@pytest.fixture
def labelled(tmp_path):
  """Images, and label images whose values are those of a list."""
  write_pixel_set(tmp_path, "a clip")
  (tmp_path / "names.txt").write_text(NAMES)
  return tmp_path


def of_labels(root, **changes):
  own = {
    "source": "regions",
    "root": str(root / "images"),
    "annotations": str(root / "labels"),
  }
  own |= {"names": str(root / "names.txt")} | changes
  return defaults().replace({f"data.{name}": value for name, value in own.items()}).data


def pixels_of(source, index):
  return np.asarray(Image.open(io.BytesIO(source.encoded(index))))


def expected_crop(image, mask):
  rows, columns = np.nonzero(mask)
  filled = np.where(mask[..., None], image, FILL)
  return filled[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_each_class_of_a_label_image_is_an_image(labelled):
  source = training_crops.open_split(of_labels(labelled), "train")
  assert isinstance(source, Source)
  # The novel class is left out.
  assert source.names == ("cat", "star", "house")
  found = {
    (key.split(":")[0], label): index
    for index, (key, label) in enumerate(
      zip(source.keys.tolist(), source.labels, strict=True)
    )
  }
  for number in range(len(SIZES)):
    image, labels = (
      np.asarray(Image.open(labelled / folder / f"{number}.png"))
      for folder in ("images", "labels")
    )
    for label, value in enumerate((3, 2, 1)):
      if (labels == value).any():
        crop = pixels_of(source, found.pop((str(number), label)))
        np.testing.assert_allclose(crop, expected_crop(image, labels == value), atol=1)
  assert not found
  copy = pickle.loads(pickle.dumps(source))
  assert copy.encoded(3) == source.encoded(3)


def test_classes_of_label_images_are_remembered(labelled, monkeypatch):
  data = of_labels(labelled, cache=str(labelled / "cache"))
  first = training_crops.open_split(data, "train")
  with monkeypatch.context() as patch:
    patch.setattr(training_crops.PixelFolder, "labels", None)
    again = training_crops.open_split(data, "train")
  assert again.keys.tolist() == first.keys.tolist()
  np.testing.assert_array_equal(again.labels, first.labels)
  Image.new("L", SIZES[2][::-1], 2).save(labelled / "labels" / "2.png")
  keys = [key for key in first.keys.tolist() if not key.startswith("2:")]
  changed = training_crops.open_split(data, "train").keys.tolist()
  assert sorted(changed) == sorted([*keys, "2:2"])


def test_each_object_of_a_json_is_an_image(tmp_path):
  value, objects = random_annotations(0), tmp_path / "objects.json"
  for row in value["annotations"][:2]:
    del row["segmentation"]
    row["iscrowd"] = 0
  objects.write_text(json.dumps(value))
  rng = np.random.default_rng(0)
  for image in value["images"]:
    pixels = rng.integers(0, 256, (image["height"], image["width"], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / image["file_name"])
  own = {
    "data.source": "regions",
    "data.root": str(tmp_path),
    "data.annotations": str(objects),
  }
  data = defaults().replace(own).data
  source = training_crops.open_split(data, "train")
  name_of = {category["id"]: category["name"] for category in value["categories"]}
  crops = iter(range(len(source)))
  for entry in value["images"]:
    image = np.asarray(Image.open(tmp_path / entry["file_name"]))
    for row in value["annotations"]:
      if row["image_id"] != entry["id"] or row["iscrowd"]:
        continue
      index = next(crops)
      assert source.names[source.labels[index]] == name_of[row["category_id"]]
      if "segmentation" in row:
        shapes = pycoco_mask.frPyObjects(row["segmentation"], *image.shape[:2])
        mask = pycoco_mask.decode(pycoco_mask.merge(shapes)).astype(bool)
      else:
        x, y, width, height = row["bbox"]
        rows, columns = np.arange(image.shape[0])[:, None], np.arange(image.shape[1])
        # Every pixel that the box touches.
        mask = (
          (columns > x - 1)
          & (columns < x + width)
          & (rows > y - 1)
          & (rows < y + height)
        )
      np.testing.assert_allclose(
        pixels_of(source, index), expected_crop(image, mask), atol=1
      )
  assert next(crops, None) is None
  (tmp_path / "0.png").write_bytes(b"no image")
  with pytest.raises(InputError, match=r"0\.png"):
    source.replace(image_size=8).image(0)


@pytest.mark.parametrize(
  ("changes", "error"),
  [({"names": ""}, InputError), ({"annotations": "nowhere"}, ConfigError)],
)
def test_bad_input_is_one_line(labelled, changes, error):
  data = of_labels(labelled, **changes)
  own = {
    f"data.{n}": data.flat()[n] for n in ("source", "root", "annotations", "names")
  }
  with pytest.raises(error) as caught:
    validate(small_config(**{"data.n_classes": 0, "batch_size": 8}).replace(own))
    opening.open_source(data, "train")
  assert "\n" not in str(caught.value)


def test_upright_is_pillows_exif_transpose(tmp_path):
  for orientation in range(10):  # 1 to 8 have a meaning
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(natural_image(4, 75, 100), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    (tmp_path / "image").write_bytes(encoded)
    assert label_images.image_size(tmp_path / "image", True) == expected.size[::-1]
    np.testing.assert_array_equal(
      label_images.read_rgb(tmp_path / "image", True), expected
    )
