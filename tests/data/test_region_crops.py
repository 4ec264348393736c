"""Crops of annotated regions as an image source: pixels, classes, bad input, a training."""

import io
import json
import pickle

import numpy as np
from PIL import Image
from pycocotools import mask as pycoco_mask
import pytest

from pomp_jax import inputs
from pomp_jax.config import ConfigError, fields, validate
from pomp_jax.data import region_crops
from pomp_jax.data.source import Source, SourceError
from pomp_jax.errors import InputError
from pomp_jax.files.prompt_file import Prompt, load_prompt, save_prompt
from pomp_jax.inputs import stored
from pomp_jax.jobs import pretrain
from tests.support.detection_cases import random_annotations
from tests.support.small_run import small_config

NAMES = "cat\tbase\t7\nsky\tnovel\t3\nstar\tbase\t9\nhouse\t-\t2\n"
FILL = np.array([122.77, 116.75, 104.09])  # CLIP's mean


@pytest.fixture(autouse=True)
def nothing_remembered():
  for function in (stored._open_split, stored._divided, stored._log_once):
    function.cache_clear()


@pytest.fixture
def labelled(tmp_path):
  """Images, and label images whose values are those of a list."""
  rng = np.random.default_rng(0)
  for name in ("images", "labels"):
    (tmp_path / name).mkdir()
  (tmp_path / "names.txt").write_text(NAMES)
  for number in range(6):
    image = rng.integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    blocks = rng.choice([7, 3, 9, 2, 255], (3, 5)).astype(np.uint8)
    labels = np.kron(blocks, np.ones((8, 8), np.uint8))
    Image.fromarray(labels).save(tmp_path / "labels" / f"{number}.png")
  return tmp_path


def of_labels(root, **changes):
  folders = {"root": str(root / "images"), "annotations": str(root / "labels")}
  names = {"names": str(root / "names.txt")}
  return fields.Data(source="regions", **folders | names | changes)


def pixels_of(source, index):
  return np.asarray(Image.open(io.BytesIO(source.encoded(index))))


def expected_crop(image, mask):
  rows, columns = np.nonzero(mask)
  filled = np.where(mask[..., None], image, FILL)
  return filled[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_each_class_of_a_label_image_is_an_image(labelled):
  source = region_crops.open_split(of_labels(labelled), "train")
  assert isinstance(source, Source)
  # The novel class is left out.
  assert source.names == ("cat", "star", "house")
  values = (7, 9, 2)
  seen = []
  for index, key in enumerate(source.keys.tolist()):
    stem, value = key.split(":")[0], values[source.labels[index]]
    image, labels = (
      np.asarray(Image.open(labelled / folder / f"{stem}.png")) for folder in ("images", "labels")
    )
    np.testing.assert_allclose(
      pixels_of(source, index), expected_crop(image, labels == value), atol=1
    )
    seen.append((int(stem), value))
  every = [
    (number, value)
    for number in range(6)
    for value in values
    if (np.asarray(Image.open(labelled / "labels" / f"{number}.png")) == value).any()
  ]
  assert sorted(seen) == sorted(every)
  copy = pickle.loads(pickle.dumps(source))
  assert copy.encoded(3) == source.encoded(3)


def test_classes_of_label_images_are_remembered(labelled, monkeypatch):
  """Until a label image changes."""
  data = of_labels(labelled, cache=str(labelled / "cache"))
  first = region_crops.open_split(data, "train")
  with monkeypatch.context() as patch:
    patch.setattr(region_crops.PixelFolder, "labels", None)
    again = region_crops.open_split(data, "train")
  assert again.keys.tolist() == first.keys.tolist()
  np.testing.assert_array_equal(again.labels, first.labels)
  Image.new("L", (40, 24), 9).save(labelled / "labels" / "2.png")
  keys = [key for key in first.keys.tolist() if not key.startswith("2:")]
  changed = region_crops.open_split(data, "train").keys.tolist()
  assert sorted(changed) == sorted([*keys, "2:2"])


def write_objects(root):
  value = random_annotations(0)
  for row in value["annotations"][:2]:
    del row["segmentation"]
    row["iscrowd"] = 0
  (root / "objects.json").write_text(json.dumps(value))
  rng = np.random.default_rng(0)
  for image in value["images"]:
    pixels = rng.integers(0, 256, (image["height"], image["width"], 3), np.uint8)
    Image.fromarray(pixels).save(root / image["file_name"])
  return value


def of_objects(root, **changes):
  settings = {"root": str(root), "annotations": str(root / "objects.json")}
  return fields.Data(source="regions", **settings | changes)


def test_each_object_of_a_json_is_an_image(tmp_path):
  value = write_objects(tmp_path)
  source = region_crops.open_split(of_objects(tmp_path), "train")
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
        mask = (columns > x - 1) & (columns < x + width) & (rows > y - 1) & (rows < y + height)
      np.testing.assert_allclose(pixels_of(source, index), expected_crop(image, mask), atol=1)
  assert next(crops, None) is None


def config_of(data):
  """A short training of a prompt on a source of regions."""
  names = ("source", "root", "annotations", "names", "validation_share")
  return small_config(**{"data.n_classes": 0, "batch_size": 8}).replace(
    {f"data.{name}": getattr(data, name) for name in names}
  )


def test_a_prompt_from_a_file_is_tuned_on_crops(labelled, tmp_path):
  start = np.random.default_rng(1).normal(0, 0.02, (2, 64)).astype(np.float32)
  save_prompt(tmp_path / "start.npz", Prompt(start, "world", "end"))
  changes = {"data.augment": "crop_flip", "negatives": "all", "prompt.m": 2, "steps": 4}
  changes |= {"prompt.init": str(tmp_path / "start.npz"), "optim.lr": 0.02}
  config = config_of(of_labels(labelled, validation_share=0.3)).replace(changes)
  validate(config)
  pretrain.check(config, str(tmp_path / "run"))
  results = pretrain.run(config, str(tmp_path / "run"))
  assert set(results["top1"]) == {"test"}
  tuned = load_prompt(tmp_path / "run" / "prompt.npz").context
  moved = np.abs(tuned - start).max()
  assert tuned.shape == (2, 64) and 0 < moved < 0.5


def write_small_label(root):
  Image.new("L", (5, 5)).save(root / "labels" / "2.png")


def write_novel_names(root):
  (root / "names.txt").write_text(NAMES.replace("base", "novel").replace("-", "novel"))


def write_objects_without_an_image(root):
  write_objects(root)
  (root / "3.png").unlink()


@pytest.mark.parametrize(
  ("fields_of", "changes", "spoil", "error"),
  [
    (of_labels, {"names": ""}, None, InputError),
    (of_labels, {"annotations": "nowhere"}, None, ConfigError),
    (of_labels, {"names": "coco_stufff"}, None, ConfigError),
    (of_labels, {}, write_small_label, InputError),
    (of_labels, {}, write_novel_names, SourceError),
    (of_objects, {}, write_objects_without_an_image, InputError),
  ],
)
def test_bad_input_is_one_line(labelled, fields_of, changes, spoil, error):
  if spoil:
    spoil(labelled)
  data = fields_of(labelled, **changes)
  with pytest.raises(error) as caught:
    validate(config_of(data))
    inputs.open_source(data, "train")
  assert "\n" not in str(caught.value)


def test_an_unreadable_image_names_its_region(tmp_path):
  write_objects(tmp_path)
  source = region_crops.open_split(of_objects(tmp_path), "train").sized(8)
  (tmp_path / "0.png").write_bytes(b"no image")
  with pytest.raises(InputError, match=r"0\.png"):
    source.image(0)
