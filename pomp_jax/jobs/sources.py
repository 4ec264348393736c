"""The images that `config.data` names: the splits of a folder, of CoOp's layout, of a TFDS set.

A data set has some of the splits train, validation and test; what stands for a missing one is
said in the log. Opening reads lists and labels, no image.
"""

import dataclasses
import functools
import logging

from ml_collections import ConfigDict
import numpy as np

from pomp_jax.config import MADE_UP_DATA, ConfigError
from pomp_jax.data.coop import open_coop
from pomp_jax.data.folder import open_folder, own_classes, split_folders, subfolders
from pomp_jax.data.made_up import open_made_up
from pomp_jax.data.source import SourceError, StoredImages, spread_evenly
from pomp_jax.data.subsets import even_sample, few_shot, half_of_classes
from pomp_jax.data.vocabularies import ClassList, load_class_list
from pomp_jax.files.array_cache import ArrayCache

log = logging.getLogger(__name__)

_HALVES = ("base", "new")
_MADE_UP_TEST_IMAGES = 5  # a class


@dataclasses.dataclass(frozen=True)
class _Data:
  """The fields of `config.data` that say which images there are."""

  source: str
  root: str
  dataset: str
  names: str
  shots: int
  shots_seed: int
  images_per_class: int
  cache: str


def open_stored(data: ConfigDict, split: str, n_images: int | None = None) -> StoredImages:
  """The images of a split.

  Args:
    data: `config.data`, of another source than the world.
    split: train, validation or test, with the classes of `data.classes`; base or new, which are the
      test images of that half of the classes.
    n_images: this many of them, over the classes as evenly as can be; all if None.

  Raises:
    SourceError, VocabularyError, ConfigError: one line each.
  """
  half, part = (split, "test") if split in _HALVES else (data.classes, split)
  source = _with_fallback(_fields(data), part)
  kept = half_of_classes(len(source.names), half)
  if not len(kept):
    raise ConfigError("data.classes", half, "all, where there is one class")
  if data.n_classes and data.n_classes < len(kept):
    kept = kept[spread_evenly(data.n_classes, len(kept))]
  if len(kept) < len(source.names):
    new_label = np.full(len(source.names), -1)
    new_label[kept] = np.arange(len(kept))
    source = source.relabelled([source.names[c] for c in kept], new_label[source.labels])
  if not len(source):
    raise SourceError(f"data.root {data.root!r}: no image of split {split!r} is of these classes")
  if n_images is not None:
    source = source.subset(even_sample(source.labels, source.keys, n_images))
  return source


def stored_splits(data: ConfigDict) -> tuple[str, ...]:
  """What a learned prompt is evaluated on: all classes, or each half of them."""
  return ("test",) if data.classes == "all" else _HALVES


def n_classes_of(data: ConfigDict) -> int:
  """N of the training; opens every split, so that what is missing shows.

  Raises:
    SourceError, VocabularyError, ConfigError: one line each.
  """
  for split in ("validation", *stored_splits(data)):
    open_stored(data, split)
  n_classes = len(open_stored(data, "train").names)
  if data.n_classes > n_classes:
    raise ConfigError("data.n_classes", data.n_classes, f"at most {n_classes}, or 0 for all")
  return n_classes


def _fields(data: ConfigDict) -> _Data:
  return _Data(**{field.name: data[field.name] for field in dataclasses.fields(_Data)})


def _with_fallback(data: _Data, split: str) -> StoredImages:
  """A split, or what stands for it where the data set has no such split."""
  there = _splits(data)
  if split in there:
    return _train(data) if split == "train" else _open(data, split)
  if split == "train":
    raise SourceError(f"{_name(data)}: has no images to train with; its splits: {', '.join(there)}")
  others = [other for other in ("validation", "test") if other in there]
  rest = _left_over(data) if data.shots else None
  # Images that the training does not see, if there are any; those that evaluate nothing else first.
  if split == "validation" and rest is not None:
    _say(_name(data), split, "the training images that are not among the shots")
    return rest
  if others:
    _say(_name(data), split, f"the split {others[0]!r}")
    return _open(data, others[0])
  if rest is not None:
    _say(_name(data), split, "the training images that are not among the shots")
    return rest
  _say(_name(data), split, "the training images, for want of any others")
  return _train(data)


@functools.lru_cache(maxsize=4)
def _train(data: _Data) -> StoredImages:
  """The training images, or the few-shot subset of them; CoOp's is CoOp's own."""
  source = _open(data, "train")
  if not data.shots or data.source == "coop":
    return source
  return source.subset(few_shot(source.labels, source.keys, data.shots, data.shots_seed))


@functools.lru_cache(maxsize=4)
def _left_over(data: _Data) -> StoredImages | None:
  """The training images that are not among the shots."""
  if "train" not in _splits(data):
    return None
  whole = _open(dataclasses.replace(data, shots=0), "train")
  taken = set(_train(data).keys.tolist())
  rest = np.array([i for i, key in enumerate(whole.keys.tolist()) if key not in taken], int)
  return whole.subset(rest) if len(rest) else None


def _splits(data: _Data) -> tuple[str, ...]:
  if data.source == MADE_UP_DATA:
    return ("train", "validation", "test")
  if data.source == "folder":
    return tuple(split_folders(data.root))
  if data.source == "coop":
    return tuple(_coop(data))
  return tuple(_tfds_splits(data.dataset, data.root))


@functools.lru_cache(maxsize=8)
def _open(data: _Data, split: str) -> StoredImages:
  """A split that the data set has, all of it."""
  classes = load_class_list(data.names) if data.names else None
  if data.source == MADE_UP_DATA:
    count = data.images_per_class if split == "train" else _MADE_UP_TEST_IMAGES
    return open_made_up(classes.names, count)
  if data.source == "folder":
    return _open_folder(data.root, split, classes)
  if data.source == "coop":
    return _renamed(_coop(data)[split], classes, data.names)
  from pomp_jax.data.tfds import open_tfds  # half a second, which no other source has to wait for

  return open_tfds(
    data.dataset,
    _tfds_splits(data.dataset, data.root)[split],
    root=data.root or None,
    classes=classes,
    cache=ArrayCache(data.cache),
  )


def _open_folder(root: str, split: str, classes: ClassList | None) -> StoredImages:
  folders = split_folders(root)
  if classes is None:  # the training's, for all splits
    names_from = folders.get("train", folders[split])
    classes = own_classes(subfolders(names_from), str(names_from))
  return open_folder(folders[split], classes, all_classes=split == "train")


@functools.lru_cache(maxsize=4)
def _coop(data: _Data) -> dict[str, StoredImages]:
  return open_coop(data.root, data.dataset, shots=data.shots, seed=data.shots_seed)


@functools.lru_cache(maxsize=4)
def _tfds_splits(dataset: str, root: str) -> dict[str, str]:
  from pomp_jax.data.tfds import tfds_splits

  return tfds_splits(dataset, root or None)


def _renamed(source: StoredImages, classes: ClassList | None, names: str) -> StoredImages:
  """A user's names for a data set's classes, in the order of its labels."""
  if classes is None:
    return source
  if len(classes) != len(source.names):
    raise ConfigError("data.names", names, f"{len(source.names)} names; this has {len(classes)}")
  return source.relabelled(classes.names, source.labels)


def _name(data: _Data) -> str:
  return " ".join(filter(None, (data.source, data.dataset, data.root)))


@functools.cache
def _say(name: str, split: str, instead: str) -> None:
  """Once a process, however often the split is opened."""
  log.info("%s has no split %r: %s", name, split, instead)
