"""Image source `coop`: CoOp's layout of its fifteen data sets below `$DATA`.

Splits are CoOp's (`split_zhou_*.json`, or FGVC-Aircraft's lists). Few-shot subsets are
read from `split_fewshot/`, or drawn as CoOp's code does. Results can therefore be
compared with published results image for image.
"""

import collections
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import logging
import os
import pathlib
import random
import re
from typing import Any, NamedTuple

import numpy as np

from pomp_jax.config.fields import Data
from pomp_jax.data.class_lists import CLASS_LISTS, ClassList, load_class_list, repeats
from pomp_jax.data.folder import list_folder
from pomp_jax.data.source import Files, LabelledSet, SourceError, StoredImages
from pomp_jax.data.subsets import few_shot
from pomp_jax.files.paths import (
  Path,
  exists,
  read_file,
  read_text,
  read_user_json,
  to_path,
)
from pomp_jax.files.restricted_pickle import (
  PickledObject,
  PickleError,
  RestrictedUnpickler,
)
from pomp_jax.files.terminal import printable

log = logging.getLogger(__name__)

# By class list: folder of the data set, folder of its images, and file of its splits.
_SPLIT_FILES = {
  "caltech101": ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
  "oxford_pets": ("oxford_pets", "images", "split_zhou_OxfordPets.json"),
  "stanford_cars": ("stanford_cars", "", "split_zhou_StanfordCars.json"),
  "flowers102": ("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json"),
  "food101": ("food-101", "images", "split_zhou_Food101.json"),
  "sun397": ("sun397", "SUN397", "split_zhou_SUN397.json"),
  "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json"),
  "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json"),
  "ucf101": ("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json"),
}
_AIRCRAFT = ("fgvc_aircraft", "images")
# The ImageNets: folder of the data set, and of each split. All but ImageNet-1K have
# test images alone.
_IMAGENETS = {
  "imagenet1k": ("imagenet", {"train": "images/train", "test": "images/val"}),
  "imagenet_v2": ("imagenetv2", {"test": "imagenetv2-matched-frequency-format-val"}),
  "imagenet_sketch": ("imagenet-sketch", {"test": "images"}),
  "imagenet_a": ("imagenet-adversarial", {"test": "imagenet-a"}),
  "imagenet_r": ("imagenet-rendition", {"test": "imagenet-r"}),
}
COOP_SETS = (*_SPLIT_FILES, "fgvc_aircraft", *_IMAGENETS)
# CoOp's names of the splits -> ours.
_PARTS = {"train": "train", "val": "validation", "test": "test"}
_MAX_VALIDATION_SHOTS = 4

Items = list[tuple[str, int]]  # images: path below the images' folder, and label


class _Listing(NamedTuple):
  """Files of a data set: the images of each split, in order."""

  names: tuple[str, ...]
  folder: Path  # folder of the data set
  images: str  # folder of the images, below `folder`; "" for `folder` itself
  splits: dict[str, Items]


def splits(data: Data) -> tuple[str, ...]:
  """Lists the splits of the data set."""
  return tuple(_open_all(data.root, data.dataset, data.shots, data.shots_seed))


def open_split(data: Data, split: str) -> StoredImages:
  """Opens a split, under the names of `data.names` if it has any."""
  source = _open_all(data.root, data.dataset, data.shots, data.shots_seed)[split]
  names = source.names
  if data.names:
    names = load_class_list(data.names).names
  if len(names) != len(source.names):
    got = f"got {len(names)} names in {data.names!r}"
    raise SourceError(f"config.data.names: {got}, expected {len(source.names)}")
  return source.relabelled(names, source.labels)


def open_test_set(
  root: str | os.PathLike, dataset: str, classes: ClassList | None
) -> LabelledSet:
  """Opens a data set's test images, under CoOp's names of the classes.

  Args:
    root: CoOp's `$DATA`.
    dataset: one of COOP_SETS.
    classes: ignored, since a set's labels fit CoOp's names alone. Other sources take a
      class list here.

  Raises:
    SourceError: the files are missing, damaged, or have no test split.
  """
  images = open_coop(root, dataset)["test"]
  coop_classes = class_list_of(dataset, images.names)
  return LabelledSet(images, coop_classes, "test")


def class_list_of(dataset: str, names: Sequence[str]) -> ClassList:
  """Returns the class list of a data set, under the names that the data set has.

  The list keeps its WordNet ids only if the data set has all classes of the list.
  """
  if dataset not in CLASS_LISTS:
    return ClassList(tuple(names))
  classes = load_class_list(dataset)
  synsets = classes.synsets if len(classes) == len(names) else None
  return dataclasses.replace(classes, names=tuple(names), synsets=synsets)


def open_coop(
  root: str | os.PathLike, name: str, shots: int = 0, seed: int = 1
) -> dict[str, StoredImages]:
  """Opens the splits of a data set, among "train", "validation" and "test".

  Args:
    root: CoOp's `$DATA`.
    name: one of COOP_SETS.
    shots: number of training images of each class. The number of validation images is
      the smaller of `shots` and 4. With 0 both splits have all images.
    seed: random seed of the few-shot subset; CoOp's are 1, 2 and 3.

  Raises:
    SourceError: a missing or damaged file.
  """
  if name in _IMAGENETS:
    listing = _imagenet(to_path(root), name)
  elif name == "fgvc_aircraft":
    listing = _aircraft(to_path(root) / _AIRCRAFT[0])
  else:
    listing = _from_split_file(to_path(root), *_SPLIT_FILES[name])
  # Files fix the images and their order. Only an ImageNet is listed from its folders.
  is_fixed = name not in _IMAGENETS
  if shots and "train" in listing.splits:
    subset = _few_shot(listing, shots, seed, fixed_order=is_fixed)
    listing.splits.update(subset)
  # The images of an ImageNet exist: they were listed from its folders.
  return _opened(listing, check_files=is_fixed)


_open_all = functools.lru_cache(maxsize=4)(open_coop)


def open_aircraft(folder: str | os.PathLike) -> dict[str, StoredImages]:
  """Opens FGVC-Aircraft's splits in its own folder, the archive's `data/`."""
  return _opened(_aircraft(to_path(folder)))


def _opened(listing: _Listing, check_files: bool = True) -> dict[str, StoredImages]:
  """Opens the splits of a listing, and checks whether their files exist."""
  images = listing.folder / listing.images
  if check_files:
    all_items = itertools.chain.from_iterable(listing.splits.values())
    _check_files(images, [path for path, _ in all_items])
  opened = {}
  for split, items in listing.splits.items():
    paths = [path for path, _ in items]
    labels = [label for _, label in items]
    opened[split] = StoredImages(listing.names, labels, paths, Files(images))
  return opened


def _from_split_file(root: Path, folder: str, images: str, file: str) -> _Listing:
  """Reads CoOp's JSON file of a data set's splits.

  Args:
    root: CoOp's `$DATA`.
    folder: name of the data set's folder in `root`.
    images: name of the images' folder in `folder`.
    file: name of the JSON file in `folder`.

  Raises:
    SourceError: the file is missing or damaged, lacks a split, or has labels that are
      not 0, 1, .. with one name each.
  """
  path = root / folder / file
  content = read_user_json(path, SourceError)
  name_of: dict[int, str] = {}  # label -> class name, over all splits
  splits = {}
  for part, split in _PARTS.items():
    items = None
    if isinstance(content, dict):
      items = content.get(part)
    if not isinstance(items, list) or not items:
      raise SourceError(f"{path}: no list {part!r} of [path, label, class name] in it")
    splits[split] = [_item(item, name_of, path) for item in items]

  n_classes = len(name_of)
  if sorted(name_of) != list(range(n_classes)):
    raise SourceError(
      f"{path}: labels are not 0..{n_classes - 1}; the largest is {max(name_of)}"
    )
  names = tuple(name_of[label] for label in range(n_classes))
  return _Listing(names, folder=root / folder, images=images, splits=splits)


def _item(item: Any, names: dict[int, str], where: Path) -> tuple[str, int]:
  """Checks one image of a split file.

  Args:
    item: JSON value of the image.
    names: class name by label; the image's class is added to it.
    where: split file, for messages.

  Returns:
    Path of the image below the folder of images, and its label.

  Raises:
    SourceError: the item has another form, its path leads out of the folder, or its
      label has another name in an earlier item.
  """
  is_item = isinstance(item, list) and [type(part) for part in item] == [str, int, str]
  is_inside = False
  if is_item:
    parts = pathlib.PurePosixPath(item[0]).parts
    # An absolute path or ".." would read files outside the folder of the images.
    is_inside = len(parts) > 0 and parts[0] != "/" and ".." not in parts
  if not is_inside:
    raise SourceError(
      f"{where}: {str(item)[:200]!r} is not [path below the images, label, name]"
    )

  path, label, name = item
  known_name = names.setdefault(label, name)
  if known_name != name:
    raise SourceError(f"{where}: label {label} is both {known_name!r} and {name!r}")
  return path, label


def _aircraft(folder: Path) -> _Listing:
  """Reads FGVC-Aircraft's lists of variants and images.

  `variants.txt` has a variant a line. The list of a split has the name of an image and
  its variant in each line, such as "1025794 707-320".

  Raises:
    SourceError: a list is missing, or a line is not an image and a known variant.
  """
  variants = tuple(_lines(folder / "variants.txt"))
  label_of = {variant: label for label, variant in enumerate(variants)}
  splits: dict[str, Items] = {}
  for part, split in _PARTS.items():
    path = folder / f"images_variant_{part}.txt"
    items = []
    for number, line in enumerate(_lines(path), 1):
      image, _, variant = line.partition(" ")
      if not image.isalnum() or variant not in label_of:
        place = f"line {number}, {line[:100]!r}"
        raise SourceError(f"{path}: {place}, is not an image and a known variant")
      items.append((f"{image}.jpg", label_of[variant]))
    splits[split] = items
  return _Listing(variants, folder=folder, images=_AIRCRAFT[1], splits=splits)


def _imagenet(root: Path, name: str) -> _Listing:
  """Lists the images of an ImageNet, which must have a folder for exactly its classes."""
  folder, split_folders = _IMAGENETS[name]
  classes = load_class_list(name)
  synsets = list(classes.synsets or ())
  expected = synsets
  if name == "imagenet_v2":
    expected = [str(label) for label in range(1000)]  # its folders are named by label
  splits: dict[str, Items] = {}
  for split, below in split_folders.items():
    images = root / folder / below
    for wrong in sorted(set(list_folder(images, links=True).folders) ^ set(expected)):
      what = "missing" if wrong in expected else "unexpected"
      where = f"{images}: folder {wrong!r} is {what}"
      raise SourceError(f"{where}; {name} has {len(expected)} classes")
    splits[split] = []
    for label, class_folder in enumerate(expected):
      for file in list_folder(images / class_folder).images:
        splits[split].append((f"{below}/{class_folder}/{file}", label))
  names = _class_names(root / folder / "classnames.txt", synsets, classes.names)
  return _Listing(names, folder=root / folder, images="", splits=splits)


def _class_names(
  path: Path, synsets: list[str], ours: tuple[str, ...]
) -> tuple[str, ...]:
  """Reads class names from lines such as "n01440764 tench"; without a file, `ours`.

  A name that the file repeats is replaced by our name of the class. If some names are
  then still equal, all names are `ours`.
  """
  if not exists(path):
    return ours
  name_of = {}
  for line in _lines(path):
    synset, _, name = line.partition(" ")
    name_of[synset] = name
  names = [name_of.get(synset, "") for synset in synsets]
  if "" in names:
    raise SourceError(f"{path}: no name for {synsets[names.index('')]}")
  distinct = []
  for name, our_name in zip(names, ours, strict=True):
    distinct.append(our_name if names.count(name) > 1 else name)
  if repeats(distinct):
    return ours
  return tuple(distinct)


def _few_shot(
  listing: _Listing, shots: int, seed: int, fixed_order: bool
) -> dict[str, Items]:
  """Few-shot training subset, and validation subset if the data set has that split.

  A file in `split_fewshot/` fixes the subsets. Without such a file they are drawn as
  CoOp's code does if `fixed_order` is true, and by `data.subsets.few_shot` if not.
  """
  all_items = {part: listing.splits.get(_PARTS[part], []) for part in ("train", "val")}
  for suffix in (".pkl", ".json"):
    path = listing.folder / "split_fewshot" / f"shot_{shots}-seed_{seed}{suffix}"
    if exists(path):
      log.info("few-shot subset: %s", path)
      subset = _read_subset(path)
      return {
        _PARTS[part]: _known_items(subset.get(part), listing, part, path)
        for part, items in all_items.items()
        if items
      }
  train = listing.splits["train"]
  if not fixed_order:
    # CoOp's draw depends on the order in which its file system lists the images, which
    # can't be reproduced.
    paths, labels = zip(*train, strict=True)
    chosen = few_shot(np.array(labels), paths, shots, seed)
    return {"train": [train[index] for index in chosen]}
  # One stream of random numbers draws both parts, training first.
  stream = random.Random(seed)
  n_validation = min(shots, _MAX_VALIDATION_SHOTS)
  return {
    "train": _drawn(all_items["train"], shots, stream),
    "validation": _drawn(all_items["val"], n_validation, stream),
  }


def _drawn(items: Items, size: int, stream: random.Random) -> Items:
  """Draws `size` images of each class; classes are in the order of their first images."""
  items_of_class: dict[int, Items] = collections.defaultdict(list)
  for item in items:
    _, label = item
    items_of_class[label].append(item)
  drawn: Items = []
  for class_items in items_of_class.values():
    if len(class_items) >= size:
      drawn += stream.sample(class_items, size)
    else:
      # Take all images, in file order. Like CoOp's code, take no random number from the
      # stream: the draws of later classes depend on it.
      drawn += class_items
  return drawn


def _read_subset(path: Path) -> dict[str, Items]:
  """Reads the images of each part of a few-shot file.

  Their paths are those of the machine that wrote the file.
  """
  if path.suffix == ".json":
    content = read_user_json(path, SourceError)
  else:
    try:
      # The pickle is {"train": [Datum, ..], "val": [..]}; no code in the pickle is run.
      content = _FewShotUnpickler.read(read_file(path, SourceError))
    except PickleError as error:
      reason = printable(str(error))
      raise SourceError(f"{path}: not a few-shot file of CoOp's ({reason})") from error
  if not isinstance(content, dict):
    raise SourceError(f"{path}: no parts 'train' and 'val'")
  subset = {}
  for part, items in content.items():
    if isinstance(items, dict):  # some JSON files have positions beside the items
      items = items.get("data")
    try:
      subset[part] = [_subset_item(item) for item in items]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      where = f"{path}: part {printable(str(part), 80)!r}"
      raise SourceError(f"{where} is not a list of images and labels") from error
  return subset


class _FewShotUnpickler(RestrictedUnpickler):
  """Reads lists of Dassl's Datum; accepts no other class."""

  names = re.compile(r"([\w.]+\.)?Datum")


def _subset_item(item: Any) -> tuple[str, int]:
  """Path and label of a Datum, of its attributes as JSON, or of a list."""
  if isinstance(item, PickledObject):
    item = item.attributes
  if isinstance(item, dict):
    plain = {key.lstrip("_"): value for key, value in item.items()}
    item = [plain["impath"], plain["label"]]
  path, label, *_ = item
  if not isinstance(path, str) or type(label) is not int:
    raise ValueError(item)
  return path, label


def _known_items(
  items: Items | None, listing: _Listing, part: str, where: Path
) -> Items:
  """Finds the paths in the split file of the images of a few-shot file.

  Raises:
    SourceError: the part is empty, or an image is not one of its split.
  """
  if not items:
    raise SourceError(f"{where}: no images of {part!r} in it")
  known = set(listing.splits[_PARTS[part]])
  # On any machine, the path in the split file is the part behind these folders.
  folders = f"{listing.folder.name}/"
  if listing.images:
    folders += f"{listing.images}/"
  known_items = []
  for path, label in items:
    _, _, below = path.replace("\\", "/").rpartition(folders)
    if (below, label) not in known:
      raise SourceError(
        f"{where}: {path!r} with label {label} is not an image of {part!r}"
      )
    known_items.append((below, label))
  return list(dict.fromkeys(known_items))  # without repeated images


def _check_files(images: Path, paths: Sequence[str]) -> None:
  """Checks that all files exist; lists each folder once."""
  files_in = functools.cache(
    lambda folder: set(list_folder(images / folder, links=True).images)
  )
  missing = []
  for path in paths:
    folder, file = os.path.split(path)
    if file not in files_in(folder):
      missing.append(path)
  if missing:
    first = images / printable(missing[0])
    raise SourceError(f"{first}: no such image ({len(missing)} are missing)")


def _lines(path: Path) -> list[str]:
  """Lines of a text file, without surrounding white space and without empty lines."""
  lines = read_text(path, SourceError).split("\n")
  return [line.strip() for line in lines if line.strip()]
