"""The data sets of an evaluation, by the names that configs use."""

from collections.abc import Callable
import dataclasses
import difflib
import pathlib

from ml_collections import ConfigDict
import numpy as np

from pomp_jax.config import WORLD, ConfigError
from pomp_jax.data.coop import COOP_SETS, open_coop
from pomp_jax.data.folder import open_folder, split_folders
from pomp_jax.data.source import Source, SourceError, StoredImages
from pomp_jax.data.subsets import even_sample, half_of_classes
from pomp_jax.data.suites import SUITES
from pomp_jax.data.vocabularies import ClassList, load_class_list
from pomp_jax.jobs import inputs
from pomp_jax.jobs.named_prompts import SEPARATOR


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
  """A data set with the classes that are told apart in it.

  Attributes:
    name: such as "dtd", or "dtd/base" for a half of its classes.
    open: opens the images and their class list, which has the names of the images' own source;
      reads no image.
  """

  name: str
  open: Callable[[], tuple[Source, ClassList]]


def evaluation_sets(config: ConfigDict, image_size: int) -> list[EvaluationSet]:
  """The sets that `config.evaluate` asks for, unopened.

  Args:
    config: the whole config.
    image_size: what the CLIP takes, pixels.

  Raises:
    ConfigError: a set that is not the suite's, or no folder for it.
  """
  suite, settings = SUITES[config.evaluate.suite], config.evaluate
  known = (*suite.sets, *suite.more)
  names = [name.strip() for name in settings.sets.split(SEPARATOR) if name.strip()]
  for name in names:
    if name not in known or names.count(name) > 1:
      near = difflib.get_close_matches(name, known, 1)
      hint = f" (did you mean {near[0]!r}?)" if near and near[0] != name else ""
      takes = f"one or more different ones of {', '.join(known)}, separated by {SEPARATOR!r}{hint}"
      raise ConfigError("evaluate.sets", name, takes)
  names = names or list(suite.sets)
  if settings.suite == WORLD:
    return [EvaluationSet(split, lambda split=split: _world(config, split)) for split in names]
  if not pathlib.Path(settings.root).is_dir() or not settings.root:
    raise ConfigError("evaluate.root", settings.root, "a folder that exists, with the data sets")
  halves = ("base", "new") if suite.halves else ("all",)
  return [
    EvaluationSet(
      name if half == "all" else f"{name}/{half}",
      lambda name=name, half=half: _stored(settings, name, half, image_size),
    )
    for name in names
    for half in halves
  ]


def _world(config: ConfigDict, split: str) -> tuple[Source, ClassList]:
  n_images = config.evaluate.images or config.eval.images
  source = inputs.open_source(config.data, split, n_images=n_images)
  template = config.eval.template
  return source, ClassList(tuple(source.names), None, template, (template,), "the embedded world")


def _stored(
  settings: ConfigDict, name: str, half: str, image_size: int
) -> tuple[StoredImages, ClassList]:
  classes = load_class_list(name)
  source = _READERS[settings.reader](settings.root, name, classes, image_size)
  if classes.synsets is None:
    _check_names(source.names, classes.names, f"{settings.root}: {name}")
  elif len(source.names) != len(classes):
    classes = _some_classes(classes, source.names, f"{settings.root}: {name}")
  # ImageNet's classes were told by their ids, and what they are called is the source's affair.
  classes = dataclasses.replace(classes, names=source.names)
  if half != "all":
    kept = half_of_classes(len(classes), half)
    synsets = None if classes.synsets is None else tuple(classes.synsets[c] for c in kept)
    names = tuple(classes.names[c] for c in kept)
    classes = dataclasses.replace(classes, names=names, synsets=synsets)
    new_label = np.full(len(source.names), -1)
    new_label[kept] = np.arange(len(kept))
    source = source.relabelled(names, new_label[source.labels])
  if settings.images:
    source = source.subset(even_sample(source.labels, source.keys, settings.images))
  if not len(source):
    raise SourceError(f"{settings.root}: {name} has no test image of the classes asked for")
  return source, classes


def _some_classes(classes: ClassList, names: tuple[str, ...], where: str) -> ClassList:
  """The classes of a data set that was made of a part of the list.

  Raises:
    SourceError: one that is not in the list.
  """
  label = {name: c for c, name in enumerate(classes.names)}
  for name in names:
    if name not in label:
      raise SourceError(f"{where}: class {name!r} is not in its class list")
  return dataclasses.replace(
    classes, names=names, synsets=tuple(classes.synsets[label[name]] for name in names)
  )


def _coop(root: str, name: str, classes: ClassList, image_size: int) -> StoredImages:
  del classes
  if name not in COOP_SETS:
    takes = f"tfds or folder for {name}; coop has {', '.join(COOP_SETS)}"
    raise ConfigError("evaluate.reader", "coop", takes)
  return open_coop(root, name, image_size=image_size)["test"]


def _tfds(root: str, name: str, classes: ClassList, image_size: int) -> StoredImages:
  # Imported where it is needed: that takes seconds.
  from pomp_jax.data.tfds import open_tfds, tfds_splits

  del classes
  splits = tfds_splits(name, root)
  # What ImageNet and Food-101 are tested on is their validation split.
  split = splits.get("test", splits.get("validation"))
  if split is None:
    raise SourceError(f"{root}: {name} has no test split; it has {', '.join(splits)}")
  return open_tfds(name, split, root=root, image_size=image_size)


def _folder(root: str, name: str, classes: ClassList, image_size: int) -> StoredImages:
  """From a folder called as the class list, or from the root itself where there is none."""
  own = pathlib.Path(root, name)
  splits = split_folders(own if own.is_dir() else root)
  folder = splits.get("test") or splits.get("validation") or splits["train"]
  return open_folder(folder, classes, image_size=image_size)


_READERS = {"coop": _coop, "tfds": _tfds, "folder": _folder}


def _check_names(found: tuple[str, ...], known: tuple[str, ...], where: str) -> None:
  """Refuses a set whose labels mean other classes than its list has.

  Raises:
    SourceError: another number of classes, or one that is called otherwise.
  """
  if len(found) != len(known):
    raise SourceError(f"{where}: {len(found)} classes, but its class list has {len(known)}")
  for label, (own, listed) in enumerate(zip(found, known, strict=True)):
    if own != listed:
      raise SourceError(f"{where}: label {label} is {own!r}, but {listed!r} in its class list")
