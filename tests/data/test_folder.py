"""A folder a class, with and without folders of splits; few shots and other subsets."""

import collections
import dataclasses
import os
import shutil

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from pomp_jax.data.class_lists import ClassList
from pomp_jax.data.folder import (
  classes_in,
  find_images,
  open_folder,
  open_split,
  split_folders,
)
from pomp_jax.data.images import UNREAD_REASON, ImageError, read_image
from pomp_jax.data.source import Source, SourceError
from pomp_jax.data.subsets import even_sample, few_shot, held_out
from tests.support.small_run import small_config


def picture(path, level=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (20, 24), (level, 0, 0)).save(path)


@pytest.fixture
def root(tmp_path):
  """Three classes, and everything that is to be passed over."""
  for level, name in enumerate(
    ("cat/b.jpg", "cat/a.JPEG", "teddy_bear/x.png", "axe/1.webp")
  ):
    picture(tmp_path / name, 50 * level)
  (tmp_path / "cat/notes.txt").write_text("no image")
  picture(tmp_path / "cat/.hidden.jpg")
  picture(tmp_path / ".cache/a.jpg")
  picture(tmp_path / "loose.jpg")
  picture(tmp_path / "cat/deeper/a.jpg")
  os.symlink(tmp_path / "loose.jpg", tmp_path / "cat/link.jpg")
  os.symlink(tmp_path / "cat", tmp_path / "link")
  os.symlink(tmp_path / "nothing", tmp_path / "cat/nowhere.jpg")
  os.mkfifo(tmp_path / "cat/pipe.jpg")
  (tmp_path / "cat/folder.jpg").mkdir()
  return tmp_path


def open_whole(folder):
  return open_folder(folder, classes_in(folder))


def test_folders_are_classes_in_order_of_name(root):
  source = open_whole(root).replace(image_size=8)
  assert isinstance(source, Source)
  assert source.names == ("axe", "cat", "teddy_bear")
  assert source.keys.tolist() == [
    "axe/1.webp",
    "cat/a.JPEG",
    "cat/b.jpg",
    "teddy_bear/x.png",
  ]
  assert source.labels.tolist() == [0, 1, 1, 2]
  # Levels as they were drawn; JPEG and WebP change them a little.
  np.testing.assert_allclose(
    source.images(np.arange(4))[:, 4, 4, 0], [150, 50, 0, 100], atol=5
  )


def test_stamps_are_those_of_the_images_alone(root):
  source = open_whole(root)
  before = source.stamps()
  assert [line.split()[0] for line in before.splitlines()] == [
    str(root / key) for key in source.keys
  ]
  picture(root / "loose.jpg", 90)
  assert open_whole(root).stamps() == before
  part = source.subset(np.array([0, 3])).stamps()
  os.utime(root / "cat/b.jpg", ns=(10**18, 10**18))
  assert source.stamps() != before
  assert source.subset(np.array([0, 3])).stamps() == part
  # A storage that has no files.
  assert source.replace(storage=object()).stamps() == ""


def test_what_is_not_read_is_said_once(root, caplog):
  for name in ("cat/a.heic", "axe/b.HEIC"):
    (root / name).touch()
  (root / "none").mkdir()
  for _ in range(2):
    open_whole(root)
  assert [record.getMessage() for record in caplog.records] == [
    f"{root}: 1 class folders have no image, such as 'none'",
    f"{root}: 2 folders within class folders are not read, such as 'cat/deeper'",
    f"{root}: 1 files are not read, their suffixes are no image's (.txt 1), such as"
    " 'cat/notes.txt'",
    f"{root}: 2 pictures are skipped: {UNREAD_REASON}, such as 'axe/b.HEIC'",
  ]
  assert open_whole(root).unread == (f"{root}/axe/b.HEIC", f"{root}/cat/a.heic")


def test_splits(root, tmp_path_factory):
  assert split_folders(root) == {"train": root}
  split = tmp_path_factory.mktemp("split")
  train, validation = split / "imagenet21k_train", split / "imagenet21k_val"
  picture(train / "a/1.jpg")
  picture(validation / "a/2.jpg")
  assert split_folders(split) == {"train": train, "validation": validation}
  picture(split / "bus/1.jpg")
  with pytest.raises(
    SourceError, match="'imagenet21k_train' holds class folders, .* 'bus'; expe"
  ):
    split_folders(split)
  # "train" among other things is a thing.
  picture(root / "train/1.jpg")
  assert split_folders(root) == {"train": root}


def test_novel_classes_need_no_training_images(tmp_path):
  """With a list of base classes; without it the training images decide."""
  for file in ("train/cat/a.png", "test/cat/b.png", "test/axe/c.png"):
    picture(tmp_path / file)
  data = small_config(
    **{"data.source": "folder", "data.root": str(tmp_path), "data.n_classes": 0}
  ).data
  base = tmp_path / "base.txt"
  base.write_text("cat\n")
  with_base = dataclasses.replace(data, base=str(base))
  assert open_split(data, "train").names == ("cat",)
  assert open_split(with_base, "train").names == ("axe", "cat")
  assert open_split(with_base, "train").labels.tolist() == [1]
  assert open_split(with_base, "test").labels.tolist() == [0, 1]


def test_what_is_no_folder_of_classes(root):
  picture(root / "twice/teddy bear/a.jpg")
  picture(root / "twice/teddy_bear/a.jpg")
  for synset in ("n00000000", "n01440764"):
    picture(root / "synsets" / synset / "a.jpg")
  for folder in ("empty", "without/cat"):
    (root / folder).mkdir(parents=True)
  three, none = ClassList(("axe", "cat", "dog")), ClassList(("car", "bus"))
  for below, classes, message in (
    ("empty", None, str(root / "empty")),
    ("without", None, str(root / "without")),
    ("nowhere", None, "No such file"),
    ("synsets", None, "synsets: n00000000"),
    ("twice", ClassList(("teddy bear", "axe")), "'teddy bear' and 'teddy_bear'"),
    ("", three, r"1 of .* 3 classes .* 'dog'"),
    ("", none, r"2 of .* 2 classes .* such as 'axe'"),
  ):
    with pytest.raises(SourceError, match=message):
      open_folder(root / below, classes or classes_in(root / below))
  with pytest.raises(SourceError, match="Not a dir"):
    split_folders(root / "loose.jpg")


def test_pictures_that_are_not_read_are_found_on_demand_and_named_where_there_are_no_others(
  tmp_path,
):
  (tmp_path / "cat").mkdir()
  (tmp_path / "cat/a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
  (tmp_path / "cat/notes.txt").touch()
  assert list(find_images(tmp_path, unread=True)) == ["cat/a.HEIC"]
  for read in (find_images, open_whole):
    with pytest.raises(SourceError, match="no images found .*1 files are HEIC.*JPEG"):
      read(tmp_path)
  # Whatever its name is.
  shutil.copy(tmp_path / "cat/a.HEIC", tmp_path / "cat/a.jpg")
  for file in (tmp_path / "cat/a.jpg", (tmp_path / "cat/a.jpg").read_bytes()):
    with pytest.raises(ImageError, match=UNREAD_REASON):
      read_image(file, 8)


def test_images_at_any_depth(root, tmp_path_factory):
  expected = ["axe/1.webp", "cat/a.JPEG", "cat/b.jpg", "cat/deeper/a.jpg", "loose.jpg"]
  found = find_images(root)
  assert list(found) == [*expected, "teddy_bear/x.png"]
  assert all(path == root / key for key, path in found.items())
  assert find_images(root / "loose.jpg") == {"loose.jpg": root / "loose.jpg"}
  # A folder that is given may be a link.
  assert list(find_images(root / "link")) == ["a.JPEG", "b.jpg", "deeper/a.jpg"]
  empty = tmp_path_factory.mktemp("empty")
  with pytest.raises(SourceError, match=rf"{empty}: no images found \(expected \.bmp"):
    find_images(empty)
  with pytest.raises(SourceError, match="none: can't be read"):
    find_images(root / "none")
  assert list(find_images(root / "cat", nested=False)) == ["a.JPEG", "b.jpg"]
  (root / "cat" / os.fsdecode(b"\xff.jpg")).touch()
  for read in (find_images, open_whole):
    with pytest.raises(SourceError, match=f"{root}.*Unicode"):
      read(root)


LABELS = st.lists(st.integers(0, 5), max_size=60)


def keys_of(labels):
  return [f"{label}/{index}.jpg" for index, label in enumerate(labels)]


@given(LABELS, st.sampled_from((1, 2, 4, 8, 16)), st.integers(0, 3))
def test_few_shots_of_each_class_or_all_of_a_small_one(labels, shots, seed):
  chosen = few_shot(np.array(labels, int), keys_of(labels), shots, seed).tolist()
  counts = collections.Counter(labels[index] for index in chosen)
  assert counts == {
    label: min(shots, n) for label, n in collections.Counter(labels).items()
  }
  assert chosen == sorted(set(chosen))
  assert set(chosen) <= set(
    few_shot(np.array(labels, int), keys_of(labels), shots + 1, seed)
  )


@given(LABELS, st.randoms(use_true_random=False))
def test_the_order_of_the_listing_does_not_matter(labels, stream):
  keys, order = (
    np.array(keys_of(labels), str),
    stream.sample(range(len(labels)), len(labels)),
  )
  labels = np.array(labels, int)
  for choose, *numbers in ((few_shot, 2, 3), (even_sample, 7)):
    expected = set(keys[choose(labels, keys, *numbers)])
    order = np.array(order, int)
    assert set(keys[order][choose(labels[order], keys[order], *numbers)]) == expected


@given(LABELS, st.sampled_from((0.0, 0.1, 0.5)), st.sampled_from((0.0, 0.2, 0.4)))
def test_what_is_held_out_is_a_share_of_each_class(labels, first, second):
  rest, parts = held_out(np.array(labels, int), keys_of(labels), (first, second))
  every = [*rest.tolist(), *parts[0].tolist(), *parts[1].tolist()]
  assert sorted(every) == list(range(len(labels)))
  for label, total in collections.Counter(labels).items():
    left, taken = total - 1, []
    for share in (first, second):
      # Halves are rounded up; Python's own `round` takes them to even.
      taken.append(min(left, int(total * share + 0.5)))
      left -= taken[-1]
    assert [sum(labels[i] == label for i in part) for part in parts] == taken


def test_the_choice_is_fixed_for_good():
  # Another hash, or another way to join seed and key, would change everybody's subsets.
  labels = np.zeros(1000, int)
  assert few_shot(labels, keys_of(labels), 4, seed=1).tolist() == [72, 333, 335, 534]
  _, [held] = held_out(labels, keys_of(labels), [0.004])
  assert held.tolist() == [27, 319, 669, 869]


@given(LABELS, st.integers(0, 70))
def test_a_sample_is_even(labels, count):
  chosen = even_sample(np.array(labels, int), keys_of(labels), count)
  assert len(chosen) == min(count, len(labels))
  taken = collections.Counter(labels[index] for index in chosen)
  most = max(taken.values(), default=0)
  for label, size in collections.Counter(labels).items():
    assert taken[label] >= min(size, most - 1)
