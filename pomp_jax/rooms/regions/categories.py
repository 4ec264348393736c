"""Categories of COCO's and LVIS's annotations; a class list may be such a file too."""

import os
from typing import Any, NoReturn

from pomp_jax.data.class_lists import Category, VocabularyError, normalized_name, shown
from pomp_jax.files.terminal import control_character, is_unicode, quoted

# Accepted content of a file, for messages.
_ANNOTATIONS = "COCO or LVIS annotations"


def categories_by_id(path: str | os.PathLike, value: Any) -> dict[int, Category]:
  """Parses the member `categories` of COCO or LVIS annotations.

  `value` is the JSON value of the file. Each category has `id`, `name` and, in LVIS,
  `synonyms`. Names are compared as words, so that "a_b" equals "a b".

  Raises:
    VocabularyError: there are no categories, a category has no integer `id` or no
      name, a name has a control character, or an id or a name is repeated.
  """
  if not isinstance(value, dict):
    _refuse(path, "the file", "without categories (no object)", _ANNOTATIONS)
  if "categories" not in value:
    keys = f"the keys {quoted(', '.join(value))}"
    _refuse(path, "the file", f"without categories ({keys})", _ANNOTATIONS)
  rows = value["categories"]
  if not isinstance(rows, list) or not rows:
    _refuse(path, "categories", shown(rows), "a list of at least one category")
  by_id: dict[int, Category] = {}
  names: set[str] = set()
  for index, row in enumerate(rows):
    where = f"categories[{index}]"
    if not isinstance(row, dict):
      _refuse(path, where, shown(row), "an object with id and name")
    number = row.get("id")
    if type(number) is not int:
      _refuse(path, f"{where}.id", _shown_member(number), "an integer")
    if number in by_id:
      _refuse(path, f"{where}.id", f"{number}, which is repeated", "different ids")
    name = _words(path, f"{where}.name", row.get("name"))
    if name in names:
      repeated = f"{quoted(name)}, which is repeated"
      _refuse(path, f"{where}.name", repeated, "different names")
    synonyms = row.get("synonyms", [])
    if not isinstance(synonyms, list):
      _refuse(path, f"{where}.synonyms", shown(synonyms), "a list of strings")
    # LVIS repeats the name among the synonyms. The keys of a dict keep their order.
    other_names: dict[str, None] = {}
    for synonym in synonyms:
      other_names[_words(path, f"{where}.synonyms", synonym)] = None
    other_names.pop(name, None)
    by_id[number] = Category(name, tuple(other_names))
    names.add(name)
  return by_id


def _words(path: str | os.PathLike, field: str, text: Any) -> str:
  """Normalises a name; VocabularyError if `text` is no usable name."""
  words = normalized_name(text) if isinstance(text, str) else ""
  if not words or not is_unicode(words) or control_character(words):
    _refuse(path, field, _shown_member(text), "a name")
  return words


def _shown_member(value: Any) -> str:
  """A member of an object as a message shows it; None stands for a missing member."""
  return "missing" if value is None else shown(value)


def _refuse(path: str | os.PathLike, field: str, found: str, accepted: str) -> NoReturn:
  """Raises VocabularyError with one line about a field of a file."""
  raise VocabularyError(f"{path}: {field} is {found}; accepted: {accepted}")
