"""Images that `config.data` names: splits, what stands for missing ones, halves,
lists."""

import numpy as np
import pytest

from pomp_jax import world
from pomp_jax.config import ConfigError, validate
from pomp_jax.data.source import SourceError
from pomp_jax.evaluate import image_splits, opening
from tests.support.data_files import write_folder, write_world
from tests.support.small_run import small_config

NAMES = world.class_names("base")[::2500]  # 9 of them


def data(folder, **changes):
  config = small_config(
    **{"data.n_classes": 0, "data.source": "folder", "data.root": str(folder)}
  )
  config = config.replace({f"data.{name}": value for name, value in changes.items()})
  validate(config)
  return config.data


@pytest.fixture
def flat(tmp_path):
  write_world(tmp_path / "flat", "train", 6, NAMES)
  return tmp_path / "flat"


def keys(settings, split):
  return set(opening.open_source(settings, split).keys.tolist())


def names_of(settings, split):
  return opening.open_source(settings, split).names


def counts(settings, *splits):
  """Images a class of each split, and that no image is in two of them."""
  opened = [opening.open_source(settings, split) for split in splits]
  every = [key for source in opened for key in source.keys.tolist()]
  assert len(set(every)) == len(every)
  return [np.bincount(source.labels, minlength=9).tolist() for source in opened]


def test_splits_of_a_folder_that_are_missing_are_held_out(flat, tmp_path, caplog):
  """Of 6 images a class 1.2 are for the test and 0.6 for validation, to the nearest."""
  every = {path.relative_to(flat).as_posix() for path in flat.glob("*/*.png")}
  with caplog.at_level("INFO", "pomp_jax"):
    assert opening.evaluation_splits(data(flat)) == ("test",)
  assert "has no split 'test': held out 20% of each class's training" in caplog.text
  parts = ("train", "validation", "test")
  assert counts(data(flat), *parts) == [[4] * 9, [1] * 9, [1] * 9]
  held = [keys(data(flat), part) for part in parts]
  assert set.union(*held) == every
  # By the files' names alone: the same elsewhere, and after another class is there.
  flat.rename(tmp_path / "moved")
  write_world(tmp_path / "moved", "train", 2, world.class_names("base")[1:2])
  moved, added = data(tmp_path / "moved"), world.class_names("base")[1]
  for before, part in zip(held, parts, strict=True):
    assert {key for key in keys(moved, part) if not key.startswith(added)} == before
  other = data(tmp_path / "moved", test_share=0.5, validation_share=0.0)
  assert counts(other, "train", "test")[1][:2] == [3, 3]
  assert keys(other, "validation") == keys(other, "test")


def test_classes_of_few_images_only_train(tmp_path, caplog):
  for count, name in enumerate(NAMES[:6], 1):
    write_world(tmp_path, "train", count, [name])
  with caplog.at_level("INFO", "pomp_jax"):
    found = counts(data(tmp_path), "train", "validation", "test")
  order = [sorted(NAMES[:6]).index(name) for name in NAMES[:6]]
  by_count = [[of_split[label] for label in order] for of_split in found]
  assert by_count == [[1, 2, 2, 3, 3, 4], [0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]]
  assert "images; 2 of " in caplog.text


def test_where_nothing_can_be_held_out_it_is_called_train(tmp_path, caplog):
  write_world(tmp_path, "train", 1, NAMES)
  single = data(tmp_path)
  with caplog.at_level("INFO", "pomp_jax"):
    assert opening.evaluation_splits(single) == ("train",)
  assert "has no split 'test': using the train images instead" in caplog.text
  assert not opening.has_validation(single)
  assert len(opening.open_source(single, "train")) == 9
  # Classes that are not trained on have no training images.
  assert opening.evaluation_splits(data(tmp_path, classes="base")) == (
    "train/base",
    "new",
  )
  # A test set alone can't train.
  write_world(tmp_path / "alone/test", "base", 1, NAMES)
  with pytest.raises(SourceError, match="found test"):
    opening.n_training_classes(data(tmp_path / "alone"))


def test_few_shots_leave_the_test_images_as_they_are(flat):
  few = data(flat, shots=2)
  assert counts(few, "train", "validation", "test") == [[2] * 9, [3] * 9, [1] * 9]
  other = data(flat, shots=2, shots_seed=5)
  assert keys(data(flat), "test") == keys(few, "test") == keys(other, "test")
  assert keys(other, "train") != keys(few, "train")


def test_splits_that_there_are_stay_whole(tmp_path):
  root = tmp_path / "split"
  write_world(root / "train", "train", 5, NAMES)
  write_world(root / "test", "base", 2, NAMES[:5])
  assert opening.evaluation_splits(data(root)) == ("test",)
  assert len(opening.open_source(data(root), "test")) == 10
  assert counts(data(root), "train", "validation") == [[4] * 9, [1] * 9]
  assert len(opening.open_source(data(root, shots=1), "validation")) == 36
  write_world(root / "val", "validation", 1, NAMES)
  image_splits.forget_sources()
  sizes = [
    len(opening.open_source(data(root), split)) for split in ("train", "validation")
  ]
  assert sizes == [45, 9]
  # A class may be missing in a split for testing, whose names are the training's all
  # the same.
  assert names_of(data(root), "test") == tuple(sorted(NAMES))
  # ImageNet's folders: what they are tested on is called what it is.
  (root / "test").rename(tmp_path / "elsewhere")
  assert opening.evaluation_splits(data(root)) == ("validation",)
  base = data(root, classes="base")
  assert opening.evaluation_splits(base) == ("validation/base", "validation/new")
  assert len(opening.open_source(base, "validation/new")) == 4
  assert len(opening.open_source(data(root), "train")) == 45
  with pytest.raises(
    ValueError, match="no split 'test' to evaluate on; there are validation"
  ):
    opening.open_source(data(root), "test")


def test_halves(flat):
  base = data(flat, classes="base")
  assert opening.evaluation_splits(base) == ("base", "new")
  train, new = (opening.open_source(base, split) for split in ("train", "new"))
  assert (train.names, new.names) == (
    tuple(sorted(NAMES)[:5]),
    tuple(sorted(NAMES)[5:]),
  )
  assert set(train.labels.tolist()) == set(range(5))
  folders = [key.split("/")[0] for key in new.keys.tolist()]
  assert folders == [new.names[label] for label in new.labels]
  assert names_of(data(flat, classes="new"), "train") == new.names
  two = data(flat, classes="base", n_classes=2)
  assert names_of(two, "train") == (train.names[0], train.names[2])
  assert [opening.n_training_classes(one) for one in (base, two)] == [5, 2]
  assert len(opening.open_source(data(flat), "test", n_images=7)) == 7


def listed(folder, name, names):
  (folder / name).write_text("".join(f"{item}\n" for item in names))
  return str(folder / name)


def test_base_and_novel_by_lists(flat, tmp_path):
  base, novel = (
    listed(tmp_path, "b", NAMES[4:1:-1]),
    listed(tmp_path, "n", NAMES[7:5:-1]),
  )
  both = data(flat, base=base, novel=novel)
  assert opening.evaluation_splits(both) == ("base", "novel")
  train = opening.open_source(both, "train")
  assert train.names == NAMES[4:1:-1]  # in the order of the list
  assert opening.n_training_classes(both) == 3
  assert np.bincount(train.labels).tolist() == [4, 4, 4]
  for split, names, count in (("base", NAMES[4:1:-1], 1), ("novel", NAMES[7:5:-1], 6)):
    source = opening.open_source(both, split)
    assert source.names == names
    # Nothing of the novel classes is trained on, so all their images are for the test.
    assert np.bincount(source.labels).tolist() == [count] * len(names)
    for key, label in zip(source.keys.tolist(), source.labels, strict=True):
      assert key.split("/")[0] == names[label]
    assert not keys(both, split) & keys(both, "train")
  assert set(names_of(data(flat, base=base), "novel")) == set(NAMES) - set(NAMES[2:5])
  # Only the base classes need training images.
  write_world(tmp_path / "split/train", "train", 2, NAMES[:3])
  write_world(tmp_path / "split/test", "base", 1, NAMES)
  some = data(tmp_path / "split", base=listed(tmp_path, "some", NAMES[:3]))
  assert (opening.n_training_classes(some), len(names_of(some, "novel"))) == (3, 6)
  with pytest.raises(
    SourceError, match=rf"no training image of data.base's '{NAMES[3]}'"
  ):
    opening.n_training_classes(
      data(tmp_path / "split", base=listed(tmp_path, "w", NAMES[:4]))
    )


@pytest.mark.parametrize(
  ("lists", "message"),
  [
    (
      {"base": NAMES[:2], "novel": NAMES[1:3]},
      f"data.novel: .*; '{NAMES[1]}' is in both",
    ),
    (
      {"base": [NAMES[0], "zebra"]},
      "data.base: 1 of the list's 2 classes .* such as 'zebra'",
    ),
    (
      {"base": NAMES[:2], "novel": ["zebra", NAMES[5]]},
      "data.novel: 1 of .* such as 'zebra'",
    ),
    ({"base": NAMES}, "data.base: .* a list that leaves classes for novel ones"),
    ({"names": [NAMES[3], "zebra"]}, "1 of the list's 2 classes .* such as 'zebra'"),
  ],
)
def test_lists_that_can_not_be(flat, tmp_path, lists, message):
  files = {
    field: listed(tmp_path, f"{field}.txt", names) for field, names in lists.items()
  }
  with pytest.raises((ConfigError, SourceError), match=message) as error:
    opening.n_training_classes(data(flat, **files))
  assert "\n" not in str(error.value)


def test_a_class_without_a_picture_is_an_answer_where_a_list_names_it(
  flat, tmp_path, caplog
):
  empty = "zebra"
  (flat / empty).mkdir()
  assert empty not in names_of(data(flat), "test")
  assert (
    f"1 of 10 classes have no picture in any split and are no answers, such as {empty!r}"
    in (caplog.text)
  )
  base, novel = (
    listed(tmp_path, "b", NAMES[:3]),
    listed(tmp_path, "n", [NAMES[4], empty]),
  )
  assert names_of(data(flat, base=base, novel=novel), "novel") == (NAMES[4], empty)
  # Without a list, the novel classes are those that have pictures.
  assert set(names_of(data(flat, base=base), "novel")) == set(NAMES[3:])


@pytest.mark.parametrize(
  ("duplicates", "n_images", "fate"),
  [
    ("drop", 8, "are dropped (data.duplicates=keep keeps them)"),
    ("keep", 9, "are kept (data.duplicates=keep)"),
  ],
)
def test_what_becomes_of_duplicates_is_said(
  tmp_path, caplog, duplicates, n_images, fate
):
  write_world(tmp_path / "data/train", "train", 2, NAMES)
  write_world(tmp_path / "data/test", "base", 1, NAMES)
  one = next((tmp_path / "data/train" / NAMES[0]).iterdir())
  same = next((tmp_path / "data/test" / NAMES[0]).iterdir())
  same.write_bytes(one.read_bytes())
  settings = data(tmp_path / "data", duplicates=duplicates)
  assert len(opening.open_source(settings, "test")) == n_images
  assert fate in caplog.text
  assert opening.left_out(settings)["duplicates"]["test"] == {str(same): str(one)}


def test_names_and_lists_of_wordnet_ids(flat, tmp_path):
  some = listed(tmp_path, "some.txt", [NAMES[3], NAMES[1]])
  assert names_of(data(flat, names=some), "train") == (NAMES[3], NAMES[1])
  write_folder(tmp_path / "data", ("n02084071", "n01440764", "n02121620"), 1)
  both = data(tmp_path / "data", base=listed(tmp_path, "b", ["n02084071"]))
  assert names_of(both, "train") == ("dog",)
  assert names_of(both, "novel") == ("tench", "cat")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"source": "world", "root": "", "shots": 4},
      "data.shots: got 4, expected 0 where",
    ),
    ({"root": "nowhere"}, "data.root: got 'nowhere', expected a folder that exists"),
    (
      {"source": "coop", "dataset": "cats"},
      "data.dataset: got 'cats', expected one of caltech101",
    ),
    (
      {"names": "nolist"},
      "data.names: got 'nolist', expected a file of names that exists, or one",
    ),
    ({"novel": "dtd"}, "data.novel: got 'dtd', expected '' where data.base is empty"),
    (
      {"base": "dtd", "classes": "base"},
      "data.classes: got 'base', expected 'all' where",
    ),
    (
      {"test_share": 0.9},
      "data.validation_share: got 0.1, expected less than 1 together",
    ),
  ],
)
def test_fields_that_can_not_be(tmp_path, changes, message):
  with pytest.raises(ConfigError, match=message):
    data(tmp_path, **changes)
