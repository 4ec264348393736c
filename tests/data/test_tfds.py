"""TFDS's own evaluation sets through its `mock_data`, and what can't be opened."""

import io
import pickle
import re
from types import SimpleNamespace

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features import bounding_boxes, image_feature, video_feature
import tensorflow_datasets.video.ucf101

from pomp_jax.data.class_lists import ClassList, load_class_list
from pomp_jax.data.images import ImageError
from pomp_jax.data.prepare.build import Shard, shard_name, write_metadata
from pomp_jax.data.source import SourceError
from pomp_jax.data.tfds import open_test_set, open_tfds, tfds_name, tfds_splits
from pomp_jax.files.array_cache import ArrayCache

SETS = {
  "imagenet1k": "validation",
  "imagenet_v2": "test",
  "imagenet_sketch": "test",
  "imagenet_a": "test",
  "imagenet_r": "test",
  "caltech101": "test",
  "oxford_pets": "test",
  "stanford_cars": "test",
  "flowers102": "test",
  "food101": "validation",
  "sun397": "test",
  "dtd": "test",
  "eurosat": "train",
  "ucf101": "test",
}


@pytest.fixture
def mocked(request, monkeypatch):
  """TFDS's fake examples; Pillow in the place of TensorFlow's image encoder, and boxes as drawn."""

  def encode(self, image):
    buffer = io.BytesIO()
    Image.fromarray(np.squeeze(image)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()

  monkeypatch.setattr(image_feature._ImageEncoder, "_encode_image", encode)
  # All that a video's feature asks TensorFlow for is a type.
  types = SimpleNamespace(dtypes=SimpleNamespace(as_dtype=np.dtype))
  monkeypatch.setattr(video_feature, "tf", types)
  monkeypatch.setattr(bounding_boxes.BBoxFeature, "encode_example", lambda self, box: box)
  # A video is up to 50 pictures.
  n_examples = 3 if "ucf101" in request.node.name else 40
  with tfds.testing.mock_data(num_examples=n_examples):
    yield n_examples


def words(name):
  """Its words in the singular; of SUN397's "/a/abbey" without the letter."""
  split = re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()
  return {word.rstrip("s") for word in re.findall("[a-z]{2,}|[0-9]+", split)}


@pytest.mark.parametrize("name", SETS)
def test_every_evaluation_set_has_the_right_names_in_the_right_order(mocked, name):
  source = open_tfds(name, SETS[name]).sized(4)
  classes = load_class_list(name)
  assert source.names == classes.names
  # The labels that TFDS gives the same records, in its own words.
  builder = tfds.builder(tfds_name(name))
  labels = builder.info.features["label"]
  own = [labels.int2str(int(example["label"])) for example in builder.as_data_source(SETS[name])]
  rows = [int(key.rpartition("/")[2]) for key in source.keys]
  for row, label in zip(rows, source.labels, strict=True):
    if classes.synsets:
      assert classes.synsets[label] == own[row]
    else:
      assert words(own[row]) and words(own[row]) <= words(classes.names[label])
  for row in set(range(mocked)) - set(rows):
    # CoOp's Caltech101 has no such classes; the ImageNets of 200 have not all of a thousand.
    if classes.synsets:
      assert own[row] not in classes.synsets
    else:
      assert own[row] in ("background_google", "faces_easy")
  assert source.encoded(0)[:4] == b"\x89PNG"
  assert source.images(np.arange(2)).shape == (2, 4, 4, 3)


def test_any_other_set_has_tfds_names(mocked):
  source = open_tfds("rock_paper_scissors", "test").sized(4)
  assert source.names == ("rock", "paper", "scissors")
  turned = open_tfds("rock_paper_scissors", "test", classes=ClassList(source.names[::-1]))
  np.testing.assert_array_equal(turned.labels, 2 - source.labels)
  with pytest.raises(SourceError, match="scissors: 1 of the list's 2 classes .* such as 'well'"):
    open_tfds("rock_paper_scissors", "test", classes=ClassList(("rock", "well")))


def png(level):
  buffer = io.BytesIO()
  Image.new("RGB", (6, 6), (level,) * 3).save(buffer, "PNG")
  return buffer.getvalue()


@pytest.fixture
def prepared(tmp_path):
  """A set of three classes, seven images in two shards, called as one of TFDS's is not."""
  folder = tmp_path / "shades/1.0.0"
  folder.mkdir(parents=True)
  lengths, size = [], 0
  for shard, rows in enumerate((range(4), range(4, 7))):
    writer = Shard(folder / shard_name("shades", "train", shard, 2))
    for row in rows:
      writer.write(png(30 * row), row % 3, f"{row}.png")
    writer.close()
    lengths.append(writer.length)
    size += writer.num_bytes
  write_metadata(
    folder,
    "shades",
    label_names=("dark", "grey", "light"),
    splits={"train": (lengths, size)},
    description="shades",
  )
  return tmp_path


def test_images_come_from_their_records(prepared):
  source = open_tfds("shades", "train", root=prepared).sized(6)
  assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
  assert source.images(np.arange(7))[:, 3, 3, 0].tolist() == [0, 30, 60, 90, 120, 150, 180]
  part = pickle.loads(pickle.dumps(source.subset(np.array([6, 1]))))
  assert part.encoded(0) == png(180)
  two = open_tfds("shades", "train", root=prepared, classes=ClassList(("light", "dark")))
  assert two.keys.tolist() == [f"shades/train/{row:08d}" for row in (0, 2, 3, 5, 6)]
  assert two.labels.tolist() == [1, 0, 1, 0, 1]
  assert two.encoded(1) == png(60)


def test_labels_are_read_once(prepared, monkeypatch):
  cache = prepared / "cache"
  open_tfds("shades", "train", root=prepared, cache=ArrayCache(cache))
  monkeypatch.setattr("pomp_jax.data.tfds.Records.labels", None)
  again = open_tfds("shades", "train", root=prepared, cache=ArrayCache(cache))
  assert again.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_what_is_not_there(prepared):
  for call, message in (
    (lambda: tfds_splits("shade", prepared), "'shade' is unknown to TFDS and not prepared in"),
    (lambda: tfds_splits("food101", prepared), r"not prepared; .*tfds build food101 --file_format"),
    (lambda: tfds_splits("food101/x", prepared), "BuilderConfig x not found"),
    (lambda: open_tfds("shades", "test", root=prepared), "Unknown split 'test'"),
    (lambda: open_tfds("shades", "train", root=prepared, classes=ClassList(("red",))), "'red'"),
  ):
    with pytest.raises(SourceError, match=message) as error:
      call()
    assert "\n" not in str(error.value)


def test_a_known_set_from_its_files(prepared):
  folder = prepared / "food101/2.0.0"
  folder.mkdir(parents=True)
  writer = Shard(folder / shard_name("food101", "validation", 0, 1))
  writer.write(png(0), 16, "0.png")
  writer.close()
  write_metadata(
    folder,
    "food101",
    label_names=tfds.builder("food101").info.features["label"].names,
    splits={"validation": ([1], writer.num_bytes)},
    description="food",
    version="2.0.0",
  )
  for name in ("food101", "food101:2.*.*"):
    assert tfds_splits(name, prepared) == {"validation": "validation"}
    source = open_tfds(name, "validation", root=prepared)
    # TFDS's label 16; the classes before it are 0 to 16 in CoOp's order.
    assert [source.names[label] for label in source.labels] == ["cheesecake"]
    assert source.labels.tolist() == [17]


def test_the_processed_lists_are_read_from_the_records_of_imagenet21k(prepared):
  """The suite's set is a list, `prepare` names its data set after the release."""
  folder = prepared / "imagenet21k/1.0.0"
  folder.mkdir(parents=True)
  released, processed = load_class_list("imagenet21k"), load_class_list("imagenet21k_p_w21")
  writer = Shard(folder / shard_name("imagenet21k", "validation", 0, 1))
  outside = next(one for one in released.synsets if one not in processed.synsets)
  for synset in (processed.synsets[7], outside, processed.synsets[10_449]):
    writer.write(png(0), released.synsets.index(synset), f"{synset}.png")
  writer.close()
  write_metadata(
    folder,
    "imagenet21k",
    label_names=released.synsets,
    splits={"validation": ([3], writer.num_bytes)},
    description="ImageNet-21K",
  )
  source, classes, split = open_test_set(prepared, "imagenet21k_p_w21", processed)
  assert (source.names, classes, split) == (processed.names, processed, "validation")
  assert source.labels.tolist() == [7, 10_449]
  source, *_ = open_test_set(prepared, "imagenet21k", released)
  assert source.labels.tolist() == [
    released.synsets.index(s) for s in (processed.synsets[7], outside, processed.synsets[10_449])
  ]


def test_videos_need_tensorflow_and_the_message_says_what_does_not(prepared):
  with pytest.raises(SourceError, match="ucf101: .*TensorFlow.*coop_ucf101"):
    open_tfds("ucf101", "test", root=prepared)


def test_damaged_records(prepared):
  source = open_tfds("shades", "train", root=prepared)
  path = prepared / "shades/1.0.0" / shard_name("shades", "train", 1, 2)
  data = bytearray(path.read_bytes())
  start = data.find(png(150)[:20])
  data[start - 60 : start + 200] = bytes(260)
  path.write_bytes(data)
  with pytest.raises(ImageError, match="record shades/train/00000005 of "):
    source.images(np.array([5]))
  path.write_bytes(b"")
  with pytest.raises(SourceError, match="can't be read|can't be opened"):
    open_tfds("shades", "train", root=prepared)
