"""Opens sets of an evaluation by name: published data sets, and splits of the world."""

import dataclasses
import functools
import os

from jaxtyping import Int
import numpy as np

from pomp_jax.config import READERS, SOURCES, ConfigError, near_match
from pomp_jax.config.errors import require
from pomp_jax.config.fields import Evaluate
from pomp_jax.data.class_lists import ClassList, load_class_list, repeats
from pomp_jax.data.folder import classes_in, open_folder, split_folders
from pomp_jax.data.source import LabelledSet, SourceError, StoredImages
from pomp_jax.data.subsets import half_of_classes
from pomp_jax.evaluate.sets_to_evaluate import EvaluationSet, OfSplit
from pomp_jax.files.paths import is_dir, to_path
from pomp_jax.registry import load
from pomp_jax.rooms.data_sets.fields import Sets
from pomp_jax.rooms.data_sets.suites import GROUP_OF, NO_SUITE, SUITES


def published_sets(
  evaluate: Evaluate, source: str, of_split: OfSplit
) -> list[EvaluationSet]:
  """Returns the sets that `evaluate.sets` or the suite names.

  Args:
    evaluate: fields of the evaluation.
    source: `data.source`; the splits of a generated source are named sets too.
    of_split: function that opens a split of `source`.

  Raises:
    ConfigError: a name is unknown, or its data set has no folder.
  """
  settings = evaluate.of(Sets)
  is_halved = settings.suite != NO_SUITE and SUITES[settings.suite].halves
  sets = []
  for name in _names(settings):
    if is_halved:
      sets += _halves(evaluate, settings.suite, name)
    elif GROUP_OF[name] in SOURCES:
      # The group of a set that a source generates is named after the source.
      _check_generated(settings, source, name)
      opened = functools.partial(of_split, name, "test")
      generated = EvaluationSet(
        name=name, group=source, column=name, part="all", open=opened
      )
      sets.append(generated)
    else:
      sets.append(_published(evaluate, name))
  return sets


def _names(settings: Sets) -> list[str]:
  """Names of the sets: those of `settings.sets`, or of the suite if there are none."""
  suite_sets: tuple[str, ...] = ()
  known = tuple(GROUP_OF)
  if settings.suite != NO_SUITE:
    suite = SUITES[settings.suite]
    suite_sets = suite.sets
    known = (*suite.sets, *suite.more)
  names: list[str] = []
  for name in settings.sets:
    names += _sets_of_name(name, known)
  unknown = [name for name in names if name not in known]
  repeated = [names[index] for index in repeats(names)]
  for name in unknown + repeated:
    hint = near_match(name, known)
    accepted = f"one or more different ones of {', '.join(known)}{hint}"
    raise ConfigError("evaluate.sets", name, accepted)
  return names or list(suite_sets)


def _sets_of_name(name: str, known: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the sets of the suite `name`; any other name stands for itself.

  A name that is both a suite's and a known set's stands for the set.
  """
  if name in known or name not in SUITES or SUITES[name].halves:
    return (name,)
  sets = SUITES[name].sets
  return sets if set(sets) <= set(known) else (name,)


def _check_generated(settings: Sets, source: str, name: str) -> None:
  """Checks that `data.source` generates the images of a set that has no files."""
  group = GROUP_OF[name]
  accepted = (
    f"a set of its own where data.source={source!r}: evaluate.suite={NO_SUITE!r}"
    " without sets evaluates what config.data names, evaluate.sets_file any sets"
  )
  if settings.suite == group:
    require(source == group, "evaluate.suite", group, accepted)
  else:
    require(source == group, "evaluate.sets", name, accepted)


def _published(evaluate: Evaluate, name: str) -> EvaluationSet:
  """A data set with all classes of its list."""
  _check_files(evaluate, name)
  opened = functools.partial(_open, evaluate.source, evaluate.root, name, "all")
  return EvaluationSet(
    name=name,
    group=GROUP_OF[name],
    column=name,
    part="all",
    open=opened,
    reader=evaluate.source,
    n_listed=len(load_class_list(name)),
  )


def _halves(evaluate: Evaluate, suite: str, name: str) -> list[EvaluationSet]:
  """A data set's base classes and its new ones, as two sets."""
  _check_files(evaluate, name)
  sets = []
  for part in ("base", "new"):
    opened = functools.partial(_open, evaluate.source, evaluate.root, name, part)
    half = EvaluationSet(
      name=f"{name}/{part}",
      group=suite,
      column=name,
      part=part,
      open=opened,
      reader=evaluate.source,
    )
    sets.append(half)
  return sets


def _check_files(evaluate: Evaluate, name: str) -> None:
  """Checks that the folder of the data sets exists, and that the reader has this set."""
  root = evaluate.root
  is_folder = root and is_dir(root)
  require(is_folder, "evaluate.root", root, "a folder that exists, with the data sets")
  reader = evaluate.source
  if expected := SOURCES[reader].expected_dataset(name):
    others = " or ".join(other for other in READERS if other != reader)
    accepted = f"{others} for {name}; {reader} takes {expected}"
    raise ConfigError("evaluate.source", reader, accepted)


def _open(reader: str, root: str, name: str, part: str) -> LabelledSet:
  """Opens a published data set, or one half of its classes."""
  classes = load_class_list(name)
  where = f"{root}: {name}"
  source, _, split = open_test_set(reader, root, name, classes)
  labelled = LabelledSet(source, _matched(classes, tuple(source.names), where), split)
  if part != "all":
    labelled = of_classes(labelled, half_of_classes(len(labelled.classes), part))
  if not len(labelled.source):
    raise SourceError(f"{where} has no test image of the classes asked for")
  return labelled


def of_classes(labelled: LabelledSet, classes: Int[np.ndarray, " C"]) -> LabelledSet:
  """Keeps C of the classes and their images; the images must be `StoredImages`."""
  assert isinstance(labelled.source, StoredImages)
  source = labelled.source.of_classes(classes)
  return labelled._replace(source=source, classes=labelled.classes.subset(classes))


def _matched(classes: ClassList, names: tuple[str, ...], where: str) -> ClassList:
  """Returns a packaged class list in the order and under the names of a data set.

  A list with synsets is ImageNet's. The labels of the data set were matched to such a
  list by synset, so only their number can differ: some data sets have a part of the
  classes. Any other list must have the names of the data set, in the same order.

  Args:
    classes: packaged class list of the data set.
    names: names of the data set's labels.
    where: data set, for messages.

  Raises:
    SourceError: the data set's labels stand for other classes.
  """
  if classes.synsets is None:
    _check_names(classes, names, where)
  elif len(names) != len(classes):
    label_of = {name: label for label, name in enumerate(classes.names)}
    labels = []
    for name in names:
      if name not in label_of:
        raise SourceError(f"{where}: class {name!r} is not in its class list")
      labels.append(label_of[name])
    classes = classes.subset(labels)
  # The source may have other names for ImageNet's classes.
  return dataclasses.replace(classes, names=names)


def _check_names(classes: ClassList, names: tuple[str, ...], where: str) -> None:
  """Raises SourceError unless a data set has the names of a class list, in order."""
  if len(names) != len(classes):
    raise SourceError(
      f"{where}: {len(names)} classes, but its class list has {len(classes)}"
    )
  for label, (name, listed) in enumerate(zip(names, classes.names, strict=True)):
    if name != listed:
      raise SourceError(
        f"{where}: label {label} is {name!r}, but {listed!r} in its class list"
      )


def open_test_set(
  reader: str,
  root: str | os.PathLike,
  dataset: str,
  classes: ClassList | None,
  all_classes: bool = True,
) -> LabelledSet:
  """Opens the test images of a data set, or else its validation or training images.

  Args:
    reader: one of `config.READERS`.
    root: folder with all data sets of a published layout. For the reader `folder` it is
      a folder with split folders or class folders, or with such a folder for each data
      set.
    dataset: name of the data set.
    classes: class list; None for the data set's own classes. For the reader `folder`
      they are the class folders of the training images.
    all_classes: whether a class of the list must have a folder.

  Raises:
    SourceError: the folder is missing, or has other classes.
  """
  if reader != "folder":
    source = load(SOURCES[reader].module)
    return source.open_test_set(root, dataset, classes)

  folder = to_path(root)
  if dataset and is_dir(folder / dataset):
    folder = folder / dataset
  folders = split_folders(folder)
  splits = ("test", "validation", "train")  # by preference
  split: str = next(name for name in splits if name in folders)
  if classes is None:
    # Without training images, the class folders of the chosen split name the classes.
    named_by = folders.get("train", folders[split])
    classes = classes_in(named_by)
  images = open_folder(folders[split], classes, all_classes)
  if folders[split] == folder:
    split = "all"  # the folder is not divided
  return LabelledSet(images, classes, split)
