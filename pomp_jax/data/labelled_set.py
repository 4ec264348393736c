"""The test images of a data set in one of the three layouts, and some of its classes alone."""

import dataclasses
import os
import pathlib
from typing import NamedTuple

import numpy as np

from pomp_jax.data.class_lists import CLASS_LISTS, ClassList, load_class_list
from pomp_jax.data.coop import open_coop
from pomp_jax.data.folder import open_folder, own_classes, split_folders, subfolders
from pomp_jax.data.source import Source, SourceError, StoredImages

READERS = ("folder", "coop", "tfds")


class LabelledSet(NamedTuple):
  """Images and the classes that are told apart among them.

  Attributes:
    source: the images.
    classes: the class list, in the order of the labels.
    split: what the images are: "test", "validation", "train", or "all" of an undivided set.
  """

  source: Source
  classes: ClassList
  split: str


def open_test_images(
  reader: str,
  root: str | os.PathLike,
  dataset: str = "",
  classes: ClassList | None = None,
  *,
  all_classes: bool = True,
  image_size: int,
) -> LabelledSet:
  """Opens the images that a data set is tested on; reads none.

  The split is `test`; of a folder without one its validation split, else `train`, and of a folder
  without splits "all"; of TFDS's ImageNet and Food-101 "validation".

  Args:
    reader: one of READERS.
    root: the folder of folders, CoOp's $DATA, or TFDS's data_dir.
    dataset: its name there; not read by `folder`.
    classes: the class list of a folder or of TFDS's labels; None: the data set's own. CoOp's
      layout always has its own.
    all_classes: refuse a folder that lacks a class of the list.
    image_size: of what `images` gives.

  Raises:
    SourceError, VocabularyError: as the reader has them; one line.
  """
  if reader == "folder":
    folders = split_folders(root)
    split = next(split for split in ("test", "validation", "train") if split in folders)
    if classes is None:  # the training's where it is there
      names_from = folders.get("train", folders[split])
      classes = own_classes(subfolders(names_from), str(names_from))
    source = open_folder(folders[split], classes, all_classes=all_classes, image_size=image_size)
    return LabelledSet(source, classes, "all" if folders[split] == pathlib.Path(root) else split)
  if reader == "coop":
    source, split = open_coop(root, dataset, image_size=image_size)["test"], "test"
  else:
    source, split = _tfds(root, dataset, classes, image_size)
  if classes is None:
    known = load_class_list(dataset) if dataset in CLASS_LISTS else ClassList(source.names)
    # The list's synsets are those of all its classes; a set of some of them goes without.
    synsets = known.synsets if len(known) == len(source.names) else None
    classes = dataclasses.replace(known, names=source.names, synsets=synsets)
  return LabelledSet(source, classes, split)


def some_classes(labelled: LabelledSet, kept: np.ndarray) -> LabelledSet:
  """The same with fewer classes, and the images of these.

  Args:
    labelled: of stored images.
    kept: int [N'], indices of the classes that stay, in the order they are to have.
  """
  source, classes, split = labelled
  names = tuple(classes.names[c] for c in kept)
  synsets = None if classes.synsets is None else tuple(classes.synsets[c] for c in kept)
  new_label_N = np.full(len(classes), -1)
  new_label_N[kept] = np.arange(len(kept))
  return LabelledSet(
    source.relabelled(names, new_label_N[source.labels]),
    dataclasses.replace(classes, names=names, synsets=synsets),
    split,
  )


def _tfds(
  root: str | os.PathLike, dataset: str, classes: ClassList | None, image_size: int
) -> tuple[StoredImages, str]:
  # Imported where it is needed: that takes seconds.
  from pomp_jax.data.tfds import open_tfds, tfds_splits

  splits = tfds_splits(dataset, root)
  # What ImageNet and Food-101 are tested on is their validation split.
  split = next((split for split in ("test", "validation") if split in splits), None)
  if split is None:
    raise SourceError(f"{root}: {dataset} has no test split; it has {', '.join(splits)}")
  source = open_tfds(dataset, splits[split], root=root, classes=classes, image_size=image_size)
  return source, split
