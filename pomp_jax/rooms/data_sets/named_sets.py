"""Sets of an evaluation by name: published data sets by their class lists, splits of
the world."""

import dataclasses
import functools
import os

from jaxtyping import Int
import numpy as np

from pomp_jax.config import READERS, SOURCES, ConfigError, near_match
from pomp_jax.config.declare import require
from pomp_jax.config.fields import Evaluate
from pomp_jax.data.class_lists import ClassList, load_class_list, repeats
from pomp_jax.data.folder import classes_in, open_folder, split_folders
from pomp_jax.data.source import LabelledSet, SourceError, StoredImages
from pomp_jax.data.subsets import half_of_classes
from pomp_jax.evaluate.evaluation_sets import EvaluationSet, OfSplit
from pomp_jax.files.paths import is_dir, to_path
from pomp_jax.registry import load
from pomp_jax.rooms.data_sets.fields import Sets
from pomp_jax.rooms.data_sets.suites import GROUP_OF, NO_SUITE, SUITES


def named_sets(
  evaluate: Evaluate, source: str, of_split: OfSplit
) -> list[EvaluationSet]:
  """Returns the sets that `evaluate.sets` or the suite names.

  Args:
    evaluate: fields of the evaluation.
    source: `data.source`, of whose splits some have names.
    of_split: opens splits of that source.

  Raises:
    ConfigError: an unknown name, or no folder for it.
  """
  settings = evaluate.of(Sets)
  sets = []
  for name in _named(settings):
    sets += _of_named(settings, evaluate, source, name, of_split)
  return sets


def _named(settings: Sets) -> list[str]:
  """Named sets: those of `sets`, or else the suite's."""
  suite = None if settings.suite == NO_SUITE else SUITES[settings.suite]
  known = tuple(GROUP_OF) if suite is None else (*suite.sets, *suite.more)
  found: list[str] = []
  for name in settings.sets:
    # The name of a suite means its sets, unless a set has the same name.
    is_suite = name in SUITES and name not in known and not SUITES[name].halves
    whole = SUITES[name].sets if is_suite else ()
    found += whole if whole and set(whole) <= set(known) else (name,)
  for name in [x for x in found if x not in known] + [found[i] for i in repeats(found)]:
    takes = f"one or more different ones of {', '.join(known)}{near_match(name, known)}"
    raise ConfigError("evaluate.sets", name, takes)
  return found or list(suite.sets if suite else ())


def _of_named(
  settings: Sets, evaluate: Evaluate, source: str, name: str, of_split: OfSplit
) -> list[EvaluationSet]:
  """A named set, or its halves; `source` is `data.source`, of whose splits some have
  names."""
  halves = settings.suite != NO_SUITE and SUITES[settings.suite].halves
  group = settings.suite if halves else GROUP_OF[name]
  if group in SOURCES:  # the sets of an image source, which has no files
    field, got = ("suite", group) if settings.suite == group else ("sets", name)
    takes = (
      f"a set of its own where data.source={source!r}: evaluate.suite={NO_SUITE!r}"
      " without sets evaluates what config.data names, evaluate.sets_file any sets"
    )
    require(source == group, f"evaluate.{field}", got, takes)
    opened = functools.partial(of_split, name, "test")
    return [EvaluationSet(name, source, name, "all", opened)]
  reader, root = evaluate.source, evaluate.root
  require(
    root and is_dir(root),
    "evaluate.root",
    root,
    "a folder that exists, with the data sets",
  )
  if expected := SOURCES[reader].expected_dataset(name):
    others = " or ".join(other for other in READERS if other != reader)
    raise ConfigError(
      "evaluate.source", reader, f"{others} for {name}; {reader} takes {expected}"
    )
  n_listed, sets = 0 if halves else len(load_class_list(name)), []
  for part in ("base", "new") if halves else ("all",):
    opened = functools.partial(_open, reader, root, name, part)
    label = f"{name}/{part}" if halves else name
    sets.append(EvaluationSet(label, group, name, part, opened, reader, n_listed))
  return sets


def _open(reader: str, root: str, name: str, part: str) -> LabelledSet:
  classes, where = load_class_list(name), f"{root}: {name}"
  source, _, split = open_test_set(reader, root, name, classes)
  labelled = LabelledSet(source, _matched(classes, tuple(source.names), where), split)
  if part != "all":
    labelled = of_classes(labelled, half_of_classes(len(labelled.classes), part))
  if not len(labelled.source):
    raise SourceError(f"{where} has no test image of the classes asked for")
  return labelled


def of_classes(labelled: LabelledSet, classes: Int[np.ndarray, " C"]) -> LabelledSet:
  """C of the classes and their images, which must be `StoredImages`."""
  assert isinstance(labelled.source, StoredImages)
  source = labelled.source.of_classes(classes)
  return labelled._replace(source=source, classes=labelled.classes.subset(classes))


def _matched(classes: ClassList, names: tuple[str, ...], where: str) -> ClassList:
  """The class list under a data set's names; SourceError if the labels mean other
  classes."""
  if classes.synsets is None:
    if len(names) != len(classes):
      raise SourceError(
        f"{where}: {len(names)} classes, but its class list has {len(classes)}"
      )
    for label, (own, listed) in enumerate(zip(names, classes.names, strict=True)):
      if own != listed:
        raise SourceError(
          f"{where}: label {label} is {own!r}, but {listed!r} in its class list"
        )
  elif len(names) != len(classes):
    label_of = {name: label for label, name in enumerate(classes.names)}
    unknown = [name for name in names if name not in label_of]
    if unknown:
      raise SourceError(f"{where}: class {unknown[0]!r} is not in its class list")
    classes = classes.subset([label_of[name] for name in names])
  # ImageNet's classes were matched by id, so the source may have other names for them.
  return dataclasses.replace(classes, names=names)


def open_test_set(
  reader: str,
  root: str | os.PathLike,
  dataset: str,
  classes: ClassList | None,
  all_classes: bool = True,
) -> LabelledSet:
  """Opens the test images of a data set by a reader, or else its validation or training
  images.

  `root` has all data sets of a published layout; or split folders or class folders, or
  such a folder for each data set. Without classes they are the data set's own, of
  folders the names of the training folder. `all_classes` is whether a class of the list
  without a folder is an error.
  """
  if reader != "folder":
    return load(SOURCES[reader].module).open_test_set(root, dataset, classes)
  if dataset and is_dir(to_path(root) / dataset):
    root = to_path(root) / dataset
  folders = split_folders(root)
  split = next(split for split in ("test", "validation", "train") if split in folders)
  classes = classes or classes_in(folders.get("train", folders[split]))
  source = open_folder(folders[split], classes, all_classes)
  return LabelledSet(
    source, classes, "all" if folders[split] == to_path(root) else split
  )
