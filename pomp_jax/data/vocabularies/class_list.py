"""Class lists by name or from a file.

A file is either text, one name a line, or JSON (`.json`) in one of three forms: a list of names; an
object whose keys are the names, in order, and whose values are the user's affair; a list of objects
with `name` and, in all of them or in none, `synset`. The order of the names is that of the labels.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import logging
import os
import pathlib
import re
from typing import Any

from pomp_jax.data.vocabulary import VocabularyError, check_names, read_names, read_text, spoken
from pomp_jax.files.terminal import quoted

log = logging.getLogger(__name__)

_FOLDER = pathlib.Path(__file__).parent
_SETS: dict[str, dict[str, str]] = json.loads((_FOLDER / "sets.json").read_text(encoding="utf-8"))

# What load_class_list knows by name, and load_templates.
CLASS_LISTS = tuple(_SETS)
TEMPLATES = tuple(sorted(file.stem for file in (_FOLDER / "templates").glob("*.txt")))

DEFAULT_TEMPLATE = "a photo of a {}."


@dataclasses.dataclass(frozen=True)
class ClassList:
  """Classes in the order of their labels.

  Attributes:
    names: one a class, as the source writes them; underscores are kept. Classes of one name have
      the same features.
    synsets: WordNet 3.0 ids such as n02084071, one a class; None where the classes have none.
    template: the hand-written prompt for them; `{}` stands for the name.
    ensemble: CLIP's own templates for them, or `template` alone.
    source: where the list comes from.
  """

  names: tuple[str, ...]
  synsets: tuple[str, ...] | None = None
  template: str = DEFAULT_TEMPLATE
  ensemble: tuple[str, ...] = (DEFAULT_TEMPLATE,)
  source: str = ""

  def __len__(self) -> int:
    return len(self.names)


def load_class_list(name_or_path: str | os.PathLike) -> ClassList:
  """A class list by its name (`CLASS_LISTS`), or from a file in one of the forms above.

  Raises:
    VocabularyError: neither a name nor a file; a file that can't be used.
  """
  if name_or_path in _SETS:
    return _built_in(str(name_or_path))
  path = pathlib.Path(name_or_path)
  if not path.exists() and not path.suffix and path.name == str(name_or_path):
    raise VocabularyError(
      f"unknown class list {str(name_or_path)!r}; known are {', '.join(CLASS_LISTS)},"
      " and files: .txt with one name a line, or .json"
    )
  if path.suffix.lower() == ".json":
    names, synsets = _read_json(path)
  else:
    names, synsets = read_names(path, distinct=False), None
  _warn_of_repeats(names, str(path))
  return ClassList(names, synsets, source=str(path))


def load_templates(name: str) -> tuple[str, ...]:
  """Prompt templates by name (`TEMPLATES`); `{}` stands for the class name.

  `imagenet` is CLIP's 80, `imagenet_7` the seven of them that it found to do nearly as well; the
  others are named for the class list that CLIP has them for.

  Raises:
    VocabularyError: no templates of this name.
  """
  if name not in TEMPLATES:
    raise VocabularyError(f"unknown templates {name!r}; known are {', '.join(TEMPLATES)}")
  return read_names(_FOLDER / "templates" / f"{name}.txt")


def read_table(path: pathlib.Path) -> tuple[tuple[str, ...], ...]:
  """Columns of one of our own tables: tab-separated, the first line a header."""
  lines = path.read_text(encoding="utf-8").splitlines()[1:]
  return tuple(zip(*(line.split("\t") for line in lines), strict=True))


@functools.cache
def _built_in(name: str) -> ClassList:
  fields = _SETS[name]
  file = _FOLDER / "names" / fields["names"]
  synsets = None
  if file.suffix == ".tsv":
    synsets, names = read_table(file)
    if "subset" in fields:
      name_of = dict(zip(synsets, names, strict=True))
      synsets = read_names(_FOLDER / "names" / fields["subset"])
      names = tuple(name_of[synset] for synset in synsets)
  else:
    names = read_names(file)
  return ClassList(
    names, synsets, fields["template"], load_templates(fields["ensemble"]), fields["source"]
  )


def tfds_builder(name: str) -> str | None:
  """TFDS's name of a class list's data set, if TFDS has it."""
  return _SETS[name].get("tfds")


def _read_json(path: pathlib.Path) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
  try:
    content = json.loads(read_text(path), object_pairs_hook=_Pairs)
  except VocabularyError:
    raise
  except json.JSONDecodeError as error:
    raise VocabularyError(f"{path}: not JSON (line {error.lineno}: {error.msg})") from error
  except ValueError as error:  # a number of thousands of digits
    raise VocabularyError(f"{path}: not JSON ({error})") from error
  except RecursionError as error:
    raise VocabularyError(f"{path}: nested too deeply") from error
  if isinstance(content, _Pairs):
    names = tuple(key for key, _ in content)
    if names and all(name.isdecimal() for name in names):
      raise VocabularyError(
        f"{path}: the object's keys are numbers, where class names are needed; give a list of the"
        " names in the order of the labels"
      )
    check_names(names, str(path))
    return names, None
  if isinstance(content, list):
    return _from_list(content, path)
  raise VocabularyError(f"{path}: holds {_kind(content)}; a list or an object is needed")


class _Pairs(list):
  """An object's keys and values, a key that stands twice included."""


def _from_list(
  content: Sequence[Any], path: pathlib.Path
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
  names, synsets = [], []
  for index, item in enumerate(content):
    where = f"{path}: item {index + 1} of {len(content)}"
    fields = {"name": item}
    if isinstance(item, _Pairs):
      fields = dict(item)
      if "name" not in fields:
        raise VocabularyError(f"{where} has no field 'name'")
    if not isinstance(fields["name"], str):
      raise VocabularyError(f"{where}: the name is {_kind(fields['name'])}, not text")
    names.append(fields["name"].strip())
    synset = fields.get("synset")
    if synset is not None:
      if not (isinstance(synset, str) and re.fullmatch(r"n[0-9]{8}", synset)):
        plain = isinstance(synset, str | int | float)
        found = (
          (quoted(synset) if isinstance(synset, str) else repr(synset)[:80])
          if plain
          else _kind(synset)
        )
        raise VocabularyError(
          f"{where}: synset {found} is no WordNet id of a noun, such as n02084071"
        )
      synsets.append(synset)
  check_names(names, str(path), distinct=False)
  if synsets and len(synsets) < len(names):
    raise VocabularyError(
      f"{path}: {len(synsets)} of {len(names)} classes have a synset; all or none are needed"
    )
  if len(set(synsets)) < len(synsets):
    twice = next(synset for synset in synsets if synsets.count(synset) > 1)
    raise VocabularyError(f"{path}: synset {twice} stands twice; each class needs its own")
  return tuple(names), tuple(synsets) or None


@functools.cache
def _warn_of_repeats(names: tuple[str, ...], where: str) -> None:
  """Tells of names that are one in a sentence, or to CLIP's tokenizer, which ignores case."""
  words = [name.casefold() for name in spoken(names)]
  first: dict[str, int] = {}
  repeats = [(first[word], i) for i, word in enumerate(words) if first.setdefault(word, i) != i]
  if repeats:
    one, two = repeats[0]
    log.warning(
      "%s: %d of %d classes have the name of one before them, underscores and case aside, such as"
      " %s, name %d and %d. They can't be told apart, and none of their images counts as right",
      *(where, len(repeats), len(names), quoted(names[two]), one + 1, two + 1),
    )


def _kind(value: Any) -> str:
  kinds = {_Pairs: "an object", list: "a list", str: "text", bool: "true or false"}
  return kinds.get(type(value), "null" if value is None else "a number")
