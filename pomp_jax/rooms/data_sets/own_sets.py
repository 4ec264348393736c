"""Reads a user's own data sets, described in a TOML file or in a config.

docs/how-to/evaluation.md shows how. Parsing checks keys and values. Files and folders
are read when a set is opened.
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
from pomp_jax.evaluate.sets_to_evaluate import EvaluationSet
from pomp_jax.files.paths import join, read_text, to_path
from pomp_jax.files.terminal import printable
from pomp_jax.report.evaluation_report import OWN
from pomp_jax.rooms.data_sets.published_sets import of_classes, open_test_set

log = logging.getLogger(__name__)

# Class names themselves, a file of names, or the name of a list.
Names = tuple[str, ...] | str

FIRST_HALF = "first half"
# Names of sets become file names.
_NAME = re.compile(r"\w([\w .+-]{0,78}[\w.+-])?")


class OwnSet(NamedTuple):
  """Description of a data set."""

  name: str  # name in tables and in names of files
  root: str  # folder of class folders, CoOp's $DATA, or TFDS's data_dir
  reader: str = "folder"  # one of `config.READERS`
  dataset: str = ""  # name of the data set in coop or tfds
  names: Names = ""  # class list; "": the data set's own
  # classes that a prompt was learned on, or "first half"; "": the set is not divided
  base: Names = ""
  novel: Names = ""  # the other classes; "" with `base`: all classes not in `base`
  # Hand-written prompts with a {} each: the first is `hand_written`, and all together
  # are the ensemble. Empty: the prompts of the class list.
  templates: tuple[str, ...] = ()
  synsets: Names = ""  # WordNet ids in the order of the names; "": the class list's
  folder: str = ""  # folder from which relative paths start
  where: str = ""  # file, or field of the config, for messages

  @property
  def parts(self) -> tuple[str, ...]:
    """Parts to evaluate: "base" and "novel", or "all"."""
    if self.base:
      return ("base", "novel")
    return ("all",)


# Keys of an entry whose value may be a text, and keys whose value may be a list.
_TEXTS = ("name", "root", "reader", "dataset", "names", "base", "novel", "synsets")
_LISTS = ("names", "base", "novel", "synsets", "templates")
_KEYS = (*_TEXTS, "templates")


def sets_of_user(sets_file: str, own_sets: Sequence[Any]) -> list[EvaluationSet]:
  """Returns the sets of `sets_file`, unless it is empty, and those of `own_sets`.

  Raises:
    SourceError: an unreadable file, an unknown key, an invalid value or a repeated name.
  """
  own_list = []
  if sets_file:
    own_list += read_sets_file(sets_file)
  if own_sets:
    own_list += parse_sets(own_sets, "config.evaluate.own_sets")
  sets = []
  for own in own_list:
    for part in own.parts:
      opened = functools.partial(open_own_set, own, part)
      name = own.name if part == "all" else f"{own.name}/{part}"
      sets.append(EvaluationSet(name, OWN, own.name, part, opened, own.reader))
  return sets


def read_sets_file(path: str | os.PathLike) -> list[OwnSet]:
  """Reads the sets of a TOML file, which has a table [[set]] for each set.

  Args:
    path: the file. Paths in it are relative to its folder.

  Raises:
    SourceError: an unreadable file, an unknown key, an invalid value or a repeated name.
  """
  path = to_path(path)
  text = read_text(path, SourceError)
  try:
    content = tomllib.loads(text)
  except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
    raise SourceError(f"{path}: not TOML ({printable(str(error))})") from error

  entries = content.get("set")
  unknown = [key for key in content if key != "set"]
  if unknown or not isinstance(entries, list):
    got = "none"
    if unknown:
      got = repr(printable(unknown[0], 80))
    raise SourceError(
      f"{path}: found {got}, expected a table [[set]] for each data set"
    )
  return parse_sets(entries, str(path), path.parent)


def parse_sets(
  entries: Sequence[Any], where: str, folder: str | os.PathLike = ""
) -> list[OwnSet]:
  """Parses descriptions of data sets, and makes the checks that need no files.

  Args:
    entries: dicts whose keys are fields of `OwnSet`, `name` to `synsets`.
    where: file, or field of the config, that messages name.
    folder: folder from which relative paths start.

  Raises:
    SourceError: an unknown key, an invalid value, a repeated name, or no set.
  """
  sets = []
  for number, entry in enumerate(entries, 1):
    sets.append(_parse(entry, number, where, os.fspath(folder)))
  if not sets:
    raise SourceError(f"{where}: no data set")
  repeated = list(class_lists.repeats(own.name for own in sets))
  if repeated:
    name = sets[repeated[0]].name
    raise SourceError(f"{where}: set {name!r}: key 'name': is repeated")
  return sets


def open_own_set(own: OwnSet, part: str) -> LabelledSet:
  """Opens a user's data set, or a part of its classes.

  Args:
    own: entry of the set.
    part: one of the set's `parts`: `all`, `base` or `novel`.

  Raises:
    SourceError: a file is missing or damaged, the classes don't fit the images, or the
      part has no image. The message names the set and, if a key is wrong, the key.
  """
  try:
    labelled = _open_whole(own)
    if part != "all":
      classes_of_part = _kept_classes(own, labelled.classes, part)
      labelled = of_classes(labelled, classes_of_part)
  except (SourceError, class_lists.VocabularyError) as error:
    # Errors of `_wrong` name the set already; errors of readers do not.
    prefix = f"{own.where}: set {own.name!r}: "
    reason = str(error).removeprefix(prefix)
    raise SourceError(prefix + reason) from error
  if len(labelled.source) == 0:
    raise _wrong(own, part, "no image of its classes")
  return labelled


def _parse(entry: Any, number: int, where: str, folder: str) -> OwnSet:
  """Parses an entry.

  Args:
    entry: value of TOML or of the config, with the keys of `OwnSet`.
    number: number of the entry, for messages about an entry without a valid name.
    where: file, or field of the config, for messages.
    folder: folder from which relative paths start.

  Raises:
    SourceError: an unknown key, or an invalid value.
  """
  if not isinstance(entry, Mapping):
    raise SourceError(
      f"{where}: entry {number}: got a {type(entry).__name__}, expected a table"
    )
  name = entry.get("name")
  is_name = isinstance(name, str) and _NAME.fullmatch(name) is not None
  label = f"{where}: set {number}"
  if is_name:
    label = f"{where}: set {name!r}"
  for key in entry:
    if key not in _KEYS:
      got = f"{printable(str(key), 80)!r}{near_match(str(key), _KEYS)}"
      raise SourceError(f"{label}: unknown key {got}; known: {', '.join(_KEYS)}")
  if not is_name or str(name).split()[0] == "mean":
    raise SourceError(
      f"{label}: key 'name': got {printable(repr(name), 80)}, expected letters, digits, spaces and"
      " _ - . +, at most 80, and not 'mean' first, which names means in tables"
    )

  values: dict[str, Any] = {"root": ""}  # `_check` refuses a set without a root
  for key, value in entry.items():
    values[key] = _value(value, key, label)
  own_set = OwnSet(**values, folder=folder, where=where)
  _check(own_set)
  return own_set


def _value(value: Any, key: str, label: str) -> Any:
  """Returns the value of a key, a list as a tuple; SourceError for a wrong type."""
  kinds = []
  if key in _TEXTS:
    kinds.append("a text")
    if isinstance(value, str) and "\0" not in value:  # NUL can't be in a path
      return value
  if key in _LISTS:
    kinds.append("a list of texts")
    is_list = isinstance(value, list | tuple)
    if is_list and all(isinstance(item, str) for item in value):
      return tuple(value)
  got = printable(repr(value), 80)
  raise SourceError(f"{label}: key {key!r}: got {got}, expected {' or '.join(kinds)}")


def _check(own: OwnSet) -> None:
  """Makes the checks of an entry that need no file; SourceError for a wrong value."""

  def require(fits: object, key: str, expected: str) -> None:
    if not fits:
      got = printable(repr(getattr(own, key)), 80)
      raise _wrong(own, key, f"got {got}, expected {expected}")

  reader = own.reader
  known = f"one of {', '.join(READERS)}{near_match(reader, READERS)}"
  require(reader in READERS, "reader", known)
  require(own.root, "root", "the folder of the images")
  source = SOURCES[reader]
  if "dataset" in source.unread:
    require(not own.dataset, "dataset", f"nothing with reader = {reader!r}")
  elif expected := source.expected_dataset(own.dataset):
    require(False, "dataset", expected)
  has_places = all(text.count("{}") == 1 for text in own.templates)
  require(has_places, "templates", "texts with one {} each")
  if own.novel:
    require(own.base, "base", "a list of names beside 'novel'")
    halves = f"nothing with base = {FIRST_HALF!r}: all other classes are novel"
    require(own.base != FIRST_HALF, "novel", halves)
  for key in ("names", "base", "novel", "synsets"):
    require(getattr(own, key) != (), key, "at least one name")


def _open_whole(own: OwnSet) -> LabelledSet:
  """Opens a set with all of its classes, under its own names, prompts and ids.

  Raises:
    SourceError: a file is missing or damaged, or the entry has more or fewer names than
      the data have classes.
    VocabularyError: a class list is unusable.
  """
  listed = None
  if own.names:
    listed = _listed(own, "names")
  root = join(own.folder, own.root)
  labelled = open_test_set(own.reader, root, own.dataset, listed, all_classes=False)
  images = labelled.source
  assert isinstance(images, StoredImages)
  classes = labelled.classes if listed is None else listed
  if len(classes) != len(images.names):
    raise _wrong(own, "names", f"{len(classes)} names for {len(images.names)} classes")

  # Only log this: a list may have classes of which no images were collected.
  n_without_images = len(classes) - len(np.unique(images.labels))
  if listed is not None and n_without_images > 0:
    log.info(
      "set %s: %d of %d classes have no image",
      own.name,
      n_without_images,
      len(classes),
    )

  images = images.relabelled(classes.names, images.labels)
  if own.templates:
    classes = dataclasses.replace(
      classes, template=own.templates[0], ensemble=own.templates
    )
  if own.synsets:
    synsets = _synsets(own, len(classes))
    classes = dataclasses.replace(classes, synsets=synsets)
  return LabelledSet(images, classes, labelled.split)


def _listed(own: OwnSet, key: str) -> class_lists.ClassList:
  """Class list of a key whose value is names, the name of a packaged list, or a file."""
  value = getattr(own, key)
  if isinstance(value, tuple):
    class_lists.check_names(value, f"key {key!r}")
    return class_lists.ClassList(value)
  name = value if value in class_lists.CLASS_LISTS else join(own.folder, value)
  return class_lists.load_class_list(name)


def _kept_classes(own: OwnSet, classes: class_lists.ClassList, part: str) -> np.ndarray:
  """Labels of the classes of a part, ascending."""
  if own.base == FIRST_HALF:
    return half_of_classes(len(classes), "base" if part == "base" else "new")
  base = _indices(own, classes, "base")
  novel = set(range(len(classes))) - base
  if own.novel:
    novel = _indices(own, classes, "novel")
  if common := base & novel:
    example = printable(repr(classes.names[min(common)]), 80)
    reason = f"{len(common)} classes are also in 'base', such as {example}"
    raise _wrong(own, "novel", reason)
  if not novel:
    raise _wrong(own, "base", "has all classes, expected fewer")
  return np.array(sorted(base if part == "base" else novel))


def _indices(own: OwnSet, classes: class_lists.ClassList, key: str) -> set[int]:
  """Labels of the classes that a key lists by names or WordNet ids."""
  names = _listed(own, key).names
  # A name that several classes share stands for all of them.
  indices_of: dict[str, set[int]] = {}
  for index, name in enumerate(class_lists.normalized_names(classes.names)):
    indices_of.setdefault(name, set()).add(index)
  for index, synset in enumerate(classes.synsets or ()):
    indices_of.setdefault(synset, set()).add(index)
  normalized = dict(zip(names, class_lists.normalized_names(names), strict=True))
  unknown = [name for name, word in normalized.items() if word not in indices_of]
  if unknown:
    example = f"{printable(unknown[0], 80)!r}{near_match(unknown[0], classes.names)}"
    raise _wrong(own, key, f"{len(unknown)} names are unknown, such as {example}")
  indices: set[int] = set()
  for word in normalized.values():
    indices |= indices_of[word]
  return indices


def _synsets(own: OwnSet, n_classes: int) -> tuple[str, ...]:
  """WordNet ids of the classes, from the entry or from the file that the entry names."""
  synsets = own.synsets
  if isinstance(synsets, str):
    synsets = class_lists.read_names(join(own.folder, synsets))
  n_different = len(set(synsets))
  if len(synsets) != n_classes or n_different < len(synsets):
    reason = f"{n_different} different ids for {n_classes} classes"
    raise _wrong(own, "synsets", reason)
  load_tree().nodes(synsets)  # raises VocabularyError for an unknown id
  return tuple(synsets)


def _wrong(own: OwnSet, key: str, what: str) -> SourceError:
  """Returns the error for a wrong key of a set."""
  return SourceError(f"{own.where}: set {own.name!r}: key {key!r}: {what}")
