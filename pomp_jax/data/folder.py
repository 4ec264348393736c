"""A folder a class, with or without a folder a split above.

    root/train/n02084071/a.jpg  root/val/n02084071/b.jpg     or     root/n02084071/a.jpg

A class's folder is called by the class's name, or by its WordNet id. Hidden files, files that
are no images by their suffix and, below the folders of the splits, symbolic links are passed over.
"""

from collections.abc import Sequence
import functools
import logging
import os
import pathlib
import re

import numpy as np

from pomp_jax.data.class_lists import ClassList, load_class_list
from pomp_jax.data.images import EXTENSIONS, ImageError, list_image_files
from pomp_jax.data.source import Files, SourceError, StoredImages
from pomp_jax.files.terminal import is_unicode, printable

log = logging.getLogger(__name__)

# Folder names of the splits; the long ones are those of the processed ImageNet-21K.
SPLIT_FOLDERS = {
  "train": ("train", "training", "imagenet21k_train"),
  "validation": ("val", "validation", "valid", "imagenet21k_val"),
  "test": ("test",),
}
SYNSET = re.compile(r"n[0-9]{8}")


def split_folders(root: str | os.PathLike) -> dict[str, pathlib.Path]:
  """The folder of each split that there is; the root itself is "train" where there are none.

  Raises:
    SourceError: no such folder.
  """
  folders = set(subfolders(root, links=True))
  known = {name for names in SPLIT_FOLDERS.values() for name in names}
  # Classes can be called "train" or "test" as well, beside others.
  if not folders or not folders <= known | {"imagenet21k_small_classes"}:
    return {"train": pathlib.Path(root)}
  found = {}
  for split, names in SPLIT_FOLDERS.items():
    for name in names:
      if name in folders:
        found.setdefault(split, pathlib.Path(root, name))
  return found


def open_folder(
  folder: str | os.PathLike,
  classes: ClassList | None = None,
  *,
  all_classes: bool = True,
  image_size: int = 224,
) -> StoredImages:
  """Opens the images of one split.

  Args:
    folder: holds a folder a class.
    classes: their names in the order of the labels; folders of other classes are left out with a
      warning. Without, the folders' own names, sorted, or ImageNet-21K's names where these are all
      WordNet ids.
    all_classes: refuse a folder in which a class of the list is missing.
    image_size: of what `images` gives.

  Returns:
    Images in the order of the labels, then of the file names; keys are class folder/file name.

  Raises:
    SourceError: no such folder, no image in it, or classes that aren't those of the list.
  """
  found = subfolders(folder)
  if not found:
    raise SourceError(
      f"{folder}: no folders of classes in it (links and hidden ones are not followed)"
    )
  if classes is None:
    classes = own_classes(found, str(folder))
  class_of = match_classes(found, classes, str(folder), all_classes=all_classes)
  others = [name for name in found if name not in class_of]
  if others:
    _say_left_out(str(folder), len(others), len(found), others[0])
  labels, keys = [], []
  for name, label in sorted(class_of.items(), key=lambda item: item[1]):
    if not is_unicode(name):
      raise SourceError(f"{folder}: the folder name {name!r} is not Unicode text")
    files = class_images(os.path.join(folder, name))
    labels += [label] * len(files)
    keys += [f"{name}/{file}" for file in files]
  if not keys:
    raise SourceError(
      f"{folder}: {len(class_of)} folders of classes and no image in them;"
      f" accepted: {', '.join(EXTENSIONS)}"
    )
  return StoredImages(classes.names, np.array(labels), keys, Files(folder), image_size=image_size)


@functools.cache
def _say_left_out(folder: str, n_others: int, n_folders: int, first: str) -> None:
  log.warning(
    "%s: %d of %d folders are no class of the list and are left out, such as %r",
    *(folder, n_others, n_folders, printable(first, 80)),
  )


def match_classes(
  found: Sequence[str], classes: ClassList, where: str, *, all_classes: bool = True
) -> dict[str, int]:
  """Finds the classes that folders or labels stand for, by name or by WordNet id.

  Args:
    found: what they are called; underscores may stand for a name's spaces.
    classes: the class list.
    where: they are from, for messages.
    all_classes: refuse a list of which a class is missing.

  Returns:
    The index of its class for each of `found`; those of no class are left out.

  Raises:
    SourceError: a class of the list is missing or there twice, or none is there.
  """
  index_of = {_plain(name): index for index, name in enumerate(classes.names)}
  index_of |= {name: index for index, name in enumerate(classes.names)}
  index_of |= {synset: index for index, synset in enumerate(classes.synsets or ())}
  class_of, name_of = {}, {}
  for name in found:
    index = index_of.get(name, index_of.get(_plain(name)))
    if index is None:
      continue
    if index in name_of:
      raise SourceError(f"{where}: {name_of[index]!r} and {name!r} are the same class")
    class_of[name], name_of[index] = index, name
  missing = [name for index, name in enumerate(classes.names) if index not in name_of]
  if missing and (all_classes or not class_of):
    raise SourceError(
      f"{where}: {len(missing)} of the list's {len(classes)} classes are not in it, such as"
      f" {missing[0]!r}; it has {len(found)}, such as {found[0]!r}"
    )
  return class_of


def class_images(folder: str | os.PathLike) -> list[str]:
  """`images.list_image_files` of a class's folder.

  Raises:
    SourceError: it can't be read, or has a file name that is not Unicode text.
  """
  try:
    return list_image_files(folder)
  except ImageError as error:
    raise SourceError(str(error)) from error
  except OSError as error:
    raise SourceError(f"{folder}: can't be read ({error.strerror})") from error


def subfolders(folder: str | os.PathLike, links: bool = False) -> list[str]:
  """Names of the folders in a folder, sorted, without hidden ones.

  Args:
    folder: where to look.
    links: take symbolic links to folders too.

  Raises:
    SourceError: it can't be read.
  """
  try:
    with os.scandir(folder) as entries:
      return sorted(
        entry.name
        for entry in entries
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=links)
      )
  except OSError as error:
    raise SourceError(f"{folder}: can't be read ({error.strerror})") from error


def own_classes(found: Sequence[str], where: str) -> ClassList:
  """Classes that are called as found; ImageNet-21K's names if these are all WordNet ids.

  Args:
    found: folders' or labels' names.
    where: they are from, for the message.

  Raises:
    SourceError: a WordNet id that is no class of ImageNet-21K.
  """
  if not all(map(SYNSET.fullmatch, found)):
    return ClassList(tuple(found))
  every = load_class_list("imagenet21k")
  names = dict(zip(every.synsets, every.names, strict=True))
  unknown = [synset for synset in found if synset not in names]
  if unknown:
    raise SourceError(f"{where}: {unknown[0]} is no class of ImageNet-21K")
  return ClassList(tuple(names[synset] for synset in found), tuple(found))


def _plain(name: str) -> str:
  return " ".join(name.replace("_", " ").split())
