"""Fuzzing of the readers of class lists."""

import json

from hypothesis import example, given
from hypothesis import strategies as st
import pytest

from pomp_jax.data.class_lists import VocabularyError, load_class_list, normalized_names
from tests.support.fuzzing import allowed_errors, damaged, edited_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("fuzz")


def read_names(path, data):
  path.write_bytes(data)
  with allowed_errors(VocabularyError, within=[path]):
    classes = load_class_list(path)
    assert len(classes.names) > 0
    normalized_names(classes.names)  # a name may stand twice
    for name in classes.names:
      name.encode()
    assert classes.synsets is None or len(classes.synsets) == len(classes)


LISTS = [
  ["cat", "red dog"],
  {"cat": 0, "red_dog": {"any": "thing"}},
  [{"name": "cat", "synset": "n02084071"}, {"name": "dog", "synset": "n02084072"}],
]
_edited = [edited_json(valid, "name", "synset", "cat", "n02084071") for valid in LISTS]


@given(damaged([b"cat\nred_dog\nbow (weapon)\n", "é\r\nñandú\r\n".encode("utf-8-sig")]))
@example("a\u2028b\x85c".encode())
def test_damaged_names(folder, data):
  read_names(folder / "names.txt", data)


@given(st.one_of(*_edited, damaged([json.dumps(valid).encode() for valid in LISTS])))
@example(b'[{"name": "a", "synset": ' + b"[" * 400 + b"]" * 400 + b"}]")
def test_edited_class_lists(folder, data):
  read_names(folder / "names.json", data)
