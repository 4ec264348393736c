"""TFDS's own evaluation sets through its `mock_data`, what can't be opened, and
buckets."""

import os
import pickle
import re
from types import SimpleNamespace

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features import (
  bounding_boxes,
  image_feature,
  video_feature,
)
import tensorflow_datasets.video.ucf101

from pomp_jax.data.class_lists import CLASS_LISTS, ClassList, load_class_list
from pomp_jax.data.folder import classes_in, open_folder
from pomp_jax.data.images import ImageError
from pomp_jax.data.source import SourceError
from pomp_jax.files.paths import store_of, to_path
from pomp_jax.rooms.data_sets.archives import open_input
from pomp_jax.rooms.data_sets.prepare import (
  Selection,
  Shard,
  build,
  shard_name,
  write_metadata,
)
from pomp_jax.rooms.data_sets.tfds import (
  BUILDERS,
  load_labels,
  open_test_set,
  open_tfds,
  tfds_name,
  tfds_splits,
)
from tests.support import stores
from tests.support.data_files import write_folder
from tests.support.pictures import encode

SPLITS = {"imagenet1k": "validation", "food101": "validation", "eurosat": "train"}
# TFDS lacks ImageNet-21K and FGVC-Aircraft.
SETS = [
  n for n in CLASS_LISTS if not n.startswith("imagenet21k") and n != "fgvc_aircraft"
]


@pytest.fixture
def mocked(request, monkeypatch):
  """TFDS's fake examples; Pillow in the place of TensorFlow's image encoder, and
  boxes as drawn."""

  def to_png(self, image):
    return encode(Image.fromarray(np.squeeze(image)), "PNG", compress_level=0)

  monkeypatch.setattr(image_feature._ImageEncoder, "_encode_image", to_png)
  # All that a video's feature asks TensorFlow for is a type.
  types = SimpleNamespace(dtypes=SimpleNamespace(as_dtype=np.dtype))
  monkeypatch.setattr(video_feature, "tf", types)
  monkeypatch.setattr(
    bounding_boxes.BBoxFeature, "encode_example", lambda self, box: box
  )
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
  split, classes = SPLITS.get(name, "test"), load_class_list(name)
  source = open_tfds(name, split).replace(image_size=4)
  assert source.names == classes.names
  # The labels that TFDS gives the same records, in its own words.
  builder = tfds.builder(tfds_name(name))
  labels = builder.info.features["label"]
  own = [
    labels.int2str(int(example["label"])) for example in builder.as_data_source(split)
  ]
  rows = [int(key.rpartition("/")[2]) for key in source.keys]
  for row, label in zip(rows, source.labels, strict=True):
    if classes.synsets:
      assert classes.synsets[label] == own[row]
    else:
      assert words(own[row]) and words(own[row]) <= words(classes.names[label])
  # The ImageNets of 200 have not all of a thousand, and CoOp's Caltech101 lacks two.
  for row in set(range(mocked)) - set(rows):
    known = classes.synsets or set(labels.names) - {"background_google", "faces_easy"}
    assert own[row] not in known
  assert source.encoded(0)[:4] == b"\x89PNG"
  assert source.images(np.arange(2)).shape == (2, 4, 4, 3)


@pytest.mark.parametrize("name", BUILDERS)
def test_each_class_has_one_label(name):
  labels, class_of_label = load_labels(name)
  assert len(labels) == len(class_of_label)
  assert sorted(class_of_label[class_of_label >= 0]) == list(
    range(len(load_class_list(name)))
  )


def test_any_other_set_has_tfds_names(mocked):
  source = open_tfds("rock_paper_scissors", "test").replace(image_size=4)
  assert source.names == ("rock", "paper", "scissors")
  turned = open_tfds(
    "rock_paper_scissors", "test", classes=ClassList(source.names[::-1])
  )
  np.testing.assert_array_equal(turned.labels, 2 - source.labels)
  with pytest.raises(
    SourceError, match="scissors: 1 of the list's 2 classes .* such as 'well'"
  ):
    open_tfds("rock_paper_scissors", "test", classes=ClassList(("rock", "well")))


def png(level):
  return encode(Image.new("RGB", (6, 6), (level,) * 3), "PNG")


def write_set(root, name, split, shards, label_names):
  """Writes a data set: of each shard, rows of (image, label, file name)."""
  folder = root / name / "1.0.0"
  folder.mkdir(parents=True)
  size = 0
  for number, rows in enumerate(shards):
    writer = Shard(folder / shard_name(name, split, number, len(shards)))
    for row in rows:
      writer.write(*row)
    writer.close()
    size += writer.num_bytes
  write_metadata(
    folder, name, label_names, {split: (list(map(len, shards)), size)}, name
  )


@pytest.fixture
def prepared(tmp_path):
  """A set of three classes, seven images in two shards, called as one of TFDS's is
  not."""
  rows = [(png(30 * row), row % 3, f"{row}.png") for row in range(7)]
  write_set(
    tmp_path, "shades", "train", (rows[:4], rows[4:]), ("dark", "grey", "light")
  )
  return tmp_path


def test_records_of_copied_shards(prepared, monkeypatch):
  """As on S3, where each shard is copied when the first of its records is read."""
  local, copied = open_tfds("shades", "train", root=prepared), []
  ours = "pomp_jax.rooms.data_sets.tfds"
  monkeypatch.setattr(f"{ours}.scheme_of", lambda path: "s3")
  monkeypatch.setattr(f"{ours}.local_copy", lambda path: copied.append(path) or path)
  source = open_tfds("shades", "train", root=prepared)
  # The first of the second shard, before and after others.
  for row in (4, 3, 0, 6, 4):
    assert source.encoded(row) == local.encoded(row)
  assert len(copied) == 2


def test_images_come_from_their_records(prepared):
  source = open_tfds("shades", "train", root=prepared).replace(image_size=6)
  assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
  assert source.images(np.arange(7))[:, 3, 3, 0].tolist() == [
    0,
    30,
    60,
    90,
    120,
    150,
    180,
  ]
  part = pickle.loads(pickle.dumps(source.subset(np.array([6, 1]))))
  assert part.encoded(0) == png(180)
  two = open_tfds(
    "shades", "train", root=prepared, classes=ClassList(("light", "dark"))
  )
  assert two.keys.tolist() == [f"shades/train/{row:08d}" for row in (0, 2, 3, 5, 6)]
  assert two.labels.tolist() == [1, 0, 1, 0, 1]
  assert two.encoded(1) == png(60)


def test_the_stamps_of_a_split_are_those_of_its_shards(prepared):
  source = open_tfds("shades", "train", root=prepared)
  before = source.stamps()
  folder = prepared / "shades/1.0.0"
  (folder / "dataset_info.json").touch()
  assert source.stamps() == source.subset(np.array([6])).stamps() == before
  path = folder / shard_name("shades", "train", 1, 2)
  os.utime(path, ns=(10**18, 10**18))
  assert path.name in before
  assert open_tfds("shades", "train", root=prepared).stamps() != before


@pytest.mark.parametrize(
  ("name", "split", "message"),
  [
    ("shade", "", "'shade' is unknown to TFDS and not prepared in"),
    ("food101", "", r"not prepared; .*tfds build food101 --file_format"),
    ("shades", "test", "Unknown split 'test'"),
    # Videos need TensorFlow, and the message says what does not.
    ("ucf101", "test", "ucf101: .*TensorFlow.*coop_ucf101"),
  ],
)
def test_what_is_not_there(prepared, name, split, message):
  with pytest.raises(SourceError, match=message) as error:
    if split:
      open_tfds(name, split, root=prepared)
    tfds_splits(name, str(prepared))
  assert "\n" not in str(error.value)


def test_the_processed_lists_are_read_from_the_records_of_imagenet21k(prepared):
  """The suite's set is a list, `prepare` names its data set after the release."""
  released, processed = (
    load_class_list("imagenet21k"),
    load_class_list("imagenet21k_p_w21"),
  )
  outside = next(one for one in released.synsets if one not in processed.synsets)
  synsets = (processed.synsets[7], outside, processed.synsets[10_449])
  rows = [
    (png(0), released.synsets.index(synset), f"{synset}.png") for synset in synsets
  ]
  write_set(prepared, "imagenet21k", "validation", [rows], released.synsets)
  source, classes, split = open_test_set(prepared, "imagenet21k_p_w21", processed)
  assert (source.names, classes, split) == (processed.names, processed, "validation")
  assert source.labels.tolist() == [7, 10_449]
  source, *_ = open_test_set(prepared, "imagenet21k", released)
  assert source.labels.tolist() == [label for _, label, _ in rows]


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


@pytest.mark.parametrize("scheme", stores.SCHEMES)
def test_records_and_files_of_a_bucket(scheme, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  images, out = tmp_path / "images", tmp_path / "records"
  write_folder(images, load_class_list("imagenet21k").synsets[1000:1006], 5, ".JPEG")
  build(open_input("imagenet21k", images), out, Selection())
  local = open_tfds("imagenet21k", "train", root=out)
  with stores.running(scheme) as found:
    url = found[scheme].url("data")
    store_of(url).put(f"{out}/", f"{url}/records/", recursive=True)
    store_of(url).put(f"{images}/", f"{url}/images/", recursive=True)
    source = open_tfds("imagenet21k", "train", root=f"{url}/records")
    assert source.keys.tolist() == local.keys.tolist() and source.names == local.names
    for index in (7, 0, len(local) - 1):
      assert source.encoded(index) == local.encoded(index)
    # Without the index of `prepare` the labels are read from the records.
    to_path(f"{url}/records/imagenet21k/1.0.0/index-train.npz").unlink()
    for _ in range(2):
      source = open_tfds(
        "imagenet21k", "train", root=f"{url}/records", cache=f"{url}/labels"
      )
      np.testing.assert_array_equal(source.labels, local.labels)
      # They are read once.
      again = lambda self: pytest.fail("again")
      monkeypatch.setattr("pomp_jax.rooms.data_sets.tfds.Records.labels", again)
    classes, remote = classes_in(images), to_path(f"{url}/images")
    folder, there = (open_folder(images_at, classes) for images_at in (remote, images))
    assert folder.keys.tolist() == there.keys.tolist()
    assert folder.encoded(3) == there.encoded(3)
    with pytest.raises(SourceError):
      open_folder(to_path(f"{url}/missing"), classes)
