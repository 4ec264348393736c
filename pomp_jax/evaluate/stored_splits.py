"""Splits of stored images, for any source that has `splits(data)` and `open_split(data,
split)`.

A missing split of train, validation and test is held out of the training images if the
source's row in the registry allows it. Otherwise another split replaces it, under its
own name, with a log line.

Of a folder that a person has sorted, a class without a picture in any split is no
class, unless a list names it: neither an answer nor a negative, which would only push
the prompt away from a word that no picture speaks for. Test and validation pictures
that equal one of an earlier split are dropped, unless `data.duplicates=keep`.
"""

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
from pomp_jax.data.folder import classes_of, match_classes
from pomp_jax.data.source import SourceError, StoredImages
from pomp_jax.data.subsets import (
  even_sample,
  few_shot,
  half_of_classes,
  held_out,
  spread_evenly,
)
from pomp_jax.data.unreadable import CorruptDataError, SkippedImages
from pomp_jax.files.paths import is_bucket
from pomp_jax.files.terminal import steps_of
from pomp_jax.registry import load

log = logging.getLogger(__name__)
_log_once = functools.cache(log.info)
_warn_once = functools.cache(log.warning)
_NO_SPLIT = "%s has no split %r: %s"

# All training images, before any are held out or dropped by few shots.
_UNDIVIDED = "undivided"
# Images of a set that are decoded before a run at most, and unreadable ones that are
# named.
_MOST_DECODED, _MOST_NAMED = 20_000, 20
# Images of which duplicates are looked for at most.
_MOST_COMPARED = 200_000


def open_source(data: Data, split: str, n_images: int = 0) -> StoredImages:
  """Opens a split; see `inputs.open_source`. Train and validation have the classes
  to train on."""
  source = _with_duplicates(data, split)
  found = _duplicates(data, split)
  if found and data.duplicates == "drop":
    if len(found) == len(source):
      lack = f"every picture of the split {split!r} equals one of an earlier split"
      raise SourceError(f"{_name(data)}: {lack}; data.duplicates=keep keeps them")
    source = source.subset(np.delete(np.arange(len(source)), list(found)))
  return (
    source.subset(even_sample(source.labels, source.keys, n_images))
    if n_images
    else source
  )


def forget_sources() -> None:
  """Forgets what was found of all data, for files that have changed since; a run
  looks once."""
  found = (_open_split, _divided, _duplicates, _empty_classes, check_readable)
  for remembered in (*found, _log_once, _warn_once):
    remembered.cache_clear()


def _with_duplicates(data: Data, split: str) -> StoredImages:
  """The images of a split, also those of earlier splits."""
  part, group = _part_and_group(data, split)
  source = _open_part(data, part)
  kept = _classes_of_group(data, source.names, group)
  is_listed = data.base and (group == "base" or (group == "novel" and data.novel))
  if not is_listed:
    kept = kept[~np.isin(kept, _empty_classes(data, part))]
  require(len(kept), "data.classes", group, "all, for a data set of one class")
  kept = kept[spread_evenly(data.n_classes, len(kept))]
  if not np.array_equal(kept, np.arange(len(source.names))):
    source = source.of_classes(kept)
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
  """Labels of the folders without a picture in any split, which no list asks for."""
  if data.names or not SOURCES[data.source].sorted_by_hand:
    return np.zeros(0, int)
  splits = _splits(data)
  # Without training images a split has classes of its own.
  sources = [
    _open_whole(data, one) for one in (splits if "train" in splits else (part,))
  ]
  seen = np.concatenate([source.labels for source in sources])
  names = sources[0].names
  empty = np.setdiff1d(np.arange(len(names)), seen)
  if len(empty):
    _warn_once(
      "%s: %d of %d classes have no picture in any split and are no answers, such as %r; a list of"
      " names (data.names) keeps them",
      *(_name(data), len(empty), len(names), names[empty[0]]),
    )
  return empty


@functools.lru_cache(maxsize=8)
def _duplicates(data: Data, split: str) -> dict[int, str]:
  """Index of each picture of a split that equals one of an earlier split -> the file of
  that one.

  The order is train, validation, test. A split that another one replaces has no
  duplicates there.
  """
  if (
    split == "train"
    or not SOURCES[data.source].sorted_by_hand
    or "train" not in _splits(data)
  ):
    return {}
  part, _ = _part_and_group(data, split)
  others = {"train": "train", "validation": _replacement(data, "validation")}
  if split == "validation":
    part = others.pop("validation")
  if part == "train":
    return {}
  earlier = [open_source(data, one) for one, own in others.items() if own != part]
  source = _with_duplicates(data, split)
  n_images = len(source) + sum(map(len, earlier))
  if is_bucket(data.root) or n_images > _MOST_COMPARED:
    place = "in a bucket" if is_bucket(data.root) else f"among {n_images:,} pictures"
    _log_once("%s: duplicates between splits are not looked for %s", _name(data), place)
    return {}
  found = find_duplicates(source, earlier)
  if found:
    first = next(iter(found))
    fate = "are dropped (data.duplicates=keep keeps them)"
    if data.duplicates == "keep":
      fate = "are kept (data.duplicates=keep)"
    _warn_once(
      "%s: %d of %d %s pictures equal a picture of an earlier split byte for byte and %s; the"
      " first: %s = %s",
      *(
        _name(data),
        len(found),
        len(source),
        split,
        fate,
        source.where(first),
        found[first],
      ),
    )
  return found


def left_out(data: Data) -> dict[str, Any]:
  """What of a folder is no answer, or in no figure, for results and report; empty for
  nothing.

  `classes_without_pictures` and `classes_without_test_pictures` are names, `duplicates`
  the files of each split with those that they equal, `not_read` files of formats that
  are not read.
  """
  if not SOURCES[data.source].sorted_by_hand:
    return {}
  tested = evaluation_splits(data)
  empty: dict[str, None] = {}
  untested: dict[str, list[str]] = {}
  duplicates: dict[str, dict[str, str]] = {}
  for split in ("train", "validation", *tested):
    part, _ = _part_and_group(data, split)
    names = _open_part(data, part).names
    empty |= dict.fromkeys(names[label] for label in _empty_classes(data, part))
    source = _with_duplicates(data, split)
    found = _duplicates(data, split)
    if found:
      duplicates[split] = {source.where(index): where for index, where in found.items()}
    if split in tested:
      shown = open_source(data, split)
      without = np.setdiff1d(np.arange(len(shown.names)), shown.labels)
      if len(without):
        untested[split] = [shown.names[label] for label in without]
  facts = {
    "classes_without_pictures": list(empty),
    "classes_without_test_pictures": untested,
    "duplicates": duplicates,
    "not_read": [
      file for split in _splits(data) for file in _open_whole(data, split).unread
    ],
  }
  return {name: fact for name, fact in facts.items() if fact}


def evaluation_splits(data: Data) -> tuple[str, ...]:
  """Splits to evaluate a learned prompt on, named after their images.

  `test`, or else `validation` or `train`. With groups of classes `base` and `novel`
  (lists) or `new` (CoOp's halves) of test images, or else `validation/base`,
  `train/base` and so on.
  """
  return tuple(_evaluation_parts(data))


@functools.lru_cache(maxsize=8)
def check_readable(data: Data, n_images: int) -> None:
  """See `inputs.check_readable`; nothing is decoded of large sets and in buckets."""
  sources = [
    open_source(data, split, n_images=n_images) for split in evaluation_splits(data)
  ]
  sources += [open_source(data, split) for split in ("train", "validation")]
  images = {
    one.where(index): (one, index) for one in sources for index in range(len(one))
  }
  if is_bucket(data.root) or len(images) > _MOST_DECODED:
    return
  with concurrent.futures.ThreadPoolExecutor(hosts.own_cores()) as pool:
    found = pool.map(lambda image: image[0].checked(image[1])[1], images.values())
    reasons = list(steps_of(found, "checking the pictures", "pictures", len(images)))
  unreadable = {where: why for where, why in zip(images, reasons, strict=True) if why}
  for where, why in list(unreadable.items())[:_MOST_NAMED]:
    log.warning("%s: can't be read and is skipped (%s)", where, why)
  for source in sources:
    places = enumerate(map(source.where, range(len(source))))
    bad = {index: where for index, where in places if where in unreadable}
    try:
      SkippedImages(source, data.max_corrupt).add(bad)
    except CorruptDataError as error:
      raise SourceError(f"{_name(data)}: {error}") from error


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
  without = np.setdiff1d(np.arange(n_classes), train.labels)
  if data.base and len(without):
    name = train.names[without[0]]
    raise SourceError(f"{_name(data)}: no training image of data.base's {name!r}")
  return n_classes


def _training_group(data: Data) -> str:
  """Group of classes to train on: all, base or new."""
  return "base" if data.base else data.classes


def _evaluation_parts(data: Data) -> dict[str, tuple[str, str]]:
  """Name of each evaluation split -> part of the images, and group of classes."""
  trained, part = _training_group(data), _replacement(data, "test")
  if trained == "all":
    return {part: (part, "all")}
  found = {}
  for group in ("base", "novel" if data.base else "new"):
    if group == trained or (part != "train" and part in _splits(data)):
      found[group if part == "test" else f"{part}/{group}"] = part, group
    else:
      # No image of these classes is trained on, so all of them are test images.
      found[group] = _UNDIVIDED, group
  return found


def _classes_of_group(data: Data, names: tuple[str, ...], group: str) -> np.ndarray:
  """Labels of a group of classes; those of base and novel in the order of their
  list."""
  if not data.base or group == "all":
    return half_of_classes(len(names), group)
  base = _listed_labels(data, "base", names)
  if group == "base":
    return base
  others = np.setdiff1d(np.arange(len(names)), base)
  novel = _listed_labels(data, "novel", names) if data.novel else others
  require(
    len(novel), "data.base", data.base, "a list that leaves classes for novel ones"
  )
  if len(both := np.intersect1d(base, novel)):
    expected = f"classes that are not in data.base; {names[both[0]]!r} is in both"
    raise ConfigError("data.novel", data.novel, expected)
  return novel


def _listed_labels(data: Data, field: str, names: tuple[str, ...]) -> np.ndarray:
  path = getattr(data, field)
  # `classes_of` names WordNet ids.
  listed = classes_of(load_class_list(path).names, path).names
  class_of = match_classes(names, ClassList(listed), f"{_name(data)}: data.{field}")
  label_of = {name: label for label, name in enumerate(names)}
  return np.array(
    [label_of[name] for name in sorted(class_of, key=class_of.__getitem__)]
  )


def _replacement(data: Data, split: str) -> str:
  """Split that is used as a data set's validation or test split: itself, or another
  one."""
  other = {"test": "validation", "validation": "test"}[split]
  used = next((name for name in (split, other) if _is_available(data, name)), "train")
  if used != split:
    _log_once(
      _NO_SPLIT, _name(data), split, f"using the {used} images instead, as {used!r}"
    )
  elif split not in _splits(data):
    share = f"{100 * _shares(data)[split]:g}% of each class's training images"
    if split == "validation" and data.shots:
      share = "the training images that are not among the shots"
    held, source = _divided(data)[split], _open_part(data, _UNDIVIDED)
    few = ""
    if len(small := np.setdiff1d(source.labels, source.labels[held])):
      n_small = f"{len(small)} of {len(source.names)} classes"
      few = (
        f"; {n_small} have too few to hold any out, such as {source.names[small[0]]!r}"
      )
    _log_once(
      _NO_SPLIT, _name(data), split, f"held out {share}, {len(held)} images{few}"
    )
  return used


def _is_available(data: Data, split: str) -> bool:
  """Whether a validation or test split exists, or images are held out for it."""
  possible = _shares(data)[split] or (split == "validation" and data.shots)
  return split in _splits(data) or bool(possible and len(_divided(data)[split]))


def _shares(data: Data) -> dict[str, float]:
  """Shares of each class's training images that are held out for missing splits."""
  splits, some = _splits(data), SOURCES[data.source].holds_out
  # Validation images alone are tested on. Few shots leave images for validation.
  test = some and not {"test", "validation"} & set(splits)
  validation = some and "validation" not in splits and not data.shots
  return {
    "test": data.test_share if test else 0.0,
    "validation": data.validation_share if validation else 0.0,
  }


def _open_part(data: Data, part: str) -> StoredImages:
  """Opens train, validation, test, or the undivided training images."""
  splits = _splits(data)
  if part in ("validation", "test"):
    part = _replacement(data, part)
  if part in ("validation", "test") and part in splits:
    return _open_split(data, part)
  if "train" not in splits:
    raise SourceError(f"{_name(data)}: no training images (found {', '.join(splits)})")
  if part == "train" and SOURCES[data.source].draws_shots:
    return _open_split(data, "train")
  undivided = _open_whole(data, "train")
  return undivided if part == _UNDIVIDED else undivided.subset(_divided(data)[part])


def _open_whole(data: Data, split: str) -> StoredImages:
  """Opens a split with all of its images, whatever the shots."""
  return _open_split(dataclasses.replace(data, shots=0), split)


@functools.lru_cache(maxsize=4)
def _divided(data: Data) -> dict[str, np.ndarray]:
  """Indices of the training images to train on, and of those held out for each split.

  With few shots, the remaining images are for validation.
  """
  undivided, shares = _open_part(data, _UNDIVIDED), list(_shares(data).values())
  rest, test, validation = np.arange(len(undivided)), np.arange(0), np.arange(0)
  if any(shares):
    rest, (test, validation) = held_out(undivided.labels, undivided.keys, shares)
  if data.shots:
    if SOURCES[data.source].draws_shots:
      taken = set(_open_split(data, "train").keys.tolist())
      shot = np.array([key in taken for key in undivided.keys[rest].tolist()], bool)
    else:
      chosen = few_shot(
        undivided.labels[rest], undivided.keys[rest], data.shots, data.shots_seed
      )
      shot = np.isin(np.arange(len(rest)), chosen)
    rest, validation = rest[shot], rest[~shot]
  return {"train": rest, "validation": validation, "test": test}


def _splits(data: Data) -> tuple[str, ...]:
  return load(SOURCES[data.source].module).splits(data)


@functools.lru_cache(maxsize=8)
def _open_split(data: Data, split: str) -> StoredImages:
  return (
    load(SOURCES[data.source].module)
    .open_split(data, split)
    .replace(upright=data.upright)
  )


def _name(data: Data) -> str:
  return " ".join(filter(None, (data.source, data.dataset, data.root)))
