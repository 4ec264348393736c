"""Splits of stored images, for any source that has `splits(data)` and `open_split(data,
split)`.

A missing validation or test split is held out of the training images if the source's
row in the registry allows it. With few shots, the training images that are no shots
replace a missing validation split, whatever the row says. Otherwise another split
replaces the missing one, with a log line, and results name the split that was used.

In a folder that a person has sorted, a class without a picture in any split is dropped,
unless a list names it. A dropped class is no answer. It is no negative either: as a
negative it would only push the prompt away from a word that no picture shows. Test and
validation pictures that equal a picture of an earlier split are dropped too, unless
`data.duplicates=keep`.
"""

from collections.abc import Mapping
import concurrent.futures
import dataclasses
import functools
import logging
from typing import Any

import numpy as np

from pomp_jax import hosts
from pomp_jax.config import SOURCES, ConfigError
from pomp_jax.config.errors import require
from pomp_jax.config.fields import Data
from pomp_jax.data.class_lists import ClassList, load_class_list
from pomp_jax.data.duplicates import find_duplicates
from pomp_jax.data.folder_classes import classes_of, match_classes
from pomp_jax.data.skipped_images import CorruptDataError, SkippedImages
from pomp_jax.data.source import SourceError, StoredImages
from pomp_jax.data.subsets import (
  even_sample,
  few_shot,
  half_of_classes,
  held_out,
  spread_evenly,
)
from pomp_jax.files.paths import is_bucket
from pomp_jax.files.terminal import steps_of
from pomp_jax.registry import load

log = logging.getLogger(__name__)
_log_once = functools.cache(log.info)
_warn_once = functools.cache(log.warning)
_NO_SPLIT = "%s has no split %r: %s"

# All training images, before any are held out or dropped by few shots.
_UNDIVIDED = "undivided"
# Most images of a set that are decoded before a run, and most unreadable images that
# the log names.
_MOST_DECODED, _MOST_NAMED = 20_000, 20
# Most images among which duplicates are searched.
_MOST_COMPARED = 200_000


def open_source(data: Data, split: str, n_images: int = 0) -> StoredImages:
  """Opens a split of stored images; train and validation have the classes to train on.

  Args:
    data: `config.data`.
    split: train, validation, or one of `evaluation_splits`.
    n_images: number of images, as evenly over the classes as possible; 0 for all.

  Raises:
    SourceError: files are missing, or every image equals an image of an earlier split.
  """
  source = _with_duplicates(data, split)
  duplicates = _duplicates(data, split)
  if duplicates and data.duplicates == "drop":
    if len(duplicates) == len(source):
      lack = f"every picture of the split {split!r} equals one of an earlier split"
      raise SourceError(f"{_name(data)}: {lack}; data.duplicates=keep keeps them")
    source = source.subset(np.delete(np.arange(len(source)), list(duplicates)))
  if n_images:
    source = source.subset(even_sample(source.labels, source.keys, n_images))
  return source


def forget_sources() -> None:
  """Clears the caches of all data, for files that have changed since they were read."""
  for cached in (
    _open_split,
    _divided,
    _duplicates,
    _empty_classes,
    check_readable,
    _log_once,
    _warn_once,
  ):
    cached.cache_clear()


def _with_duplicates(data: Data, split: str) -> StoredImages:
  """The images of a split, including duplicates of images of an earlier split."""
  part, group = _part_and_group(data, split)
  source = _open_part(data, part)
  classes = _classes_of_group(data, source.names, group)
  # A class that a list names is kept even if it has no picture.
  list_of_group = {"base": data.base, "novel": data.base and data.novel}
  if not list_of_group.get(group):
    classes = classes[~np.isin(classes, _empty_classes(data, part))]
  if not len(classes):
    expected = "all, for a data set of one class"
    raise ConfigError("data.classes", group, expected)
  classes = classes[spread_evenly(data.n_classes, len(classes))]
  if not np.array_equal(classes, np.arange(len(source.names))):
    source = source.of_classes(classes)
  if not len(source):
    raise SourceError(
      f"{_name(data)}: no image of these classes in the split {split!r}"
    )
  return source


def _part_and_group(data: Data, split: str) -> tuple[str, str]:
  """Part of the images of a split, and its group of classes."""
  if split in ("train", "validation"):
    return split, _training_group(data)
  parts = _evaluation_parts(data)
  if split not in parts:
    raise ValueError(f"no split {split!r} to evaluate on; there are {', '.join(parts)}")
  return parts[split]


@functools.lru_cache(maxsize=4)
def _empty_classes(data: Data, part: str) -> np.ndarray:
  """Labels of folders without a picture in any split; none if a list names them."""
  if data.names or not SOURCES[data.source].sorted_by_hand:
    return np.zeros(0, int)
  splits = _splits(data)
  if "train" not in splits:
    # Without training images each split has its own classes, so use this split alone.
    splits = (part,)
  sources = [_open_whole(data, split) for split in splits]
  labels = np.concatenate([source.labels for source in sources])
  names = sources[0].names
  empty = np.setdiff1d(np.arange(len(names)), labels)
  if len(empty):
    _warn_once(
      "%s: %d of %d classes have no picture in any split and are no answers, such as %r; a list of"
      " names (data.names) keeps them",
      _name(data),
      len(empty),
      len(names),
      names[empty[0]],
    )
  return empty


@functools.lru_cache(maxsize=8)
def _duplicates(data: Data, split: str) -> dict[int, str]:
  """Maps the index of each picture that equals a picture of an earlier split to the
  file of the latter.

  The order of the splits is train, validation, test. A split that stands in for another
  one is not compared with itself.
  """
  if split == "train" or not SOURCES[data.source].sorted_by_hand:
    return {}
  if "train" not in _splits(data):
    return {}
  part_of = {"train": "train", "validation": _replacement(data, "validation")}
  if split == "validation":
    part = part_of.pop("validation")
  else:
    part, _ = _part_and_group(data, split)
  if part == "train":
    return {}
  earlier = [
    open_source(data, name) for name, its_part in part_of.items() if its_part != part
  ]
  source = _with_duplicates(data, split)
  n_images = len(source) + sum(map(len, earlier))
  # Skip the search if it would read too much.
  place = None
  if is_bucket(data.root):
    place = "in a bucket"
  elif n_images > _MOST_COMPARED:
    place = f"among {n_images:,} pictures"
  if place is not None:
    _log_once("%s: duplicates between splits are not looked for %s", _name(data), place)
    return {}
  duplicates = find_duplicates(source, earlier)
  if duplicates:
    first = next(iter(duplicates))
    fate = "are dropped (data.duplicates=keep keeps them)"
    if data.duplicates == "keep":
      fate = "are kept (data.duplicates=keep)"
    _warn_once(
      "%s: %d of %d %s pictures equal a picture of an earlier split byte for byte and %s; the"
      " first: %s = %s",
      _name(data),
      len(duplicates),
      len(source),
      split,
      fate,
      source.where(first),
      duplicates[first],
    )
  return duplicates


def left_out(data: Data) -> dict[str, Any]:
  """Lists the classes and files of a folder that are in no figure.

  With `data.duplicates=keep` the listed duplicates are evaluated nevertheless.

  Returns:
    Of these fields those that are not empty.
    `classes_without_pictures`: names of classes.
    `classes_without_test_pictures`: split -> names of classes.
    `duplicates`: split -> file -> the file of an earlier split that it equals.
    `not_read`: files of formats that are not read.
  """
  if not SOURCES[data.source].sorted_by_hand:
    return {}
  evaluated = evaluation_splits(data)
  empty: dict[str, None] = {}
  untested: dict[str, list[str]] = {}
  duplicates: dict[str, dict[str, str]] = {}
  for split in ("train", "validation", *evaluated):
    part, _ = _part_and_group(data, split)
    names = _open_part(data, part).names
    empty |= dict.fromkeys(names[label] for label in _empty_classes(data, part))
    source = _with_duplicates(data, split)
    equal_files = {
      source.where(index): file for index, file in _duplicates(data, split).items()
    }
    if equal_files:
      duplicates[split] = equal_files
    if split in evaluated:
      names_without = _classes_without_images(open_source(data, split))
      if names_without:
        untested[split] = names_without
  not_read: list[str] = []
  for split in _splits(data):
    not_read += _open_whole(data, split).unread
  facts = {
    "classes_without_pictures": list(empty),
    "classes_without_test_pictures": untested,
    "duplicates": duplicates,
    "not_read": not_read,
  }
  return {name: fact for name, fact in facts.items() if fact}


def _classes_without_images(source: StoredImages) -> list[str]:
  """Names of the classes that no image of a source has."""
  labels = np.setdiff1d(np.arange(len(source.names)), source.labels)
  return [source.names[label] for label in labels]


def evaluation_splits(data: Data) -> tuple[str, ...]:
  """Splits to evaluate a learned prompt on, named after their images.

  Without groups of classes: `test`, or `validation` or `train` if that split replaces
  it. With groups: `base` and `novel` (lists) or `new` (CoOp's half) of test images;
  `validation/base`, `train/base` and so on of images of another split.
  """
  return tuple(_evaluation_parts(data))


@functools.lru_cache(maxsize=8)
def check_readable(data: Data, n_images: int) -> None:
  """Decodes the images of a folder, see `opening.check_readable`.

  Sets of more than _MOST_DECODED images, and sets in buckets, are skipped.
  """
  sources = [
    open_source(data, split, n_images=n_images) for split in evaluation_splits(data)
  ]
  sources.append(open_source(data, "train"))
  sources.append(open_source(data, "validation"))
  # By file, so that an image of two splits is decoded once.
  images = {}
  for source in sources:
    for index in range(len(source)):
      images[source.where(index)] = (source, index)
  if is_bucket(data.root) or len(images) > _MOST_DECODED:
    return
  unreadable = _unreadable(images)
  for where, reason in list(unreadable.items())[:_MOST_NAMED]:
    log.warning("%s: can't be read and is skipped (%s)", where, reason)
  for source in sources:
    skipped = {}
    for index in range(len(source)):
      where = source.where(index)
      if where in unreadable:
        skipped[index] = where
    try:
      SkippedImages(source, data.max_corrupt).add(skipped)
    except CorruptDataError as error:
      raise SourceError(f"{_name(data)}: {error}") from error


def _unreadable(images: Mapping[str, tuple[StoredImages, int]]) -> dict[str, str]:
  """Decodes images on all cores; returns the reason for each unreadable file."""

  def reason_of(image: tuple[StoredImages, int]) -> str | None:
    source, index = image
    _, reason = source.checked(index)
    return reason

  with concurrent.futures.ThreadPoolExecutor(hosts.own_cores()) as pool:
    decoded = pool.map(reason_of, images.values())
    reasons = list(steps_of(decoded, "checking the pictures", "pictures", len(images)))
  return {
    where: reason for where, reason in zip(images, reasons, strict=True) if reason
  }


def has_validation(data: Data) -> bool:
  """Whether there are validation images beside the training images, to choose a
  checkpoint by."""
  return _replacement(data, "validation") != "train"


def n_training_classes(data: Data) -> int:
  """Number of classes to train on; opens every split, to find missing files."""
  train = open_source(data, "train")
  for split in ("validation", *evaluation_splits(data)):
    open_source(data, split)
  n_classes = len(train.names)
  if data.n_classes > n_classes:
    raise ConfigError(
      "data.n_classes", data.n_classes, f"at most {n_classes}, or 0 for all"
    )
  names_without = _classes_without_images(train)
  if data.base and names_without:
    name = names_without[0]
    raise SourceError(f"{_name(data)}: no training image of data.base's {name!r}")
  return n_classes


def _training_group(data: Data) -> str:
  """Group of classes to train on: all, base or new."""
  return "base" if data.base else data.classes


def _evaluation_parts(data: Data) -> dict[str, tuple[str, str]]:
  """Name of each evaluation split -> part of the images, and group of classes."""
  trained_group = _training_group(data)
  part = _replacement(data, "test")
  if trained_group == "all":
    return {part: (part, "all")}
  # Whether the test images come from a split of their own, not the training images.
  are_separate = part != "train" and part in _splits(data)
  parts = {}
  for group in ("base", "novel" if data.base else "new"):
    if group != trained_group and not are_separate:
      # These classes are not trained on, so all of their images serve as test images.
      parts[group] = (_UNDIVIDED, group)
    elif part == "test":
      parts[group] = (part, group)
    else:
      parts[f"{part}/{group}"] = (part, group)
  return parts


def _classes_of_group(data: Data, names: tuple[str, ...], group: str) -> np.ndarray:
  """Labels of a group of classes; base and novel classes are in the order of their
  list."""
  if not data.base or group == "all":
    return half_of_classes(len(names), group)
  base = _listed_labels(data, "base", names)
  if group == "base":
    return base
  novel = np.setdiff1d(np.arange(len(names)), base)
  if data.novel:
    novel = _listed_labels(data, "novel", names)
  require(
    len(novel), "data.base", data.base, "a list that leaves classes for novel ones"
  )
  in_both = np.intersect1d(base, novel)
  if len(in_both):
    name = names[in_both[0]]
    expected = f"classes that are not in data.base; {name!r} is in both"
    raise ConfigError("data.novel", data.novel, expected)
  return novel


def _listed_labels(data: Data, field: str, names: tuple[str, ...]) -> np.ndarray:
  """Labels of the classes in the list `data.base` or `data.novel`, in its order."""
  path = getattr(data, field)
  # `classes_of` turns a list of WordNet ids into names.
  listed = classes_of(load_class_list(path).names, path).names
  class_of = match_classes(names, ClassList(listed), f"{_name(data)}: data.{field}")
  label_of = {name: label for label, name in enumerate(names)}
  return np.array(
    [label_of[name] for name in sorted(class_of, key=class_of.__getitem__)]
  )


def _replacement(data: Data, split: str) -> str:
  """Split that is used as a data set's validation or test split: the split itself if it
  is available, otherwise another split."""
  if _is_available(data, split):
    if split not in _splits(data):
      _log_held_out(data, split)
    return split
  substitute = {"test": "validation", "validation": "test"}[split]
  if not _is_available(data, substitute):
    substitute = "train"
  remedy = f"using the {substitute} images instead, as {substitute!r}"
  _log_once(_NO_SPLIT, _name(data), split, remedy)
  return substitute


def _log_held_out(data: Data, split: str) -> None:
  """Logs once how many training images are held out for a missing split."""
  share = f"{100 * _shares(data)[split]:g}% of each class's training images"
  if split == "validation" and data.shots:
    share = "the training images that are not among the shots"
  indices = _divided(data)[split]
  source = _open_part(data, _UNDIVIDED)
  small = np.setdiff1d(source.labels, source.labels[indices])
  exceptions = ""
  if len(small):
    n_small = f"{len(small)} of {len(source.names)} classes"
    name = source.names[small[0]]
    exceptions = f"; {n_small} have too few to hold any out, such as {name!r}"
  remedy = f"held out {share}, {len(indices)} images{exceptions}"
  _log_once(_NO_SPLIT, _name(data), split, remedy)


def _is_available(data: Data, split: str) -> bool:
  """Whether a validation or test split exists, or images are held out for it."""
  if split in _splits(data):
    return True
  has_rest_of_shots = split == "validation" and data.shots
  if not (_shares(data)[split] or has_rest_of_shots):
    return False
  return len(_divided(data)[split]) > 0


def _shares(data: Data) -> dict[str, float]:
  """Shares of each class's training images that are held out for missing splits."""
  splits = _splits(data)
  shares = {"test": 0.0, "validation": 0.0}
  if not SOURCES[data.source].holds_out:
    return shares
  # If there are validation images but no test images, the former serve as test images.
  if "test" not in splits and "validation" not in splits:
    shares["test"] = data.test_share
  # With few shots, the training images that are no shots serve as validation images.
  if "validation" not in splits and not data.shots:
    shares["validation"] = data.validation_share
  return shares


def _open_part(data: Data, part: str) -> StoredImages:
  """Opens train, validation, test, or the undivided training images."""
  splits = _splits(data)
  if part in ("validation", "test"):
    part = _replacement(data, part)
  if part in ("validation", "test") and part in splits:
    return _open_split(data, part)
  if "train" not in splits:
    raise SourceError(f"{_name(data)}: no training images (found {', '.join(splits)})")
  # Some sources choose the shots themselves.
  if part == "train" and SOURCES[data.source].draws_shots:
    return _open_split(data, "train")
  undivided = _open_whole(data, "train")
  if part == _UNDIVIDED:
    return undivided
  return undivided.subset(_divided(data)[part])


def _open_whole(data: Data, split: str) -> StoredImages:
  """Opens a split with all of its images, without the choice of few shots."""
  return _open_split(dataclasses.replace(data, shots=0), split)


@functools.lru_cache(maxsize=4)
def _divided(data: Data) -> dict[str, np.ndarray]:
  """Indices of the training images to train on, and of those held out for each split.

  With few shots, the remaining images are for validation.
  """
  undivided = _open_part(data, _UNDIVIDED)
  shares = _shares(data)
  train = np.arange(len(undivided))
  test = np.arange(0)
  validation = np.arange(0)
  if any(shares.values()):
    train, (test, validation) = held_out(
      undivided.labels, undivided.keys, (shares["test"], shares["validation"])
    )
  if data.shots:
    is_shot = _are_shots(data, undivided, train)
    validation = train[~is_shot]
    train = train[is_shot]
  return {"train": train, "validation": validation, "test": test}


def _are_shots(data: Data, undivided: StoredImages, indices: np.ndarray) -> np.ndarray:
  """Whether each of these training images is among the few shots."""
  keys = undivided.keys[indices]
  if SOURCES[data.source].draws_shots:
    # The source has chosen the shots itself, in the order of its published lists.
    shot_keys = set(_open_split(data, "train").keys.tolist())
    return np.array([key in shot_keys for key in keys.tolist()], bool)
  shots = few_shot(undivided.labels[indices], keys, data.shots, data.shots_seed)
  return np.isin(np.arange(len(indices)), shots)


def _splits(data: Data) -> tuple[str, ...]:
  return load(SOURCES[data.source].module).splits(data)


@functools.lru_cache(maxsize=8)
def _open_split(data: Data, split: str) -> StoredImages:
  module = load(SOURCES[data.source].module)
  source: StoredImages = module.open_split(data, split)
  return source.replace(upright=data.upright)


def _name(data: Data) -> str:
  return " ".join(filter(None, (data.source, data.dataset, data.root)))
