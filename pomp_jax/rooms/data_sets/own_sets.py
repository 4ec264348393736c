"""A user's own data sets, described in a TOML file or a config as
docs/how-to/evaluation.md shows.

Parsing checks keys and values. Files and folders are read when a set is opened.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import logging
import os
import re
import tomllib
from typing import Any, NamedTuple

import numpy as np

from pomp_jax.config import READERS, SOURCES, near_match
from pomp_jax.data import class_lists
from pomp_jax.data.source import LabelledSet, SourceError, StoredImages
from pomp_jax.data.subsets import half_of_classes
from pomp_jax.data.wordnet import load_tree
from pomp_jax.evaluate.evaluation_sets import EvaluationSet
from pomp_jax.files.paths import join, read_text, to_path
from pomp_jax.files.terminal import printable
from pomp_jax.report.evaluation_report import OWN
from pomp_jax.rooms.data_sets.named_sets import of_classes, open_test_set

log = logging.getLogger(__name__)

# Class names themselves, a file of names, or the name of a list.
Names = tuple[str, ...] | str

FIRST_HALF = "first half"
# Names of sets become file names.
_NAME = re.compile(r"\w([\w .+-]{0,78}[\w.+-])?")


class OwnSet(NamedTuple):
  """Description of a data set."""

  name: str  # in tables and files
  root: str  # folder of class folders, CoOp's $DATA, or TFDS's data_dir
  reader: str = "folder"  # one of `config.READERS`
  dataset: str = ""  # name of the data set in coop or tfds
  names: Names = ""  # class list; "": the data set's own
  base: Names = ""  # classes that a prompt was learned on, "first half"; "": undivided
  novel: Names = ""  # the other classes; "" with `base`: all that are not base
  # Hand-written prompts with a {} each: the first is `hand_written`, all are the
  # ensemble. Empty: those of the class list.
  templates: tuple[str, ...] = ()
  synsets: Names = ""  # WordNet ids in the order of the names; "": the class list's
  folder: str = ""  # start of relative paths
  where: str = ""  # the file, or the field of the config, for messages

  @property
  def parts(self) -> tuple[str, ...]:
    """Parts to evaluate: "base" and "novel", or "all"."""
    return ("base", "novel") if self.base else ("all",)


# Keys of an entry whose value may be a text, and a list of texts.
_TEXTS = ("name", "root", "reader", "dataset", "names", "base", "novel", "synsets")
_LISTS = ("names", "base", "novel", "synsets", "templates")
_KEYS = (*_TEXTS, "templates")


def evaluation_sets(sets_file: str, own_sets: Sequence[Any]) -> list[EvaluationSet]:
  """Sets of a file, if one is named, and of `evaluate.own_sets`; errors as of
  `parse_sets`."""
  found = read_sets_file(sets_file) if sets_file else []
  found += parse_sets(own_sets, "config.evaluate.own_sets") if own_sets else []
  sets = []
  for own, part in ((one, part) for one in found for part in one.parts):
    opened = functools.partial(open_own_set, own, part)
    name = own.name if part == "all" else f"{own.name}/{part}"
    sets.append(EvaluationSet(name, OWN, own.name, part, opened, own.reader))
  return sets


def read_sets_file(path: str | os.PathLike) -> list[OwnSet]:
  """Reads the sets of a TOML file, with paths relative to its folder; raises as
  `parse_sets`."""
  path = to_path(path)
  text = read_text(path, SourceError)
  try:
    tables = tomllib.loads(text)
  except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
    raise SourceError(f"{path}: not TOML ({printable(str(error))})") from error
  if set(tables) != {"set"} or not isinstance(tables["set"], list):
    found = next((repr(printable(key, 80)) for key in tables if key != "set"), "none")
    raise SourceError(
      f"{path}: found {found}, expected a table [[set]] for each data set"
    )
  return parse_sets(tables["set"], str(path), path.parent)


def parse_sets(
  entries: Sequence[Any], where: str, folder: str | os.PathLike = ""
) -> list[OwnSet]:
  """Parses dicts with the keys of `OwnSet` up to `synsets`; see there for the other
  arguments.

  SourceError for an unknown key, an invalid value, or a repeated name.
  """
  sets = [
    _parse(one, number, where, os.fspath(folder))
    for number, one in enumerate(entries, 1)
  ]
  for index in class_lists.repeats(one.name for one in sets):
    raise SourceError(f"{where}: set {sets[index].name!r}: key 'name': is repeated")
  if not sets:
    raise SourceError(f"{where}: no data set")
  return sets


def open_own_set(own: OwnSet, part: str) -> LabelledSet:
  """Opens one of a set's `parts`; SourceError names the set and the key."""
  try:
    labelled = _open_whole(own)
    if part != "all":
      labelled = of_classes(labelled, _kept_classes(own, labelled.classes, part))
  except (SourceError, class_lists.VocabularyError) as error:
    prefix = f"{own.where}: set {own.name!r}: "
    raise SourceError(prefix + str(error).removeprefix(prefix)) from error
  if not len(labelled.source):
    raise _wrong(own, part, "no image of its classes")
  return labelled


def _parse(entry: Any, number: int, where: str, folder: str) -> OwnSet:
  if not isinstance(entry, Mapping):
    raise SourceError(
      f"{where}: entry {number}: got a {type(entry).__name__}, expected a table"
    )
  name = entry.get("name")
  named = name if isinstance(name, str) and _NAME.fullmatch(name) else ""
  of = f"{where}: set {name!r}" if named else f"{where}: set {number}"
  for key in entry:
    if key not in _KEYS:
      shown = f"{printable(str(key), 80)!r}{near_match(str(key), _KEYS)}"
      raise SourceError(f"{of}: unknown key {shown}; known: {', '.join(_KEYS)}")
  if not named or named.split()[0] == "mean":
    raise SourceError(
      f"{of}: key 'name': got {printable(repr(name), 80)}, expected letters, digits, spaces and"
      " _ - . +, at most 80, and not 'mean' first, which names means in tables"
    )
  values = {key: _value(value, key, of) for key, value in entry.items()}
  own = OwnSet(**{"root": ""} | values, folder=folder, where=where)
  _check(own)
  return own


def _value(value: Any, key: str, of: str) -> Any:
  if isinstance(value, str) and key in _TEXTS and "\0" not in value:
    return value
  is_list = isinstance(value, list | tuple) and all(
    isinstance(item, str) for item in value
  )
  if is_list and key in _LISTS:
    return tuple(value)
  kinds = ["a text"] * (key in _TEXTS) + ["a list of texts"] * (key in _LISTS)
  got = printable(repr(value), 80)
  raise SourceError(f"{of}: key {key!r}: got {got}, expected {' or '.join(kinds)}")


def _check(own: OwnSet) -> None:
  """Checks what needs no file."""
  reader, dataset, source = own.reader, own.dataset, SOURCES.get(own.reader)
  named = source is not None and "dataset" not in source.unread
  expected = source.expected_dataset(dataset) if source is not None and named else ""
  halves = f"nothing with base = {FIRST_HALF!r}: all other classes are novel"
  # Whether a key is wrong, the key, and what it should be.
  rules = [
    (
      reader not in READERS,
      "reader",
      f"one of {', '.join(READERS)}{near_match(reader, READERS)}",
    ),
    (not own.root, "root", "the folder of the images"),
    (dataset and not named, "dataset", f"nothing with reader = {reader!r}"),
    (expected, "dataset", expected),
    (
      any(one.count("{}") != 1 for one in own.templates),
      "templates",
      "texts with one {} each",
    ),
    (own.novel and not own.base, "base", "a list of names beside 'novel'"),
    (own.novel and own.base == FIRST_HALF, "novel", halves),
    *((getattr(own, key) == (), key, "at least one name") for key in _LISTS[:4]),
  ]
  for wrong, key, expected in rules:
    if wrong:
      got = printable(repr(getattr(own, key)), 80)
      raise _wrong(own, key, f"got {got}, expected {expected}")


def _open_whole(own: OwnSet) -> LabelledSet:
  listed = _listed(own, "names") if own.names else None
  root = join(own.folder, own.root)
  labelled = open_test_set(own.reader, root, own.dataset, listed, all_classes=False)
  source, classes = labelled.source, listed or labelled.classes
  assert isinstance(source, StoredImages)
  if len(classes) != len(source.names):
    raise _wrong(own, "names", f"{len(classes)} names for {len(source.names)} classes")
  n_without = len(classes) - len(np.unique(source.labels))
  if listed and n_without:
    log.info(
      "set %s: %d of %d classes have no image", own.name, n_without, len(classes)
    )
  source = source.relabelled(classes.names, source.labels)
  if own.templates:
    classes = dataclasses.replace(
      classes, template=own.templates[0], ensemble=own.templates
    )
  if own.synsets:
    classes = dataclasses.replace(classes, synsets=_synsets(own, len(classes)))
  return LabelledSet(source, classes, labelled.split)


def _listed(own: OwnSet, key: str) -> class_lists.ClassList:
  """Class list of a key: names, the name of a list, or a file."""
  value = getattr(own, key)
  if isinstance(value, tuple):
    class_lists.check_names(value, f"key {key!r}")
    return class_lists.ClassList(value)
  name = value if value in class_lists.CLASS_LISTS else join(own.folder, value)
  return class_lists.load_class_list(name)


def _kept_classes(own: OwnSet, classes: class_lists.ClassList, part: str) -> np.ndarray:
  """Classes of a part, ascending."""
  if own.base == FIRST_HALF:
    return half_of_classes(len(classes), "base" if part == "base" else "new")
  base = _indices(own, classes, "base")
  every = set(range(len(classes)))
  novel = _indices(own, classes, "novel") if own.novel else every - base
  if base & novel:
    shown = printable(repr(classes.names[min(base & novel)]), 80)
    raise _wrong(
      own, "novel", f"{len(base & novel)} classes are also in 'base', such as {shown}"
    )
  if not novel:
    raise _wrong(own, "base", "has all classes, expected fewer")
  return np.array(sorted(base if part == "base" else novel))


def _indices(own: OwnSet, classes: class_lists.ClassList, key: str) -> set[int]:
  """Classes in a list of names or WordNet ids."""
  names = _listed(own, key).names
  # A repeated name means all of its classes.
  indices_of: dict[str, set[int]] = {}
  for called in (class_lists.normalized_names(classes.names), classes.synsets or ()):
    for index, name in enumerate(called):
      indices_of.setdefault(name, set()).add(index)
  words = dict(zip(names, class_lists.normalized_names(names), strict=True))
  unknown = [name for name, word in words.items() if word not in indices_of]
  if unknown:
    shown = f"{printable(unknown[0], 80)!r}{near_match(unknown[0], classes.names)}"
    raise _wrong(own, key, f"{len(unknown)} names are unknown, such as {shown}")
  return set().union(*(indices_of[word] for word in words.values()))


def _synsets(own: OwnSet, n_classes: int) -> tuple[str, ...]:
  synsets = own.synsets
  if isinstance(synsets, str):
    synsets = class_lists.read_names(join(own.folder, synsets))
  if len(synsets) != n_classes or len(set(synsets)) < len(synsets):
    raise _wrong(
      own, "synsets", f"{len(set(synsets))} different ids for {n_classes} classes"
    )
  load_tree().nodes(synsets)
  return tuple(synsets)


def _wrong(own: OwnSet, key: str, what: str) -> SourceError:
  return SourceError(f"{own.where}: set {own.name!r}: key {key!r}: {what}")
