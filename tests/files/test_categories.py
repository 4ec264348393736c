"""Categories of COCO and LVIS annotations."""

import json

from hypothesis import given
from hypothesis import strategies as st
import pytest

from pomp_jax.files.class_features import (
  Category,
  CategoryFileError,
  is_annotation_file,
  read_categories,
)


def write(path, categories, **more):
  path.write_text(json.dumps({"images": [], "categories": categories} | more))
  return path


def refusal(path):
  with pytest.raises(CategoryFileError) as caught:
    read_categories(path)
  message = str(caught.value)
  assert "\n" not in message
  assert message.startswith(f"{path}: ")
  return message


def test_coco(tmp_path):
  rows = [
    {"supercategory": "animal", "id": 18, "name": "dog"},
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "vehicle", "id": 3, "name": " traffic  light "},
  ]
  found = read_categories(write(tmp_path / "a.json", rows))
  assert found == (Category("person"), Category("traffic light"), Category("dog"))


def test_lvis(tmp_path):
  """Names as words; qualifiers stay, for "bow" alone would stand for two of them."""
  rows = [
    {"id": 2, "name": "bow_(weapon)", "synonyms": ["bow_(weapon)"], "frequency": "r"},
    {"id": 1, "name": "bow_(decorative_ribbons)", "synonyms": ["bow_(decorative_ribbons)", "knot"]},
    # One of LVIS's categories has a name that is none of its synonyms.
    {"id": 3, "name": "bull", "synonyms": ["horned_cow", "horned cow"]},
  ]
  assert read_categories(write(tmp_path / "a.json", rows)) == (
    Category("bow (decorative ribbons)", ("knot",)),
    Category("bow (weapon)"),
    Category("bull", ("horned cow",)),
  )


GOOD = [{"id": 1, "name": "a_b"}, {"id": 2, "name": "c"}]


@pytest.mark.parametrize(
  ("rows", "parts"),
  [
    ([], ["categories is a list of 0"]),
    ({}, ["categories is a dict of 0"]),
    (None, ["categories is missing"]),
    ("x", ["categories is 'x'"]),
    ([*GOOD, 3], ["categories[2] is a int"]),
    ([*GOOD, {"name": "d"}], ["categories[2].id is missing", "integer"]),
    ([*GOOD, {"id": "3", "name": "d"}], ["categories[2].id is '3'"]),
    ([*GOOD, {"id": True, "name": "d"}], ["categories[2].id is True"]),
    ([*GOOD, {"id": 2, "name": "d"}], ["categories[2].id is 2, which is repeated"]),
    ([*GOOD, {"id": 3}], ["categories[2].name is missing"]),
    ([*GOOD, {"id": 3, "name": "_ "}], ["categories[2].name is '_ '"]),
    ([*GOOD, {"id": 3, "name": "d\x1b[2J"}], ["categories[2].name is 'd\\x1b[2J'"]),
    ([*GOOD, {"id": 3, "name": ["d"]}], ["categories[2].name is a list of 1"]),
    ([*GOOD, {"id": 3, "name": "a b"}], ["categories[2].name is 'a b'"]),
    ([*GOOD, {"id": 3, "name": "d", "synonyms": "e"}], ["categories[2].synonyms is 'e'", "list"]),
    ([*GOOD, {"id": 3, "name": "d", "synonyms": ["e", ""]}], ["categories[2].synonyms is ''"]),
  ],
)
def test_bad_categories_are_refused_by_field(tmp_path, rows, parts):
  message = refusal(write(tmp_path / "a.json", rows))
  for part in parts:
    assert part in message


@pytest.mark.parametrize(
  ("data", "part"),
  [
    (b"", "not JSON"),
    (b'{"categories": [', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"\xff\xfe\xff", "not JSON"),
    (b"1" * 5000, "not JSON"),
    (b"[]", "without categories (no object)"),
    (b'{"images": [], "info": {}}', "without categories (the keys images, info)"),
  ],
)
def test_bad_files(tmp_path, data, part):
  (tmp_path / "a.json").write_bytes(data)
  assert part in refusal(tmp_path / "a.json")


def test_missing_files(tmp_path):
  assert "can't be read (No such file" in refusal(tmp_path / "none.json")
  assert "can't be read" in refusal(tmp_path)


def test_which_files_are_annotations(tmp_path):
  text = tmp_path / "names.txt"
  text.write_text("dog\n{}\n")
  assert not is_annotation_file(text)
  assert not is_annotation_file(tmp_path / "none")
  assert is_annotation_file(tmp_path / "none.JSON")
  text.write_text(' \n{"categories": []}')
  assert is_annotation_file(text)


_VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["id", "name", "synonyms", "categories"]), inner)
  ),
  max_leaves=8,
)


@given(_VALUES | st.builds(lambda rows: {"categories": rows}, st.lists(_VALUES, max_size=4)))
def test_any_json_is_refused_or_read(tmp_path_factory, value):
  path = tmp_path_factory.getbasetemp() / "any.json"
  path.write_text(json.dumps(value))
  try:
    assert read_categories(path)
  except CategoryFileError as error:
    assert "\n" not in str(error)
