"""Image source `folder`: one folder a class, named after the class or its WordNet id.

    root/train/n02084071/a.jpg  root/val/n02084071/b.jpg     or     root/n02084071/a.jpg

The source skips hidden files, files without an image's suffix and, in split folders,
symbolic links. The argument `data` is `config.data`, of which the source reads `root`,
`names` and `base`.
"""

import collections
from collections.abc import Mapping, Sequence
import concurrent.futures
import functools
import logging
import os
from typing import Any, NamedTuple

from pomp_jax.data.class_lists import ClassList, load_class_list
from pomp_jax.data.folder_classes import classes_of, match_classes
from pomp_jax.data.images import EXTENSIONS, UNREAD_EXTENSIONS, UNREAD_REASON
from pomp_jax.data.source import Files, SourceError, StoredImages
from pomp_jax.files.paths import Path, is_bucket, is_file, store_of, to_path
from pomp_jax.files.terminal import is_unicode, printable

log = logging.getLogger(__name__)

_log_once = functools.cache(log.warning)
_LISTINGS = 32  # class folders of a bucket that are listed in parallel

# Folder names of the splits; "imagenet21k" marks those of the processed ImageNet-21K.
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
  """Opens a split of `data.root`.

  The classes are those of `data.names`. Without names they are the class folders of the
  training images, or of all splits if `data.base` is set.
  """
  folders = split_folders(data.root)
  if data.names:
    classes = load_class_list(data.names)
  elif data.base:
    # `data.base` selects the training classes from the classes of all splits.
    classes = classes_in(*folders.values())
  else:
    classes = classes_in(folders.get("train", folders[split]))
  return open_folder(
    folders[split], classes, all_classes=split == "train" and not data.base
  )


def classes_in(*folders: Path) -> ClassList:
  """Classes of all class folders in these split folders; see `classes_of`."""
  names = {name for folder in folders for name in list_folder(folder).folders}
  return classes_of(sorted(names), str(folders[0]))


def split_folders(root: str | os.PathLike) -> dict[str, Path]:
  """Folder of each split; the root itself is "train" if it has no split folders."""
  folders = set(list_folder(root, links=True).folders)
  if folders and folders <= _KNOWN_FOLDERS:
    by_split = {}
    for split, names in _SPLIT_FOLDERS.items():
      existing = [name for name in names if name in folders]
      if existing:
        by_split[split] = to_path(root) / existing[0]
    return by_split
  for name in sorted(folders & _KNOWN_FOLDERS):
    # Beside other folders, "train" or "test" may be a class. A class folder holds
    # images; a split folder holds only folders.
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

  Folders that match no class are skipped with a warning. Images are sorted by label and
  then by file name; their keys are CLASS_FOLDER/FILE.

  Args:
    folder: folder of the split, on a disk or in a bucket.
    classes: classes in the order of the labels.
    all_classes: whether each class needs a folder.

  Raises:
    SourceError: there is no class folder or no image, or folders don't match classes.
  """
  where = str(folder)
  folder_names = list_folder(folder).folders
  if not folder_names:
    raise SourceError(
      f"{where}: no class folders found (links and hidden folders are skipped)"
    )
  class_of = match_classes(folder_names, classes, where, all_classes=all_classes)
  unmatched = [name for name in folder_names if name not in class_of]
  _warn_once(
    where,
    unmatched,
    f"of {len(folder_names)} folders are skipped: no class of the list is named so",
  )
  listings = _list_class_folders(folder, sorted(class_of, key=class_of.__getitem__))
  keys = []
  labels = []
  others = []
  for name, listing in listings.items():
    keys += [f"{name}/{file}" for file in listing.images]
    labels += [class_of[name]] * len(listing.images)
    others += [f"{name}/{file}" for file in listing.others]
  if not keys:
    raise SourceError(
      f"{where}: no images found in {len(class_of)} class folders ({_expected(others)})"
    )
  unread = [name for name in others if is_unread_picture(name)]
  _warn_of_class_folders(where, listings)
  _warn_of_other_files(where, [name for name in others if not is_unread_picture(name)])
  _warn_once(where, unread, f"pictures are skipped: {UNREAD_REASON}")
  source = StoredImages(classes.names, labels, keys, Files(folder))
  return source.replace(unread=tuple(os.path.join(where, name) for name in unread))


def _list_class_folders(folder: Path, names: Sequence[str]) -> dict[str, "Listing"]:
  """Lists class folders; those of a bucket in parallel, because each request waits."""
  n_threads = _LISTINGS if is_bucket(folder) else 1
  with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:
    listings = pool.map(list_folder, [os.path.join(folder, name) for name in names])
    return dict(zip(names, listings, strict=True))


def _warn_of_class_folders(where: str, listings: Mapping[str, "Listing"]) -> None:
  empty = [name for name, listing in listings.items() if not listing.images]
  _warn_once(where, empty, "class folders have no image")
  inner = [f"{name}/{i}" for name, listing in listings.items() for i in listing.folders]
  _warn_once(where, inner, "folders within class folders are not read")


def _warn_of_other_files(where: str, names: Sequence[str]) -> None:
  suffixes = collections.Counter(
    os.path.splitext(name)[1].lower() or "none" for name in names
  )
  counts = ", ".join(f"{suffix} {count}" for suffix, count in suffixes.most_common(5))
  _warn_once(
    where, names, f"files are not read, their suffixes are no image's ({counts})"
  )


def is_unread_picture(name: str) -> bool:
  """Whether a file is, by its suffix, a picture of a format that is not read.

  `images.UNREAD_REASON` gives the reason.
  """
  return name.lower().endswith(UNREAD_EXTENSIONS)


def _expected(others: Sequence[str]) -> str:
  """Says which suffixes images have, for an error about files without any image."""
  text = f"expected {', '.join(EXTENSIONS)}"
  n_unread = sum(map(is_unread_picture, others))
  if n_unread:
    text += f"; {n_unread} files are HEIC, which is not read: convert them to JPEG"
  return text


def _warn_once(where: str, names: Sequence[str], text: str) -> None:
  if names:
    _log_once("%s: %d %s, such as %r", where, len(names), text, printable(names[0], 80))


class Listing(NamedTuple):
  """Sorted names of the files and folders directly in a folder, without hidden ones."""

  images: list[str]
  others: list[str]  # files with another suffix
  folders: list[str]


def list_folder(folder: str | os.PathLike, *, links: bool = False) -> Listing:
  """Lists a folder; its symbolic links are listed only with `links`.

  Raises:
    SourceError: the folder can't be read.
  """
  try:
    if is_bucket(folder):
      entries = store_of(folder).entries(os.fspath(folder))
    else:
      entries = _scan(os.fspath(folder), links)
  except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
    reason = getattr(error, "strerror", None) or error
    raise SourceError(
      f"{printable(os.fspath(folder))}: can't be read ({reason})"
    ) from error
  listing = Listing(images=[], others=[], folders=[])
  for name, is_folder in sorted(entries):
    if name.startswith("."):
      continue
    if is_folder:
      listing.folders.append(name)
    elif name.lower().endswith(EXTENSIONS):
      listing.images.append(name)
    else:
      listing.others.append(name)
  return listing


def _scan(folder: str, links: bool) -> list[tuple[str, bool]]:
  """Names of the folders and files in a local folder, and whether each is a folder."""
  entries = []
  with os.scandir(folder) as inside:
    for entry in inside:
      is_folder = entry.is_dir(follow_symlinks=links)
      if is_folder or entry.is_file(follow_symlinks=links):
        entries.append((entry.name, is_folder))
  return entries


def find_images(
  path: str | os.PathLike, *, nested: bool = True, unread: bool = False
) -> dict[str, Path]:
  """Finds the image files of a folder by their path in it, "cats/a.jpg", sorted.

  Args:
    path: folder, or a single image file. The result has the file under its name.
    nested: whether to search all folders within the folder.
    unread: whether to include pictures of formats that are not read, for a caller that
      reports them.

  Raises:
    SourceError: there is no image, or a name that is not Unicode text.
  """
  root = to_path(path)
  is_single = is_file(root)
  keys = [root.name] if is_single else []
  others: list[str] = []
  folders = [] if is_single else [""]
  while folders:
    inner = folders.pop()
    listing = list_folder(root / inner)
    keys += [f"{inner}{name}" for name in listing.images]
    others += [f"{inner}{name}" for name in listing.others]
    if nested:
      folders += [f"{inner}{name}/" for name in listing.folders]
  if unread:
    keys += filter(is_unread_picture, others)
  if not keys:
    raise SourceError(f"{path}: no images found ({_expected(others)})")
  for key in keys:
    if not is_unicode(key):
      raise SourceError(f"{path}: the file name {key!r} is not Unicode text")
  if is_single:
    return {root.name: root}
  return {key: root / key for key in sorted(keys)}
