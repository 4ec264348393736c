"""The categories of COCO's and LVIS's annotations, which class lists may name as
well."""

import os
from typing import Any, NoReturn

from pomp_jax.data.class_lists import Category, VocabularyError, normalized_name, shown
from pomp_jax.files.terminal import control_character, is_unicode, quoted


def categories_by_id(path: str | os.PathLike, value: Any) -> dict[int, Category]:
  """Parses `categories` of COCO or LVIS annotations, the JSON value of a file.

  Each has `id`, `name` and optionally `synonyms` (LVIS). VocabularyError for one
  without integer `id` or name, and for a control character or a repeated id or name
  ("a_b" equals "a b").
  """

  def refuse(field: str, found: str, accepted: str) -> NoReturn:
    raise VocabularyError(f"{path}: {field} is {found}; accepted: {accepted}")

  def words_of(field: str, text: Any) -> str:
    words = normalized_name(text) if isinstance(text, str) else ""
    if not words or not is_unicode(words) or control_character(words):
      refuse(field, "missing" if text is None else shown(text), "a name")
    return words

  if not isinstance(value, dict) or "categories" not in value:
    found = (
      f"the keys {quoted(', '.join(value))}" if isinstance(value, dict) else "no object"
    )
    refuse("the file", f"without categories ({found})", "COCO or LVIS annotations")
  rows = value["categories"]
  if not isinstance(rows, list) or not rows:
    refuse("categories", shown(rows), "a list of at least one category")
  by_id: dict[int, Category] = {}
  names: set[str] = set()
  for index, row in enumerate(rows):
    where = f"categories[{index}]"
    if not isinstance(row, dict):
      refuse(where, shown(row), "an object with id and name")
    number, synonyms = row.get("id"), row.get("synonyms", [])
    if type(number) is not int:
      refuse(
        f"{where}.id", "missing" if number is None else shown(number), "an integer"
      )
    if number in by_id:
      refuse(f"{where}.id", f"{number}, which is repeated", "different ids")
    name = words_of(f"{where}.name", row.get("name"))
    if name in names:
      refuse(f"{where}.name", f"{quoted(name)}, which is repeated", "different names")
    if not isinstance(synonyms, list):
      refuse(f"{where}.synonyms", shown(synonyms), "a list of strings")
    others = dict.fromkeys(
      words_of(f"{where}.synonyms", synonym) for synonym in synonyms
    )
    others.pop(name, None)
    by_id[number] = Category(name, tuple(others))
    names.add(name)
  return by_id
