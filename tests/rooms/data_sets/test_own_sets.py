"""A user's own data sets: what a file of them may hold, and which classes and images
it gives."""

import re
import shutil

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.source import SourceError
from pomp_jax.rooms.data_sets.own_sets import open_own_set, parse_sets, read_sets_file
from tests.support.fuzzing import allowed_errors, awkward_text

NAMES = ("ant", "bee", "cat", "dog", "eel")


def picture(folder, number=0):
  folder.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (8, 8)).save(folder / f"{number}.png")


@pytest.fixture
def pictures(tmp_path):
  """A folder a class, of 1, 2, 3, 4 and 5 pictures."""
  for count, name in enumerate(NAMES, 1):
    for number in range(count):
      picture(tmp_path / "animals" / name, number)
  return tmp_path


_SET = '[[set]]\nname = "a"\nroot = "animals"\n'


def opened(folder, text):
  """Parts of the last set of a file."""
  (folder / "sets.toml").write_text(text)
  for own in read_sets_file(folder / "sets.toml"):
    parts = {part: open_own_set(own, part) for part in own.parts}
  return parts


def counts(labelled):
  return np.bincount(labelled.source.labels, minlength=len(labelled.classes)).tolist()


def test_a_folder_a_class_is_all_it_takes(pictures):
  (labelled,) = opened(pictures, _SET).values()
  assert labelled.classes.names == labelled.source.names == NAMES
  assert counts(labelled) == [1, 2, 3, 4, 5]
  # Nothing says that these are test images.
  assert labelled.split == "all"
  assert labelled.classes.template == "a photo of a {}."
  assert labelled.classes.synsets is None


def test_the_test_folder_is_read_and_named(pictures):
  root = pictures / "animals"
  (root / "train").mkdir()
  for name in NAMES:
    (root / name).rename(root / "train" / name)
  picture(root / "val/bee")
  picture(root / "test/dog")
  (labelled,) = opened(pictures, _SET).values()
  # Told apart among the classes of the training.
  assert (labelled.split, labelled.classes.names) == ("test", NAMES)
  assert counts(labelled) == [0, 0, 0, 1, 0]
  shutil.rmtree(root / "test")
  (labelled,) = opened(pictures, _SET).values()
  assert (labelled.split, counts(labelled)) == ("validation", [0, 1, 0, 0, 0])


def test_names_from_a_list_or_by_name(pictures, caplog):
  (labelled,) = opened(pictures, _SET + 'names = ["eel", "wolf", "cat"]').values()
  assert labelled.classes.names == ("eel", "wolf", "cat")
  # A class without a picture can still be answered; what is no class is left out, and
  # said.
  assert counts(labelled) == [5, 0, 3]
  assert "3 of 5 folders" in caplog.text
  assert "'ant'" in caplog.text
  picture(pictures / "animals/Forest")
  (labelled,) = opened(pictures, _SET + 'names = "eurosat"').values()
  assert labelled.classes.names == load_class_list("eurosat").names
  assert labelled.classes.template == "a centered satellite photo of {}."


@pytest.mark.parametrize(
  ("text", "base", "novel"),
  [
    ('base = ["eel", "bee"]\nnovel = ["cat"]', ("bee", "eel"), ("cat",)),
    ('base = "seen.txt"', ("bee", "dog"), ("ant", "cat", "eel")),
    ('base = "seen.txt"\nnovel = "unseen.json"', ("bee", "dog"), ("ant", "eel")),
    ('base = "first half"', ("ant", "bee", "cat"), ("dog", "eel")),
  ],
)
def test_base_and_novel(pictures, text, base, novel):
  (pictures / "seen.txt").write_text("dog\nbee\n")
  (pictures / "unseen.json").write_text('["eel", "ant"]')
  parts = opened(pictures, _SET + text)
  assert (parts["base"].classes.names, parts["novel"].classes.names) == (base, novel)
  for labelled in parts.values():
    assert labelled.source.names == labelled.classes.names
    assert counts(labelled) == [
      1 + NAMES.index(name) for name in labelled.classes.names
    ]
    # The labels are the pictures' own.
    folders = [key.split("/")[0] for key in labelled.source.keys]
    assert folders == [
      labelled.classes.names[label] for label in labelled.source.labels
    ]


def test_a_name_that_stands_twice_is_in_one_part(pictures):
  (pictures / "names.txt").write_text("bee\nant\nbee\ncat\n")
  parts = opened(pictures, _SET + 'names = "names.txt"\nbase = ["bee"]')
  assert parts["base"].classes.names == ("bee", "bee")
  assert parts["novel"].classes.names == ("ant", "cat")


def test_templates_and_synsets_go_with_the_classes(pictures):
  ids = ["n02219486", "n02206856", "n02121620", "n02084071", "n02526121"]
  text = f'base = ["dog"]\nsynsets = {ids}\ntemplates = ["one {{}}", "many {{}}s"]'
  parts = opened(pictures, _SET + text)
  assert parts["novel"].classes.synsets == (*ids[:3], ids[4])
  assert parts["base"].classes.synsets == ("n02084071",)
  for labelled in parts.values():
    assert labelled.classes.template == "one {}"
    assert labelled.classes.ensemble == ("one {}", "many {}s")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "found none"),
    ("[[set]\n", "not TOML .*line 1"),
    ('[[set]]\nroot = "animals"', "set 1: key 'name': got None"),
    (_SET + _SET, "set 'a': key 'name'"),
    (
      _SET + "rooot = 1",
      r"set 'a': unknown key 'rooot' \(did you mean 'root'\?\); known: name",
    ),
    (_SET + "templates = ['a {} {}']", "set 'a': key 'templates'.*one {} each"),
    (_SET + "reader = 'coop'\ndataset = 'cars'", "set 'a': key 'dataset': got 'cars'"),
    (_SET + "base = 'first half'\nnovel = ['ant']", "set 'a': key 'novel'"),
    ('[[set]]\nname = "a"\nroot = "plants"', "set 'a': .*plants: can't be read"),
    ('[[set]]\nname = "a"\nroot = "a\\u0000b"', r"set 'a': key 'root': got 'a\\x00b'"),
    (_SET + 'names = "no.txt"', r"set 'a': .*no\.txt: can't be read"),
    (_SET + 'names = ["ant", "ant"]', "set 'a': key 'names': .*'ant'"),
    (
      _SET + 'base = ["aunt"]',
      r"set 'a': key 'base': 1 names .*'aunt' \(did you mean 'a",
    ),
    (
      _SET + 'base = ["ant"]\nnovel = ["ant", "bee"]',
      "set 'a': key 'novel': 1 classes .*'ant'",
    ),
    (_SET + f"base = {list(NAMES)}", "set 'a': key 'base': has all classes"),
    (
      _SET + 'synsets = ["n02084071"]',
      "set 'a': key 'synsets': 1 different ids for 5 classes",
    ),
    (_SET + f"synsets = {[f'n9999999{i}' for i in range(5)]}", "set 'a': .*n99999990"),
    (_SET + 'names = ["ant", "wolf"]\nbase = ["ant"]', "set 'a': key 'novel': "),
  ],
)
def test_a_set_that_can_not_be(pictures, text, message):
  with pytest.raises(SourceError) as error:
    opened(pictures, text)
  file = re.escape(str(pictures / "sets.toml"))
  assert re.match(f"{file}: .*{message}", str(error.value))
  assert "\n" not in str(error.value)


_values = st.recursive(
  awkward_text
  | st.sampled_from(["first half", "folder", "a {}", "dtd", "tfds", "coop"])
  | st.integers()
  | st.none(),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(awkward_text, inner, max_size=2)
  ),
  max_leaves=4,
)
_entries = st.dictionaries(
  st.sampled_from(
    ["name", "root", "reader", "base", "novel", "names", "templates", "x"]
  ),
  _values,
)


@given(st.lists(_entries | _values, max_size=2))
def test_any_entries_are_sets_or_one_line(entries):
  with allowed_errors(SourceError, within=[]):
    for own in parse_sets(entries, "config.evaluate.own_sets"):
      assert own.name
      assert own.root
