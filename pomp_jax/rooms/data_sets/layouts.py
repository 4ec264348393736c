"""Images and classes of a data set on which prompts are compared, whatever its layout."""

import os

from pomp_jax.data.class_lists import ClassList
from pomp_jax.data.folder import classes_in, open_folder, split_folders
from pomp_jax.data.source import LabelledSet
from pomp_jax.files.paths import is_dir, to_path
from pomp_jax.registry import SOURCES, load


def open_test_set(
  reader: str,
  root: str | os.PathLike,
  dataset: str,
  classes: ClassList | None,
  all_classes: bool = True,
) -> LabelledSet:
  """Opens the test images of a data set, or else its validation or training images.

  Args:
    reader: one of `registry.READERS`.
    root: folder of all data sets of a published layout; or a folder with split folders or class
      folders, or with such a folder for each data set.
    dataset: name of the data set; of folders also "".
    classes: class list; None: the data set's own, of folders the training folder's names.
    all_classes: whether a class of the list without a folder is an error.
  """
  if reader != "folder":
    return load(SOURCES[reader].module).open_test_set(root, dataset, classes)
  if dataset and is_dir(to_path(root) / dataset):
    root = to_path(root) / dataset
  folders = split_folders(root)
  split = next(split for split in ("test", "validation", "train") if split in folders)
  classes = classes or classes_in(folders.get("train", folders[split]))
  source = open_folder(folders[split], classes, all_classes)
  return LabelledSet(source, classes, "all" if folders[split] == to_path(root) else split)
