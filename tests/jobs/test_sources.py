"""Images that `config.data` names: splits, what stands for missing ones, halves, a whole run."""

import json
import re

import numpy as np
from PIL import Image
import pytest
from small_run import small_config

from pomp_jax import world
from pomp_jax.config import ConfigError, validate
from pomp_jax.data.source import SourceError, StoredImages
from pomp_jax.jobs import inputs, pretrain, sources


@pytest.fixture(autouse=True)
def nothing_remembered():
  for function in (sources._open, sources._train, sources._left_over, sources._coop):
    function.cache_clear()


def save(folder, split, count, names, suffix=".png", start=0):
  """`count` images of the world's own for each of some of its classes, a folder a class."""
  source = world.source(split, images_per_class=start + count)
  label_of = {name: label for label, name in enumerate(source.names)}
  for name in names:
    (folder / name).mkdir(parents=True, exist_ok=True)
    rows = label_of[name] * (start + count) + np.arange(start, start + count)
    for index, image in enumerate(source.images(rows)):
      Image.fromarray(image).save(folder / name / f"{index}{suffix}", quality=95)


NAMES = world.class_names("base")[::2500]  # 9 of them


def data(folder, **changes):
  config = small_config(**{"data.n_classes": 0, "data.source": "folder", "data.root": str(folder)})
  config.update_from_flattened_dict({f"data.{name}": value for name, value in changes.items()})
  validate(config)
  return config.data


@pytest.fixture
def flat(tmp_path):
  save(tmp_path / "flat", "train", 6, NAMES)
  return tmp_path / "flat"


def keys(source):
  return set(source.keys.tolist())


def test_stored_images_are_the_images(flat):
  source = inputs.open_source(data(flat), "train", images_per_class=1)
  assert isinstance(source, StoredImages)
  assert source.names == tuple(sorted(NAMES))
  assert len(source) == 54  # images_per_class is the world's
  expected = world.source("train", images_per_class=6)
  label = expected.names.index(source.names[source.labels[20]])
  drawn = expected.images(np.array([6 * label + 2]))
  np.testing.assert_array_equal(source.sized(40).images(np.array([20])), drawn)


def test_splits_that_are_missing(flat, tmp_path):
  """What evaluates is, if there are any, what the training does not see."""
  whole = data(flat)
  for split in ("validation", "test"):
    assert keys(inputs.open_source(whole, split)) == keys(inputs.open_source(whole, "train"))
  few = data(flat, shots=2)
  train = inputs.open_source(few, "train")
  assert np.bincount(train.labels).tolist() == [2] * 9
  for split in ("validation", "test"):
    rest = inputs.open_source(few, split)
    assert len(rest) == 36 and not keys(rest) & keys(train)
  assert keys(inputs.open_source(data(flat, shots=2, shots_seed=5), "train")) != keys(train)

  root = tmp_path / "split"
  save(root / "train", "train", 3, NAMES)
  save(root / "test", "base", 2, NAMES[:5])
  assert len(inputs.open_source(data(root), "test")) == 10
  assert len(inputs.open_source(data(root), "validation")) == 10
  assert len(inputs.open_source(data(root, shots=1), "validation")) == 18
  save(root / "val", "validation", 1, NAMES)
  sources._open.cache_clear()
  assert len(inputs.open_source(data(root), "validation")) == 9
  # A class may be missing in a split for testing, whose names are the training's all the same.
  assert inputs.open_source(data(root), "test").names == tuple(sorted(NAMES))


def test_halves(flat):
  every = data(flat)
  assert inputs.evaluation_splits(every) == ("test",)
  base = data(flat, classes="base")
  assert inputs.evaluation_splits(base) == ("base", "new")
  train = inputs.open_source(base, "train")
  assert train.names == tuple(sorted(NAMES)[:5])
  assert set(train.labels.tolist()) == set(range(5))
  new = inputs.open_source(base, "new")
  assert new.names == tuple(sorted(NAMES)[5:])
  assert all(
    key.startswith(new.names[label]) for key, label in zip(new.keys, new.labels, strict=True)
  )
  assert inputs.open_source(data(flat, classes="new"), "train").names == new.names
  assert inputs.n_training_classes(base) == 5
  two = data(flat, classes="base", n_classes=2)
  assert inputs.open_source(two, "train").names == (train.names[0], train.names[2])
  assert inputs.n_training_classes(two) == 2
  assert len(inputs.open_source(every, "test", n_images=7)) == 7


def test_names(flat, tmp_path):
  some = tmp_path / "some.txt"
  some.write_text(f"{NAMES[3]}\n{NAMES[1]}\n")
  source = inputs.open_source(data(flat, names=str(some)), "train")
  assert source.names == (NAMES[3], NAMES[1])
  some = tmp_path / "others.txt"
  some.write_text(f"{NAMES[3]}\nzebra\n")
  with pytest.raises(SourceError, match=r"1 of the list's 2 classes .* such as 'zebra'"):
    inputs.n_training_classes(data(flat, names=str(some)))


def test_coop_and_its_names(tmp_path):
  split = {
    part: [[f"{part}{i}.jpg", i % 3, "abc"[i % 3]] for i in range(count)]
    for part, count in (("train", 9), ("val", 6), ("test", 12))
  }
  folder = tmp_path / "dtd"
  (folder / "images").mkdir(parents=True)
  for items in split.values():
    for path, _, _ in items:
      Image.new("RGB", (8, 8)).save(folder / "images" / path)
  (folder / "split_zhou_DescribableTextures.json").write_text(json.dumps(split))
  settings = {"source": "coop", "dataset": "dtd"}
  few = data(tmp_path, shots=2, **settings)
  assert [len(inputs.open_source(few, part)) for part in ("train", "validation", "test")] == [
    *(6, 6, 12)
  ]
  names = tmp_path / "names.txt"
  names.write_text("one\ntwo\nthree\n")
  renamed = inputs.open_source(data(tmp_path, names=str(names), **settings), "test")
  assert renamed.names == ("one", "two", "three")
  names.write_text("one\ntwo\n")
  with pytest.raises(ConfigError, match=r"data\.names: .* takes 3 names; this has 2"):
    inputs.n_training_classes(data(tmp_path, names=str(names), **settings))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"source": "folders"}, "data.source: got 'folders', takes one of .*did you mean 'folder'"),
    ({"source": "world"}, "data.root: got '.*', takes '' where data.source='world'"),
    ({"source": "world", "root": "", "shots": 4}, "data.shots: got 4, takes 0 where"),
    ({"root": "nowhere"}, "data.root: got 'nowhere', takes a folder that exists"),
    ({"root": ""}, "data.root: got '', takes a folder that exists"),
    ({"dataset": "food101"}, "data.dataset: got 'food101', takes '' where"),
    ({"source": "coop", "dataset": "cats"}, "data.dataset: got 'cats', takes one of caltech101"),
    ({"source": "tfds"}, "data.dataset: got '', takes a data set of TFDS"),
    ({"names": "nolist"}, "data.names: got 'nolist', takes a file of names that exists, or one"),
    ({"classes": "old"}, "data.classes: got 'old', takes one of all, base, new"),
    ({"shots": -1}, "data.shots: got -1, takes 0 or more"),
  ],
)
def test_fields_that_can_not_be(tmp_path, changes, message):
  with pytest.raises(ConfigError, match=message):
    data(tmp_path, **changes)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({}, "no folders of classes in it"),
    ({"source": "tfds", "dataset": "food101"}, "the data set is not prepared; TFDS does it"),
    ({"source": "tfds", "dataset": "foods"}, "'foods' is unknown to TFDS and not prepared in"),
    ({"source": "coop", "dataset": "eurosat"}, "split_zhou_EuroSAT.json: can't be read"),
    ({"source": "coop", "dataset": "imagenet_a"}, "imagenet-a: can't be read"),
  ],
)
def test_data_that_is_not_there_is_found_before_anything_is_written(tmp_path, changes, message):
  root = tmp_path / "data"
  root.mkdir()
  config = small_config(**{"data.n_classes": 0})
  config.data = data(root, **({"source": "folder"} | changes))
  with pytest.raises(SourceError, match=message) as error:
    pretrain.check(config, str(tmp_path / "run"))
  assert "\n" not in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_test_set_alone_can_not_train(tmp_path):
  save(tmp_path / "test", "base", 1, NAMES)
  with pytest.raises(SourceError, match="has no images to train with"):
    inputs.n_training_classes(data(tmp_path))


def test_a_run_on_a_folder_of_jpegs(tmp_path):
  """The base classes are learned on; their pictures and those of new classes are recognised."""
  for folder, split, count in (("train", "train", 4), ("test", "base", 3)):
    save(tmp_path / "data" / folder, split, count, NAMES, ".jpg")
  config = small_config(
    **{
      "data.source": "folder",
      "data.root": str(tmp_path / "data"),
      "data.n_classes": 0,
      "data.classes": "base",
      "data.shots": 2,
      "k": 5,
      "batch_size": 8,
      "steps": 4,
    }
  )
  validate(config)
  pretrain.check(config, str(tmp_path / "run"))
  results = pretrain.run(config, str(tmp_path / "run"))
  assert results["n_classes"] == 5
  assert results["eval_classes"] == {"base": 5, "new": 4}
  # Chance is 20 and 25%.
  assert results["eval"]["base"]["prompt"]["top1"] > 0.6
  assert results["eval"]["new"]["prompt"]["top1"] > 0.6
  assert (tmp_path / "run/plots/predictions.png").exists()
  moved = config.copy_and_resolve_references()
  (tmp_path / "data").rename(tmp_path / "moved")
  moved.data.root = str(tmp_path / "moved")
  pretrain.check(moved, str(tmp_path / "run"))
  moved.data.shots = 1
  with pytest.raises(ConfigError, match=re.escape("config.data.shots: got 1, takes 2, with which")):
    pretrain.check(moved, str(tmp_path / "run"))
