"""Categories of COCO's and LVIS's annotation files: the names that a class list takes from one."""

import dataclasses
import os
from typing import Any, NoReturn

from pomp_jax.errors import InputError
from pomp_jax.files.paths import to_path
from pomp_jax.files.terminal import control_character, is_unicode, printable


class CategoryFileError(InputError, ValueError):
  """An annotation file whose categories can't be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Category:
  """Category of an annotation file: its name, and synonyms that differ from it and each other.

  Both have spaces instead of underscores; a qualifier stays, "bow (weapon)".
  """

  name: str
  synonyms: tuple[str, ...] = ()


def is_annotation_file(path: str | os.PathLike) -> bool:
  """Whether a file is JSON annotations: its suffix is .json or its first character is {."""
  if os.fspath(path).lower().endswith(".json"):
    return True
  try:
    with to_path(path).open("rb") as file:
      return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
  except (OSError, ValueError):  # ValueError: a name with a NUL in it
    return False


def categories_by_id(path: str | os.PathLike, value: Any) -> dict[int, Category]:
  """Parses `categories` of COCO or LVIS annotations, the JSON value of a file.

  Each has `id`, `name` and optionally `synonyms` (LVIS). CategoryFileError for one without integer
  `id` or name, and for a control character or a repeated id or name ("a_b" equals "a b").
  """
  if not isinstance(value, dict) or "categories" not in value:
    found = f"the keys {', '.join(value) or 'none'}" if isinstance(value, dict) else "no object"
    _refuse(path, "the file", f"without categories ({found})", "COCO or LVIS annotations")
  rows = value["categories"]
  if not isinstance(rows, list) or not rows:
    _refuse(path, "categories", _shown(rows), "a list of at least one category")
  by_id: dict[int, Category] = {}
  names: set[str] = set()
  for index, row in enumerate(rows):
    where = f"categories[{index}]"
    if not isinstance(row, dict):
      _refuse(path, where, f"a {type(row).__name__}", "an object with id and name")
    number = row.get("id")
    if type(number) is not int:
      _refuse(path, f"{where}.id", _shown(number), "an integer")
    if number in by_id:
      _refuse(path, f"{where}.id", f"{number}, which is repeated", "different ids")
    name = _words(path, f"{where}.name", row.get("name"))
    if name in names:
      _refuse(path, f"{where}.name", f"{name!r}, which is repeated", "different names")
    synonyms = row.get("synonyms", [])
    if not isinstance(synonyms, list):
      _refuse(path, f"{where}.synonyms", _shown(synonyms), "a list of strings")
    others = dict.fromkeys(_words(path, f"{where}.synonyms", synonym) for synonym in synonyms)
    others.pop(name, None)
    by_id[number] = Category(name, tuple(others))
    names.add(name)
  return by_id


def _words(path: str | os.PathLike, field: str, text: Any) -> str:
  words = " ".join(text.replace("_", " ").split()) if isinstance(text, str) else ""
  if not words or not is_unicode(words) or control_character(words):
    _refuse(path, field, _shown(text), "a name")
  return words


def _shown(value: Any) -> str:
  if isinstance(value, list | dict):
    return f"a {type(value).__name__} of {len(value)}"
  return "missing" if value is None else repr(value)


def _refuse(path: str | os.PathLike, field: str, found: str, accepted: str) -> NoReturn:
  raise CategoryFileError(f"{path}: {field} is {printable(found)}; accepted: {accepted}")
