"""The images that `config.data` names: the splits of a folder, of CoOp's layout, of a TFDS set.

A data set has some of the splits train, validation and test. Of a folder, what is missing is held
out of the training images. Otherwise another split stands in, under its own name; the log says so.
Opening reads lists and labels, no image.
"""

import dataclasses
import functools
import importlib
import logging
from types import ModuleType

import numpy as np

from pomp_jax.config import SYNTHETIC, ConfigError
from pomp_jax.config.fields import Data
from pomp_jax.data.class_lists import SYNSET, ClassList, load_class_list
from pomp_jax.data.folder import classes_of, match_classes
from pomp_jax.data.source import SourceError, StoredImages, spread_evenly
from pomp_jax.data.subsets import even_sample, few_shot, half_of_classes, held_out

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Data:
  """The fields of `config.data` that say which images there are."""

  source: str
  root: str
  dataset: str
  names: str
  base: str
  novel: str
  shots: int
  shots_seed: int
  test_share: float
  validation_share: float
  images_per_class: int
  cache: str


def open_stored(data: Data, split: str, n_images: int | None = None) -> StoredImages:
  """The images of a split.

  Args:
    data: `config.data`, of another source than the world.
    split: train or validation, with the classes that are trained on, or one of `stored_splits`.
    n_images: this many of them, over the classes as evenly as can be; all if None.

  Raises:
    SourceError, VocabularyError, ConfigError: one line each.
  """
  fields, trained = _fields(data), _trained_group(data)
  if split in ("train", "validation"):
    source, group = _split(fields, split), trained
  else:
    parts = _parts(data)
    if split not in parts:
      raise ValueError(f"no split {split!r} to evaluate on; there are {', '.join(parts)}")
    part, group = parts[split]
    source = _split(fields, part)
  kept = _classes_of(fields, source.names, group)
  if not len(kept):
    raise ConfigError("data.classes", group, "all, where there is one class")
  if data.n_classes and data.n_classes < len(kept):
    kept = kept[spread_evenly(data.n_classes, len(kept))]
  if not np.array_equal(kept, np.arange(len(source.names))):
    source = source.of_classes(kept)
  if not len(source):
    raise SourceError(f"data.root {data.root!r}: no image of split {split!r} is of these classes")
  if n_images is not None:
    source = source.subset(even_sample(source.labels, source.keys, n_images))
  return source


def stored_splits(data: Data) -> tuple[str, ...]:
  """What a learned prompt is evaluated on, named for the images that it is.

  `test`, or, of a data set without such images, `validation` or `train`; with groups of classes
  `base` and `novel` (lists) or `new` (CoOp's halves), of the test images. Where others stand in
  for these it is `validation/base`, `train/base` and so on.

  Raises:
    SourceError: no data set there.
  """
  return tuple(_parts(data))


def has_validation(data: Data) -> bool:
  """Whether any images but those that are trained on can choose between checkpoints."""
  return _stand_in(_fields(data), "validation") != "train"


def n_classes_of(data: Data) -> int:
  """N of the training; opens every split, so that what is missing shows.

  Raises:
    SourceError, VocabularyError, ConfigError: one line each.
  """
  train = open_stored(data, "train")
  for split in ("validation", *stored_splits(data)):
    open_stored(data, split)
  n_classes = len(train.names)
  if data.n_classes > n_classes:
    raise ConfigError("data.n_classes", data.n_classes, f"at most {n_classes}, or 0 for all")
  if data.base:
    count_N = np.bincount(train.labels, minlength=n_classes)
    if not count_N.all():
      name = train.names[int(np.argmin(count_N))]
      raise SourceError(f"data.root {data.root!r}: no training image of data.base's {name!r}")
  return n_classes


def _fields(data: Data) -> _Data:
  return _Data(
    data.source,
    data.root,
    data.dataset,
    data.names,
    data.base,
    data.novel,
    data.shots,
    data.shots_seed,
    data.test_share,
    data.validation_share,
    data.images_per_class,
    data.cache,
  )


def _trained_group(data: Data) -> str:
  """The classes that are trained on: all, base or new."""
  return "base" if data.base else data.classes


def _parts(data: Data) -> dict[str, tuple[str, str]]:
  """By their names the splits of an evaluation: which images, and of which classes."""
  fields, trained = _fields(data), _trained_group(data)
  part = _stand_in(fields, "test")
  if trained == "all":
    return {part: (part, "all")}
  found = {}
  for group in ("base", "novel" if data.base else "new"):
    if group == trained or (part != "train" and part in _splits(fields)):
      found[group if part == "test" else f"{part}/{group}"] = part, group
    else:
      # Nothing of these classes is trained on: all their images are for testing.
      found[group] = "whole", group
  return found


def _classes_of(data: _Data, names: tuple[str, ...], group: str) -> np.ndarray:
  """Labels of a group of classes: of base or novel in the order of their list."""
  if not data.base or group == "all":
    return half_of_classes(len(names), group)
  base = _listed(data, "base", names)
  if group == "base":
    return base
  if not data.novel:
    others = np.setdiff1d(np.arange(len(names)), base)
    if not len(others):
      raise ConfigError("data.base", data.base, "a list that leaves classes for novel ones")
    return others
  novel = _listed(data, "novel", names)
  both = np.intersect1d(base, novel)
  if len(both):
    takes = f"classes that are not in data.base; {names[both[0]]!r} is in both"
    raise ConfigError("data.novel", data.novel, takes)
  return novel


def _listed(data: _Data, field: str, names: tuple[str, ...]) -> np.ndarray:
  listed = load_class_list(getattr(data, field))
  if all(map(SYNSET.fullmatch, listed.names)):
    listed = classes_of(listed.names, getattr(data, field))
  class_of = match_classes(names, ClassList(listed.names), f"{_name(data)}: data.{field}")
  label_of = {name: label for label, name in enumerate(names)}
  return np.array([label_of[name] for name in sorted(class_of, key=class_of.__getitem__)])


def _stand_in(data: _Data, split: str) -> str:
  """What a data set's validation or test images are: the split itself, or one in its place."""
  other = {"test": "validation", "validation": "test"}[split]
  instead = next((name for name in (split, other) if _has(data, name)), "train")
  if instead != split:
    _say(_name(data), split, f"in its place the {instead} images, as {instead!r}")
  elif split not in _splits(data):
    share = f"{100 * _shares(data)[split]:g}% of each class's training images"
    if split == "validation" and data.shots:
      share = "the training images that are not among the shots"
    n_images = len(_held_out(data)[split])
    _say(_name(data), split, f"held out for it are {share}, {n_images} images in all")
  return instead


def _has(data: _Data, split: str) -> bool:
  """Whether there is a validation or test split, or images that are held out for it."""
  if split in _splits(data):
    return True
  possible = _shares(data)[split] or (split == "validation" and data.shots)
  return bool(possible and len(_held_out(data)[split]))


def _shares(data: _Data) -> dict[str, float]:
  """Of each class's training images, the shares that are held out for missing splits."""
  there = _splits(data)
  if data.source != "folder":
    return {"test": 0.0, "validation": 0.0}
  return {
    # A validation split without a test split is what data sets are tested on.
    "test": 0.0 if {"test", "validation"} & set(there) else data.test_share,
    # With few shots there are images left over.
    "validation": 0.0 if "validation" in there or data.shots else data.validation_share,
  }


def _split(data: _Data, part: str) -> StoredImages:
  """The images of a part: train, validation, test, or whole, the training images undivided."""
  if part == "whole":
    return _whole(data)
  if part != "train":
    part = _stand_in(data, part)
  if part == "train":
    return _train(data)
  if part in _splits(data):
    return _open(data, part)
  return _whole(data).subset(_held_out(data)[part])


def _whole(data: _Data) -> StoredImages:
  """The training images before any is held out, or left out by the number of shots."""
  there = _splits(data)
  if "train" not in there:
    raise SourceError(f"{_name(data)}: has no images to train with; its splits: {', '.join(there)}")
  return _open(dataclasses.replace(data, shots=0), "train")


def _train(data: _Data) -> StoredImages:
  """The training images, or the few-shot subset of them; CoOp's is CoOp's own."""
  if data.source == "coop" and "train" in _splits(data):
    return _open(data, "train")
  return _whole(data).subset(_held_out(data)["train"])


@functools.lru_cache(maxsize=4)
def _held_out(data: _Data) -> dict[str, np.ndarray]:
  """Indices of the training images: those trained on, and those held out for each split.

  With few shots, those that are left over are the validation images.
  """
  whole, shares = _whole(data), _shares(data)
  rest, test, validation = np.arange(len(whole)), np.arange(0), np.arange(0)
  if any(shares.values()):
    rest, (test, validation) = held_out(
      whole.labels, whole.keys, (shares["test"], shares["validation"])
    )
  if data.shots:
    if data.source == "coop":
      taken = set(_open(data, "train").keys.tolist())
      shot = np.array([key in taken for key in whole.keys[rest].tolist()], bool)
    else:
      chosen = few_shot(whole.labels[rest], whole.keys[rest], data.shots, data.shots_seed)
      shot = np.isin(np.arange(len(rest)), chosen)
    rest, validation = rest[shot], rest[~shot]
  return {"train": rest, "validation": validation, "test": test}


def _splits(data: _Data) -> tuple[str, ...]:
  return _module(data.source).splits(data)


@functools.lru_cache(maxsize=8)
def _open(data: _Data, split: str) -> StoredImages:
  """A split that the data set has, all of it."""
  return _module(data.source).open_split(data, split)


def _module(source: str) -> ModuleType:
  """Imported when it is needed: TFDS takes half a second, which no other source has to wait for."""
  name = "synthetic" if source == SYNTHETIC else source
  return importlib.import_module(f"pomp_jax.data.{name}")


def _name(data: _Data) -> str:
  return " ".join(filter(None, (data.source, data.dataset, data.root)))


@functools.cache
def _say(name: str, split: str, instead: str) -> None:
  """Once a process, however often the split is opened."""
  log.info("%s has no split %r: %s", name, split, instead)
