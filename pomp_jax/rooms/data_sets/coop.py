"""Image source `coop`: CoOp's layout of its fifteen data sets below one folder,
`$DATA`.

Splits are CoOp's (`split_zhou_*.json`, or FGVC-Aircraft's lists). Few-shot subsets are
read from `split_fewshot/`, or drawn as CoOp's code does. So results compare with
published ones image for image.
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
# The ImageNets: folder, and folder of each split. All but ImageNet-1K are for testing
# only.
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
  folder: Path
  images: str
  splits: dict[str, Items]


def splits(data: Data) -> tuple[str, ...]:
  """Splits of the data set."""
  return tuple(_open_all(data.root, data.dataset, data.shots, data.shots_seed))


def open_split(data: Data, split: str) -> StoredImages:
  """Opens a split under the names of `data.names`, if given."""
  source = _open_all(data.root, data.dataset, data.shots, data.shots_seed)[split]
  names = load_class_list(data.names).names if data.names else source.names
  if len(names) != len(source.names):
    found = f"got {len(names)} names in {data.names!r}"
    raise SourceError(f"config.data.names: {found}, expected {len(source.names)}")
  return source.relabelled(names, source.labels)


def open_test_set(
  root: str | os.PathLike, dataset: str, classes: ClassList | None
) -> LabelledSet:
  """Opens a data set's test images; class names are always CoOp's, whatever
  `classes`."""
  source = open_coop(root, dataset)["test"]
  return LabelledSet(source, class_list_of(dataset, source.names), "test")


def class_list_of(dataset: str, names: Sequence[str]) -> ClassList:
  """Class list of a data set under its own names; synsets are kept only for a
  complete list."""
  known = (
    load_class_list(dataset) if dataset in CLASS_LISTS else ClassList(tuple(names))
  )
  synsets = known.synsets if len(known) == len(names) else None
  return dataclasses.replace(known, names=tuple(names), synsets=synsets)


def open_coop(
  root: str | os.PathLike, name: str, shots: int = 0, seed: int = 1
) -> dict[str, StoredImages]:
  """Opens the splits of one of COOP_SETS in `$DATA`, among "train", "validation" and
  "test".

  `shots` are training images a class, and at most 4 validation images; 0: all. CoOp's
  random seeds of the few-shot subset are 1, 2 and 3.
  """
  if name in _IMAGENETS:
    listing = _imagenet(to_path(root), name)
  elif name == "fgvc_aircraft":
    listing = _aircraft(to_path(root) / _AIRCRAFT[0])
  else:
    listing = _from_split_file(to_path(root), *_SPLIT_FILES[name])
  if shots and "train" in listing.splits:
    listing.splits.update(
      _few_shot(listing, shots, seed, fixed_order=name not in _IMAGENETS)
    )
  return _opened(listing, check_files=name not in _IMAGENETS)


_open_all = functools.lru_cache(maxsize=4)(open_coop)


def open_aircraft(folder: str | os.PathLike) -> dict[str, StoredImages]:
  """Opens FGVC-Aircraft's splits in its own folder, the archive's `data/`."""
  return _opened(_aircraft(to_path(folder)))


def _opened(listing: _Listing, check_files: bool = True) -> dict[str, StoredImages]:
  images = listing.folder / listing.images
  if check_files:  # the ImageNets' files were listed from their folders
    _check_files(
      images, [path for items in listing.splits.values() for path, _ in items]
    )
  opened = {}
  for split, items in listing.splits.items():
    paths, labels = [path for path, _ in items], [label for _, label in items]
    opened[split] = StoredImages(listing.names, labels, paths, Files(images))
  return opened


def _from_split_file(root: Path, folder: str, images: str, file: str) -> _Listing:
  path = root / folder / file
  content = read_user_json(path, SourceError)
  names: dict[int, str] = {}
  splits = {}
  for part, split in _PARTS.items():
    items = content.get(part) if isinstance(content, dict) else None
    if not isinstance(items, list) or not items:
      raise SourceError(f"{path}: no list {part!r} of [path, label, class name] in it")
    splits[split] = [_item(item, names, path) for item in items]
  if sorted(names) != list(range(len(names))):
    raise SourceError(
      f"{path}: labels are not 0..{len(names) - 1}; the largest is {max(names)}"
    )
  return _Listing(
    tuple(names[i] for i in range(len(names))), root / folder, images, splits
  )


def _item(item: Any, names: dict[int, str], where: Path) -> tuple[str, int]:
  """One image of a split file; adds its class to `names`."""
  valid = isinstance(item, list) and [type(part) for part in item] == [str, int, str]
  parts = pathlib.PurePosixPath(item[0]).parts if valid else ()
  if not parts or parts[0] == "/" or ".." in parts:
    raise SourceError(
      f"{where}: {str(item)[:200]!r} is not [path below the images, label, name]"
    )
  path, label, name = item
  if names.setdefault(label, name) != name:
    raise SourceError(f"{where}: label {label} is both {names[label]!r} and {name!r}")
  return path, label


def _aircraft(folder: Path) -> _Listing:
  names = tuple(_lines(folder / "variants.txt"))
  label_of = {name: label for label, name in enumerate(names)}
  splits: dict[str, Items] = {}
  for part, split in _PARTS.items():
    path = folder / f"images_variant_{part}.txt"
    splits[split] = []
    for number, line in enumerate(_lines(path), 1):
      image, _, name = line.partition(" ")
      if not image.isalnum() or name not in label_of:
        found = f"line {number}, {line[:100]!r}"
        raise SourceError(f"{path}: {found}, is not an image and a known variant")
      splits[split].append((f"{image}.jpg", label_of[name]))
  return _Listing(names, folder, _AIRCRAFT[1], splits)


def _imagenet(root: Path, name: str) -> _Listing:
  folder, split_folders = _IMAGENETS[name]
  classes = load_class_list(name)
  synsets = list(classes.synsets or ())
  # ImageNet-V2's folders are named by label.
  expected = [str(label) for label in range(1000)] if name == "imagenet_v2" else synsets
  splits: dict[str, Items] = {}
  for split, below in split_folders.items():
    images = root / folder / below
    for wrong in sorted(set(list_folder(images, links=True).folders) ^ set(expected)):
      what = "missing" if wrong in expected else "unexpected"
      where = f"{images}: folder {wrong!r} is {what}"
      raise SourceError(f"{where}; {name} has {len(expected)} classes")
    splits[split] = [
      (f"{below}/{class_folder}/{file}", label)
      for label, class_folder in enumerate(expected)
      for file in list_folder(images / class_folder).images
    ]
  names = _class_names(root / folder / "classnames.txt", synsets, classes.names)
  return _Listing(names, root / folder, "", splits)


def _class_names(
  path: Path, synsets: list[str], ours: tuple[str, ...]
) -> tuple[str, ...]:
  """Names in the file, lines of "n01440764 tench", if it exists; ours where a name
  is repeated."""
  if not exists(path):
    return ours
  name_of = dict(line.partition(" ")[::2] for line in _lines(path))
  names = [name_of.get(synset, "") for synset in synsets]
  if "" in names:
    raise SourceError(f"{path}: no name for {synsets[names.index('')]}")
  merged = [
    own if names.count(name) > 1 else name
    for name, own in zip(names, ours, strict=True)
  ]
  return ours if repeats(merged) else tuple(merged)


def _few_shot(
  listing: _Listing, shots: int, seed: int, fixed_order: bool
) -> dict[str, Items]:
  """Few-shot training subset, and validation subset if the data set has that split."""
  whole = {part: listing.splits.get(_PARTS[part], []) for part in ("train", "val")}
  for suffix in (".pkl", ".json"):
    path = listing.folder / "split_fewshot" / f"shot_{shots}-seed_{seed}{suffix}"
    if exists(path):
      log.info("few-shot subset: %s", path)
      fixed, there = _read_fixed(path), [part for part, items in whole.items() if items]
      return {
        _PARTS[part]: _known_items(fixed.get(part), listing, part, path)
        for part in there
      }
  if not fixed_order:
    # CoOp draws in the order of its own file system's listing, which can't be
    # reproduced.
    paths, labels = zip(*listing.splits["train"], strict=True)
    chosen = few_shot(np.array(labels), paths, shots, seed)
    return {"train": [listing.splits["train"][index] for index in chosen]}
  # As CoOp's code draws: by class, ordered by the first image of each. One stream of
  # random numbers for both parts, training first.
  stream = random.Random(seed)
  subset: dict[str, Items] = {}
  for part, items in whole.items():
    size = shots if part == "train" else min(shots, _MAX_VALIDATION_SHOTS)
    of_class: dict[int, Items] = collections.defaultdict(list)
    for item in items:
      of_class[item[1]].append(item)
    # A class with fewer images gives all of them in file order and takes no random
    # number, so that the draws of later classes stay the same.
    drawn = [
      stream.sample(own, size) if len(own) >= size else own for own in of_class.values()
    ]
    subset[_PARTS[part]] = list(itertools.chain.from_iterable(drawn))
  return subset


def _read_fixed(path: Path) -> dict[str, Items]:
  """Images in each part of a few-shot file, under their paths on its author's
  machine."""
  if path.suffix == ".json":
    content = read_user_json(path, SourceError)
  else:
    try:
      # {"train": [Datum, ..], "val": [..]}; no code in it is run.
      content = _FewShotUnpickler.read(read_file(path, SourceError))
    except PickleError as error:
      reason = printable(str(error))
      raise SourceError(f"{path}: not a few-shot file of CoOp's ({reason})") from error
  if not isinstance(content, dict):
    raise SourceError(f"{path}: no parts 'train' and 'val'")
  fixed = {}
  for part, items in content.items():
    if isinstance(items, dict):  # some JSON files have positions beside the items
      items = items.get("data")
    try:
      fixed[part] = [_fixed_item(item) for item in items]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      where = f"{path}: part {printable(str(part), 80)!r}"
      raise SourceError(f"{where} is not a list of images and labels") from error
  return fixed


class _FewShotUnpickler(RestrictedUnpickler):
  names = re.compile(r"([\w.]+\.)?Datum")


def _fixed_item(item: Any) -> tuple[str, int]:
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
  """Images of a few-shot file under their paths in the split file."""
  if not items:
    raise SourceError(f"{where}: no images of {part!r} in it")
  known = set(listing.splits[_PARTS[part]])
  middle = "/".join(filter(None, (listing.folder.name, listing.images))) + "/"
  below = [
    (path.replace("\\", "/").rpartition(middle)[2], label) for path, label in items
  ]
  for (path, label), item in zip(items, below, strict=True):
    if item not in known:
      raise SourceError(
        f"{where}: {path!r} with label {label} is not an image of {part!r}"
      )
  return list(dict.fromkeys(below))


def _check_files(images: Path, paths: Sequence[str]) -> None:
  """Checks that all files exist; lists each folder once."""
  files = functools.cache(
    lambda folder: set(list_folder(images / folder, links=True).images)
  )
  missing = [
    one for one in paths if os.path.basename(one) not in files(os.path.dirname(one))
  ]
  if missing:
    first = images / printable(missing[0])
    raise SourceError(f"{first}: no such image ({len(missing)} are missing)")


def _lines(path: Path) -> list[str]:
  return list(filter(None, map(str.strip, read_text(path, SourceError).split("\n"))))
