"""Published data sets by the names of their class lists, for an evaluation."""

import dataclasses
import functools

from pomp_jax.config import READERS, SOURCES, ConfigError
from pomp_jax.data.class_lists import ClassList, load_class_list
from pomp_jax.data.source import LabelledSet, SourceError
from pomp_jax.data.subsets import half_of_classes
from pomp_jax.evaluate.evaluation_sets import EvaluationSet, part_name
from pomp_jax.files.paths import is_dir


def evaluation_sets(
  reader: str, root: str, name: str, group: str, halves: bool
) -> list[EvaluationSet]:
  """A data set below the folder of them all, or the halves of its classes."""
  if not root or not is_dir(root):
    raise ConfigError("evaluate.root", root, "a folder that exists, with the data sets")
  if expected := SOURCES[reader].expected_dataset(name):
    others = " or ".join(other for other in READERS if other != reader)
    raise ConfigError("evaluate.source", reader, f"{others} for {name}; {reader} has {expected}")
  n_listed, sets = 0 if halves else len(load_class_list(name)), []
  for part in ("base", "new") if halves else ("all",):
    opened = functools.partial(_open, reader, root, name, part)
    sets.append(EvaluationSet(part_name(name, part), group, name, part, opened, reader, n_listed))
  return sets


def _open(reader: str, root: str, name: str, part: str) -> LabelledSet:
  classes, where = load_class_list(name), f"{root}: {name}"
  source, _, split = SOURCES[reader].load().open_test_set(root, name, classes)
  labelled = LabelledSet(source, _matched(classes, source.names, where), split)
  if part != "all":
    labelled = labelled.of_classes(half_of_classes(len(labelled.classes), part))
  if not len(labelled.source):
    raise SourceError(f"{where} has no test image of the classes asked for")
  return labelled


def _matched(classes: ClassList, names: tuple[str, ...], where: str) -> ClassList:
  """The class list under a data set's names; SourceError if the labels mean other classes."""
  if classes.synsets is None:
    if len(names) != len(classes):
      raise SourceError(f"{where}: {len(names)} classes, but its class list has {len(classes)}")
    for label, (own, listed) in enumerate(zip(names, classes.names, strict=True)):
      if own != listed:
        raise SourceError(f"{where}: label {label} is {own!r}, but {listed!r} in its class list")
  elif len(names) != len(classes):
    label_of = {name: label for label, name in enumerate(classes.names)}
    unknown = [name for name in names if name not in label_of]
    if unknown:
      raise SourceError(f"{where}: class {unknown[0]!r} is not in its class list")
    classes = classes.subset([label_of[name] for name in names])
  # ImageNet's classes were matched by id, so the source may have other names for them.
  return dataclasses.replace(classes, names=names)
