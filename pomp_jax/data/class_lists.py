"""Class lists, in the order of the labels: packaged ones, or a user's from a file.

A file is text with one name a line, or JSON in one of these forms:

- a run's `class_names.json`;
- a list of names, or an object whose keys are the names;
- a list of objects with `name`, and with `synset` in all of them or in none;
- annotations as COCO and LVIS store them: `categories`, read in order of their ids.

Shape: N classes.
"""

from collections.abc import Hashable, Iterable, Sequence
import dataclasses
import functools
import json
import logging
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from pomp_jax.errors import InputError
from pomp_jax.files.paths import Path, exists, read_text, read_user_json, to_path
from pomp_jax.files.run_folder import DamagedFileError, is_class_file, names_in
from pomp_jax.files.terminal import control_character, is_unicode, quoted
from pomp_jax.hooks import CATEGORIES

log = logging.getLogger(__name__)

_FOLDER = pathlib.Path(__file__).with_name("class_names")
_SETS: dict[str, dict[str, str]] = json.loads(
  (_FOLDER / "sets.json").read_text(encoding="utf-8")
)

# Names that load_class_list and load_templates accept.
CLASS_LISTS = tuple(_SETS)
TEMPLATES = tuple(sorted(file.stem for file in (_FOLDER / "templates").glob("*.txt")))
# Data sets on which methods trained on ImageNet are compared, by the names of their
# class lists: CoOp's cross-dataset sets in the order of its tables, and ImageNet's
# variants.
TEN = (
  "caltech101",
  "oxford_pets",
  "stanford_cars",
  "flowers102",
  "food101",
  "fgvc_aircraft",
  "sun397",
  "dtd",
  "eurosat",
  "ucf101",
)
FOUR = ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")
SYNSET = re.compile(r"n[0-9]{8}")  # WordNet id of a noun
# Table of ImageNet-21K's classes (fall 2011), sorted by WordNet 3.0 id. Columns: the
# id; the words of the synset, the most usual first; the number of tokens of "{first
# word}." with EOT under CLIP's tokenizer.
SYNSETS = _FOLDER / "imagenet21k_synsets.tsv"

_DEFAULT_TEMPLATE = "a photo of a {}."
_MOST_NUMBERS = 10  # line numbers in a warning of empty lines
_MAX_NAME = 1000  # characters; text towers have fewer positions


class VocabularyError(InputError, ValueError):
  """Unknown or unusable class list; the message is one line."""


@dataclasses.dataclass(frozen=True)
class ClassList:
  """Classes in the order of their labels."""

  # Spelled as in their source, underscores included. Names may repeat.
  names: tuple[str, ...]
  synsets: tuple[str, ...] | None = None  # WordNet 3.0 ids such as n02084071
  template: str = _DEFAULT_TEMPLATE  # hand-written prompt with `{}` for the name
  # CLIP's own templates for the data set.
  ensemble: tuple[str, ...] = (_DEFAULT_TEMPLATE,)

  def __len__(self) -> int:
    return len(self.names)

  def subset(self, indices: Sequence[int] | np.ndarray) -> "ClassList":
    """Some of the classes, in the order of `indices`."""
    names = tuple(self.names[c] for c in indices)
    synsets = self.synsets
    if synsets is not None:
      synsets = tuple(synsets[c] for c in indices)
    return dataclasses.replace(self, names=names, synsets=synsets)


def load_class_list(name_or_path: str | os.PathLike) -> ClassList:
  """Loads a packaged class list by name (`CLASS_LISTS`), or a user's file."""
  if name_or_path in _SETS:
    return _packaged(str(name_or_path))
  path = to_path(name_or_path)
  looks_like_a_name = not path.suffix and path.name == str(name_or_path)
  if looks_like_a_name and not exists(path):
    raise VocabularyError(
      f"unknown class list {str(name_or_path)!r}; expected one of {', '.join(CLASS_LISTS)}, a .txt"
      " file with one name a line, or a .json file"
    )
  if path.suffix.lower() == ".json":
    names, synsets = _read_json(path)
  else:
    names = read_names(path, distinct=False)
    synsets = None
  _warn_of_repeats(names, str(path))
  return ClassList(names, synsets)


def load_templates(name: str) -> tuple[str, ...]:
  """Loads prompt templates by name (`TEMPLATES`); `{}` stands for the class name.

  `imagenet` is CLIP's ensemble of 80 templates, `imagenet_7` seven of these, and
  `imagenet_60` the first 60, which PromptSRC uses. Others are named after class lists.
  """
  return read_names(_FOLDER / "templates" / f"{name}.txt")


def read_table(path: pathlib.Path) -> tuple[tuple[str, ...], ...]:
  """Reads the columns of a packaged table: tab-separated below a header line."""
  _, *lines = path.read_text(encoding="utf-8").splitlines()
  return tuple(zip(*(line.split("\t") for line in lines), strict=True))


@functools.cache
def _packaged(name: str) -> ClassList:
  """A packaged list, by its row of sets.json."""
  fields = _SETS[name]
  file = _FOLDER / fields["names"]
  synsets = None
  if file.suffix == ".tsv":
    synsets, names = read_table(file)
  else:
    names = read_names(file)
  if synsets and "subset" in fields:
    name_of = dict(zip(synsets, names, strict=True))
    synsets = read_names(_FOLDER / fields["subset"])
    names = tuple(name_of[synset] for synset in synsets)
  ensemble = load_templates(fields["ensemble"])
  return ClassList(names, synsets, fields["template"], ensemble)


def normalized_name(name: str) -> str:
  """A name as in a sentence: each run of underscores and spaces becomes one space."""
  return " ".join(name.replace("_", " ").split())


def normalized_names(names: Sequence[str]) -> list[str]:
  """Applies `normalized_name` to N names, which may repeat.

  Raises:
    VocabularyError: there are no names, or one is unusable; see `check_names`.
  """
  words = [normalized_name(name) for name in names]
  check_names(words, distinct=False)
  return words


def repeats(values: Iterable[Hashable]) -> dict[int, int]:
  """Maps the index of each repeated value to the index of the first equal value."""
  first: dict[Hashable, int] = {}
  repeated = {}
  for index, value in enumerate(values):
    if value in first:
      repeated[index] = first[value]
    else:
      first[value] = index
  return repeated


def check_names(
  names: Sequence[str], where: str = "the class list", *, distinct: bool = True
) -> None:
  """Checks class names.

  Args:
    names: names to check.
    where: file of the names, for the message.
    distinct: whether the names must differ.

  Raises:
    VocabularyError: there are no names, or one is unusable or repeated.
  """
  if not names:
    raise VocabularyError(f"{where} is empty, expected one class name a line")
  earlier = repeats(names) if distinct else {}
  for index, name in enumerate(names):
    problem = _problem_of(name)
    if not name.strip():
      # A count that differs from the file's lines helps to find the blank one.
      problem = f"is blank ({len(names)} names); remove it"
    elif not problem and index in earlier:
      problem = f"repeats name {earlier[index] + 1}"
    if problem:
      raise VocabularyError(f"{where}: name {index + 1}, {quoted(name)}, {problem}")


def _problem_of(name: str) -> str:
  """Why a name can't be used, such as "is not Unicode text"; "" for a usable name."""
  if not is_unicode(name):
    return "is not Unicode text"
  if len(name) > _MAX_NAME:
    return f"is too long, expected at most {_MAX_NAME} characters"
  control = control_character(name)
  if control:
    return f"contains the control character {control}; lines end with \\n or \\r\\n"
  return ""


def read_lines(path: str | os.PathLike) -> list[str]:
  """Reads the lines of a UTF-8 file, without blank lines at the end.

  Only \\n and \\r\\n end a line, so that line numbers are those of other programs.
  """
  text = read_text(path, VocabularyError).rstrip()
  if not text:
    return []
  return [line.rstrip("\r") for line in text.split("\n")]


def read_names(path: str | os.PathLike, *, distinct: bool = True) -> tuple[str, ...]:
  """Reads a text file of class names, one a line.

  Empty lines are skipped, with a warning that lists their numbers.

  Args:
    path: UTF-8 file.
    distinct: whether the names must differ.

  Raises:
    VocabularyError: the file can't be read, has no names, or has an unusable or a
      repeated name.
  """
  names = []
  empty = []
  for number, line in enumerate(read_lines(path), 1):
    name = line.strip()
    if name:
      names.append(name)
    else:
      empty.append(number)
  if empty:
    _warn_of_empty_lines(str(path), tuple(empty))
  check_names(names, str(path), distinct=distinct)
  return tuple(names)


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Builds a JSON object; ValueError for a repeated key, which `json` would accept."""
  for index in repeats(key for key, _ in pairs):
    key, _ = pairs[index]
    raise ValueError(f"the key {key!r} is repeated")
  return dict(pairs)


def _read_json(path: Path) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
  """Reads the names of a JSON file in any form, and the synsets if the file has them.

  Raises:
    VocabularyError: the file has none of the forms, or has unusable names.
  """
  content = read_user_json(path, VocabularyError, object_pairs_hook=_with_distinct_keys)
  synsets = None
  if is_class_file(content):
    try:
      names = names_in(content, path)
    except DamagedFileError as error:
      raise VocabularyError(str(error)) from error
    # Two classes of a run may have the same name.
    check_names(names, str(path), distinct=False)
  elif has_categories(content):
    by_id = categories_by_id(path, content)
    names = tuple(by_id[number].name for number in sorted(by_id))
  elif isinstance(content, list):
    names, synsets = _from_list(content, path)
  elif isinstance(content, dict):
    names = tuple(content)
    if names and all(name.isdecimal() for name in names):
      # Such an object maps labels to names, and its keys may be in any order.
      raise VocabularyError(
        f"{path}: the object's keys are numbers, expected class names"
      )
    check_names(names, str(path))
  else:
    raise VocabularyError(
      f"{path}: found {shown(content)}, expected a list or an object"
    )
  return names, synsets


def _from_list(
  content: list[Any], path: Path
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
  """Names of a list of texts or objects, and their synsets if all items have one."""
  names = []
  synsets = []
  for number, item in enumerate(content, 1):
    where = f"{path}: item {number} of {len(content)}"
    row = item if isinstance(item, dict) else {"name": item}
    name = row.get("name")
    if not isinstance(name, str):
      raise VocabularyError(f"{where}: found {shown(item)}, expected a name")
    names.append(name.strip())
    synset = row.get("synset")
    if synset is None:
      continue
    if not isinstance(synset, str) or not SYNSET.fullmatch(synset):
      raise VocabularyError(
        f"{where}: found synset {shown(synset)}, expected a WordNet id such as n02084071"
      )
    synsets.append(synset)
  check_names(names, str(path), distinct=False)
  if not synsets:
    return tuple(names), None
  if len(synsets) < len(names):
    raise VocabularyError(
      f"{path}: {len(synsets)} of {len(names)} classes have a synset, expected all or none"
    )
  for index in repeats(synsets):
    raise VocabularyError(f"{path}: synset {synsets[index]} is repeated")
  return tuple(names), tuple(synsets)


def shown(value: Any) -> str:
  """A JSON value for an error line."""
  match value:
    case list():
      return f"a list of {len(value)}"
    case dict():
      return f"an object of {len(value)}"
    case str():
      return quoted(value)
    case _:
      return json.dumps(value)[:80]


class Category(NamedTuple):
  """Category of COCO's or LVIS's annotations.

  The name has spaces instead of underscores, and keeps a qualifier: "bow (weapon)".
  """

  name: str
  synonyms: tuple[str, ...] = ()  # distinct, and none equals the name


def has_categories(content: Any) -> bool:
  """Whether a JSON value is COCO's or LVIS's annotations rather than class names."""
  if not isinstance(content, dict):
    return False
  # If the categories are missing, the other two lists still identify annotations.
  for field in ("categories", "images", "annotations"):
    rows = content.get(field)
    if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
      return True
  return False


def categories_by_id(path: str | os.PathLike, value: Any) -> dict[int, Category]:
  """Reads the categories of annotations by their ids.

  Args:
    path: file of the annotations, for messages.
    value: JSON value of the file.

  Raises:
    VocabularyError: the categories are unusable, or the room regions is missing.
  """
  if not CATEGORIES:
    raise VocabularyError(
      f"{path}: annotations are read by the room regions, expected names"
    )
  return CATEGORIES.open()(path, value)


@functools.cache
def _warn_of_empty_lines(where: str, numbers: tuple[int, ...]) -> None:
  text = ", ".join(map(str, numbers[:_MOST_NUMBERS]))
  if len(numbers) > _MOST_NUMBERS:
    text += ", .."
  log.warning("%s: empty lines are skipped: %s", where, text)


@functools.cache
def _warn_of_repeats(names: tuple[str, ...], where: str) -> None:
  """Warns of names that CLIP's tokenizer, which ignores case, can't distinguish."""
  repeated = repeats(name.casefold() for name in normalized_names(names))
  if not repeated:
    return
  later, earlier = next(iter(repeated.items()))
  log.warning(
    "%s: %d of %d classes repeat an earlier name (underscores and case ignored), such as %s,"
    " names %d and %d. Images of such classes never count as correct",
    where,
    len(repeated),
    len(names),
    quoted(names[later]),
    earlier + 1,
    later + 1,
  )
