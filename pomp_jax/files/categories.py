"""Categories of a detection or segmentation data set, from its COCO or LVIS annotations."""

import dataclasses
import json
import os
import pathlib
from typing import Any, NoReturn

from pomp_jax.errors import InputError
from pomp_jax.files.quoting import control_character, is_unicode, printable


class CategoryFileError(InputError, ValueError):
  """An annotation file whose categories can't be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Category:
  """One category.

  Attributes:
    name: as words: underscores are spaces, and a qualifier stays, "bow (weapon)".
    synonyms: other names for it, likewise; none equals another or `name`.
  """

  name: str
  synonyms: tuple[str, ...] = ()


def is_annotation_file(path: str | os.PathLike) -> bool:
  """Whether a file is to be read as annotations: by its suffix, .json, or its first letter, {."""
  if os.fspath(path).lower().endswith(".json"):
    return True
  try:
    with open(path, "rb") as file:
      return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
  except (OSError, ValueError):  # a name with a NUL in it
    return False


def read_categories(path: str | os.PathLike) -> tuple[Category, ...]:
  """Reads `categories` of an annotation file; nothing else in it is looked at.

  Args:
    path: a JSON file with `categories`, each with `id`, `name` and perhaps `synonyms` (LVIS).

  Returns:
    The categories in ascending order of their ids, which is the order of Detic's rows.

  Raises:
    CategoryFileError: no such file, not JSON, no `categories`, one without an integer `id` or a
      name, one with a control character, or an id or a name twice. Names are compared as words, so
      "a_b" equals "a b".
  """
  rows = _rows(path)
  by_id: dict[int, Category] = {}
  owner: dict[str, int] = {}
  for index, row in enumerate(rows):
    where = f"categories[{index}]"
    if not isinstance(row, dict):
      _refuse(path, where, f"a {type(row).__name__}", "an object with id and name")
    number = row.get("id")
    if type(number) is not int:
      _refuse(path, f"{where}.id", _shown(number), "an integer")
    if number in by_id:
      _refuse(path, f"{where}.id", f"{number}, which stands twice", "different ids")
    category = _category(path, where, row)
    if category.name in owner:
      found = f"{category.name!r}, as is that of id {owner[category.name]}"
      _refuse(path, f"{where}.name", found, "different names")
    by_id[number], owner[category.name] = category, number
  return tuple(by_id[number] for number in sorted(by_id))


def _rows(path: str | os.PathLike) -> list[Any]:
  try:
    value = json.loads(pathlib.Path(path).read_bytes())
  except OSError as error:
    raise CategoryFileError(f"{path}: can't be read ({error.strerror})") from error
  except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
    raise CategoryFileError(f"{path}: not JSON ({printable(str(error))})") from error
  if not isinstance(value, dict) or "categories" not in value:
    found = f"the keys {', '.join(value) or 'none'}" if isinstance(value, dict) else "no object"
    _refuse(path, "the file", f"without categories ({found})", "COCO or LVIS annotations")
  rows = value["categories"]
  if not isinstance(rows, list) or not rows:
    _refuse(path, "categories", _shown(rows), "a list of at least one category")
  return rows


def _category(path: str | os.PathLike, where: str, row: dict[str, Any]) -> Category:
  name = _words(path, f"{where}.name", row.get("name"))
  found = row.get("synonyms", [])
  if not isinstance(found, list):
    _refuse(path, f"{where}.synonyms", _shown(found), "a list of strings")
  words = [_words(path, f"{where}.synonyms", synonym) for synonym in found]
  return Category(name, tuple(word for word in dict.fromkeys(words) if word != name))


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
