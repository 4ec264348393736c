"""A folder a class, with and without folders of splits."""

import os

import numpy as np
from PIL import Image
import pytest

from pomp_jax.data.class_lists import ClassList
from pomp_jax.data.folder import find_images, open_folder, split_folders
from pomp_jax.data.source import Source, SourceError


def picture(path, level=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (20, 24), (level, 0, 0)).save(path)


@pytest.fixture
def root(tmp_path):
  """Three classes, and everything that is to be passed over."""
  for level, name in enumerate(("cat/b.jpg", "cat/a.JPEG", "teddy_bear/x.png", "axe/1.webp")):
    picture(tmp_path / name, 50 * level)
  (tmp_path / "cat/notes.txt").write_text("no image")
  picture(tmp_path / "cat/.hidden.jpg")
  picture(tmp_path / ".cache/a.jpg")
  picture(tmp_path / "loose.jpg")
  picture(tmp_path / "cat/deeper/a.jpg")
  os.symlink(tmp_path / "loose.jpg", tmp_path / "cat/link.jpg")
  os.symlink(tmp_path / "cat", tmp_path / "link")
  return tmp_path


def test_folders_are_classes_in_order_of_name(root):
  source = open_folder(root).sized(8)
  assert isinstance(source, Source)
  assert source.names == ("axe", "cat", "teddy_bear")
  assert source.keys.tolist() == ["axe/1.webp", "cat/a.JPEG", "cat/b.jpg", "teddy_bear/x.png"]
  assert source.labels.tolist() == [0, 1, 1, 2]
  assert source.encoded(3) == (root / "teddy_bear/x.png").read_bytes()
  # Levels as they were drawn; JPEG and WebP change them a little.
  np.testing.assert_allclose(source.images(np.arange(4))[:, 4, 4, 0], [150, 50, 0, 100], atol=5)


def test_a_class_list_gives_names_and_order_and_leaves_folders_out(root):
  source = open_folder(root, ClassList(("teddy bear", "axe")))
  assert source.names == ("teddy bear", "axe")
  assert source.keys.tolist() == ["teddy_bear/x.png", "axe/1.webp"]
  assert source.labels.tolist() == [0, 1]
  # A split may lack classes.
  source = open_folder(root, ClassList(("axe", "cat", "dog")), all_classes=False)
  assert source.names == ("axe", "cat", "dog")
  assert source.labels.tolist() == [0, 1, 1]


def test_synsets_take_the_names_of_the_list(tmp_path):
  for synset in ("n02084071", "n01440764"):
    picture(tmp_path / synset / "a.jpg")
  assert open_folder(tmp_path).names == ("tench", "dog")
  classes = ClassList(("a dog", "a fish"), ("n02084071", "n01440764"))
  assert open_folder(tmp_path, classes).keys.tolist() == ["n02084071/a.jpg", "n01440764/a.jpg"]


def test_splits(root, tmp_path_factory):
  assert split_folders(root) == {"train": root}
  split = tmp_path_factory.mktemp("split")
  for name in ("imagenet21k_train/a/1.jpg", "imagenet21k_val/a/2.jpg"):
    picture(split / name)
  assert split_folders(split) == {
    "train": split / "imagenet21k_train",
    "validation": split / "imagenet21k_val",
  }
  # "train" among other things is a thing.
  picture(split / "bus/1.jpg")
  assert split_folders(split) == {"train": split}


def test_what_is_no_folder_of_classes(root):
  picture(root / "twice/teddy bear/a.jpg")
  picture(root / "twice/teddy_bear/a.jpg")
  for synset in ("n00000000", "n01440764"):
    picture(root / "synsets" / synset / "a.jpg")
  for folder in ("empty", "without/cat"):
    (root / folder).mkdir(parents=True)
  three, none = ClassList(("axe", "cat", "dog")), ClassList(("car", "bus"))
  for below, options, message in (
    ("empty", {}, str(root / "empty")),
    ("without", {}, str(root / "without")),
    ("nowhere", {}, "No such file"),
    ("loose.jpg", {}, "Not a dir"),
    ("synsets", {}, "synsets: n00000000"),
    ("twice", {"classes": ClassList(("teddy bear", "axe"))}, "'teddy bear' and 'teddy_bear'"),
    ("", {"classes": three}, r"1 of .* 3 classes .* 'dog'"),
    ("", {"classes": none}, r"2 of .* 2 classes .* such as 'axe'"),
    ("", {"classes": none, "all_classes": False}, str(root)),
  ):
    with pytest.raises(SourceError, match=message):
      open_folder(root / below, **options)
  for below, message in (("nowhere", "No such file"), ("loose.jpg", "Not a dir")):
    with pytest.raises(SourceError, match=message):
      split_folders(root / below)


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
