"""Image source `folder`: one folder a class, named after it or its WordNet id.

    root/train/n02084071/a.jpg  root/val/n02084071/b.jpg     or     root/n02084071/a.jpg

Hidden files, other suffixes than images' and, below the split folders, links are
skipped. Of `config.data`, the argument `data`, it reads `root`, `names` and `base`.
"""

import collections
from collections.abc import Sequence
import concurrent.futures
import functools
import logging
import os
from typing import Any, NamedTuple

from pomp_jax.data.class_lists import (
  SYNSET,
  ClassList,
  load_class_list,
  normalized_name,
)
from pomp_jax.data.images import EXTENSIONS, UNREAD_EXTENSIONS, UNREAD_REASON
from pomp_jax.data.source import Files, SourceError, StoredImages
from pomp_jax.files.paths import Path, is_bucket, is_file, store_of, to_path
from pomp_jax.files.terminal import is_unicode, printable

log = logging.getLogger(__name__)

_log_once = functools.cache(log.warning)
_LISTINGS = 32  # class folders of a bucket that are listed at once

# Folder names of the splits; the long ones are those of the processed ImageNet-21K.
_SPLIT_FOLDERS = {
  "train": ("train", "training", "imagenet21k_train"),
  "validation": ("val", "validation", "valid", "imagenet21k_val"),
  "test": ("test",),
}
_KNOWN_FOLDERS = {*sum(_SPLIT_FOLDERS.values(), ()), "imagenet21k_small_classes"}


def splits(data: Any) -> tuple[str, ...]:
  """Splits of `data.root`; see `split_folders`."""
  return tuple(split_folders(data.root))


def open_split(data: Any, split: str) -> StoredImages:
  """Opens a split of `data.root` with the classes of `data.names`, or the training
  folder's."""
  # `data.base` selects the training classes from those of all splits.
  folders = split_folders(data.root)
  every = folders.values() if data.base else [folders.get("train", folders[split])]
  classes = load_class_list(data.names) if data.names else classes_in(*every)
  return open_folder(
    folders[split], classes, all_classes=split == "train" and not data.base
  )


def classes_in(*folders: Path) -> ClassList:
  """Classes of all class folders; see `classes_of`."""
  found = {name for folder in folders for name in list_folder(folder).folders}
  return classes_of(sorted(found), str(folders[0]))


def split_folders(root: str | os.PathLike) -> dict[str, Path]:
  """Folder of each split; the root itself is "train" if it has no split folders."""
  folders = set(list_folder(root, links=True).folders)
  if folders and folders <= _KNOWN_FOLDERS:
    found = {
      split: [n for n in names if n in folders]
      for split, names in _SPLIT_FOLDERS.items()
    }
    return {split: to_path(root) / names[0] for split, names in found.items() if names}
  for name in sorted(folders & _KNOWN_FOLDERS):
    # Beside other folders, "train" or "test" may be a class, which holds images.
    inside = list_folder(to_path(root) / name)
    if inside.folders and not inside.images:
      raise SourceError(
        f"{root}: {name!r} holds class folders, and beside it there is"
        f" {min(folders - _KNOWN_FOLDERS)!r}; expected split folders alone"
        f" ({', '.join(sorted(_KNOWN_FOLDERS))}) or class folders alone: move the others"
      )
  return {"train": to_path(root)}


def open_folder(
  folder: Path, classes: ClassList, all_classes: bool = True
) -> StoredImages:
  """Opens the images of one split, a folder with one folder a class.

  Folders of other classes are skipped with a warning; with `all_classes` each class
  needs a folder. Images are in the order of the labels, then of the file names; keys
  are CLASS_FOLDER/FILE.
  """
  where, found = str(folder), list_folder(folder).folders
  if not found:
    raise SourceError(
      f"{where}: no class folders found (links and hidden folders are skipped)"
    )
  class_of = match_classes(found, classes, where, all_classes=all_classes)
  others = [name for name in found if name not in class_of]
  _warn_once(
    where, others, f"of {len(found)} folders are skipped, as no class of the list"
  )
  names = sorted(class_of, key=class_of.__getitem__)
  # In a bucket each listing waits for an answer.
  with concurrent.futures.ThreadPoolExecutor(
    _LISTINGS if is_bucket(folder) else 1
  ) as pool:
    inside = pool.map(list_folder, [os.path.join(folder, name) for name in names])
    listed = dict(zip(names, inside, strict=True))
  keys = [f"{name}/{file}" for name in names for file in listed[name].images]
  labels = [class_of[name] for name in names for _ in listed[name].images]
  if not keys:
    expected = _expected([file for inside in listed.values() for file in inside.others])
    raise SourceError(
      f"{where}: no images found in {len(class_of)} class folders ({expected})"
    )
  empty = [name for name, inside in listed.items() if not inside.images]
  folders = [
    f"{name}/{one}" for name, inside in listed.items() for one in inside.folders
  ]
  others = [f"{name}/{one}" for name, inside in listed.items() for one in inside.others]
  unread = [name for name in others if is_unread_picture(name)]
  others = [name for name in others if not is_unread_picture(name)]
  suffixes = collections.Counter(
    os.path.splitext(name)[1].lower() or "none" for name in others
  )
  counts = ", ".join(f"{suffix} {count}" for suffix, count in suffixes.most_common(5))
  _warn_once(where, empty, "class folders have no image")
  _warn_once(where, folders, "folders within class folders are not read")
  _warn_once(
    where, others, f"files are not read, their suffixes are no image's ({counts})"
  )
  _warn_once(where, unread, f"pictures are skipped: {UNREAD_REASON}")
  source = StoredImages(classes.names, labels, keys, Files(folder))
  return source.replace(unread=tuple(os.path.join(where, name) for name in unread))


def is_unread_picture(name: str) -> bool:
  """Whether a file's name is that of a picture which is not read; see
  `images.UNREAD_REASON`."""
  return name.lower().endswith(UNREAD_EXTENSIONS)


def _expected(others: Sequence[str]) -> str:
  """What images are, where none is found among these files."""
  unread = [name for name in others if is_unread_picture(name)]
  more = (
    f"; {len(unread)} files are HEIC, which is not read: convert them to JPEG"
    if unread
    else ""
  )
  return f"expected {', '.join(EXTENSIONS)}{more}"


def _warn_once(where: str, names: Sequence[str], text: str) -> None:
  if names:
    _log_once("%s: %d %s, such as %r", where, len(names), text, printable(names[0], 80))


def match_classes(
  found: Sequence[str], classes: ClassList, where: str, *, all_classes: bool = True
) -> dict[str, int]:
  """Index of the class for each name, of a folder or label, that matches one of a class
  list.

  Names match by WordNet id or as words: underscores match spaces. SourceError if a
  class is matched twice or (if `all_classes`) missing, or nothing matches.
  """
  index_of = {normalized_name(name): index for index, name in enumerate(classes.names)}
  index_of |= {name: index for index, name in enumerate(classes.names)}
  index_of |= {synset: index for index, synset in enumerate(classes.synsets or ())}
  name_of: dict[int, str] = {}
  for name in found:
    index = index_of.get(name, index_of.get(normalized_name(name)))
    if index in name_of:
      raise SourceError(f"{where}: {name_of[index]!r} and {name!r} are the same class")
    if index is not None:
      name_of[index] = name
  missing = [name for index, name in enumerate(classes.names) if index not in name_of]
  if missing and (all_classes or not name_of):
    lacks = (
      f"{len(missing)} of the list's {len(classes)} classes are missing,"
      f" such as {missing[0]!r}"
    )
    raise SourceError(f"{where}: {lacks} (found {len(found)}, such as {found[0]!r})")
  return {name: index for index, name in name_of.items()}


def classes_of(found: Sequence[str], where: str) -> ClassList:
  """Classes named after folders or labels; ImageNet-21K's names if these are all
  WordNet ids."""
  if not all(map(SYNSET.fullmatch, found)):
    return ClassList(tuple(found))
  every = load_class_list("imagenet21k")
  names = dict(zip(every.synsets or (), every.names, strict=True))
  unknown = [synset for synset in found if synset not in names]
  if unknown:
    raise SourceError(f"{where}: {unknown[0]} is no class of ImageNet-21K")
  return ClassList(tuple(names[synset] for synset in found), tuple(found))


class Listing(NamedTuple):
  """Sorted names of what is directly in a folder, without hidden files."""

  images: list[str]
  others: list[str]  # files with another suffix
  folders: list[str]


def list_folder(folder: str | os.PathLike, *, links: bool = False) -> Listing:
  """Lists a folder, symbolic links in it only with `links`; SourceError if it can't
  be read."""
  try:
    if is_bucket(folder):
      found = store_of(folder).entries(os.fspath(folder))
    else:
      with os.scandir(os.fspath(folder)) as inside:
        found = [
          (entry.name, is_folder)
          for entry in inside
          if (is_folder := entry.is_dir(follow_symlinks=links))
          or entry.is_file(follow_symlinks=links)
        ]
  except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
    reason = getattr(error, "strerror", None) or error
    raise SourceError(
      f"{printable(os.fspath(folder))}: can't be read ({reason})"
    ) from error
  shown = [one for one in sorted(found) if not one[0].startswith(".")]
  folders, files = (
    [name for name, own in shown if own == kind] for kind in (True, False)
  )
  images = [name for name in files if name.lower().endswith(EXTENSIONS)]
  others = [name for name in files if not name.lower().endswith(EXTENSIONS)]
  return Listing(images, others, folders)


def find_images(
  path: str | os.PathLike, *, nested: bool = True, unread: bool = False
) -> dict[str, Path]:
  """Finds the image files of a folder and, if `nested`, of all folders within.

  They are sorted by their path in the folder, "cats/a.jpg"; a single file has its name.
  With `unread` pictures of formats that are not read are among them, for a caller that
  names them.
  """
  root = to_path(path)
  single = is_file(root)
  keys, folders = ([root.name], []) if single else ([], [""])
  others: list[str] = []
  while folders:
    inner = folders.pop()
    inside = list_folder(root / inner)
    keys += [f"{inner}{name}" for name in inside.images]
    others += [f"{inner}{name}" for name in inside.others]
    folders += [f"{inner}{name}/" for name in inside.folders if nested]
  if unread:
    keys += filter(is_unread_picture, others)
  if not keys:
    raise SourceError(f"{path}: no images found ({_expected(others)})")
  for key in keys:
    if not is_unicode(key):
      raise SourceError(f"{path}: the file name {key!r} is not Unicode text")
  return {key: root if single else root / key for key in sorted(keys)}
