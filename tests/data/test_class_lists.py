"""Class lists, packaged ones and a user's, fuzzed ones, and WordNet's tree of their
synsets."""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import pathlib

from hypothesis import example, given
from hypothesis import strategies as st
import networkx as nx
import numpy as np
import pytest

from docs.generators import write_class_names
from pomp_jax.data import class_lists
from pomp_jax.data.class_lists import CLASS_LISTS, VocabularyError, load_class_list
from pomp_jax.data.wordnet import load_tree
from pomp_jax.files.run_folder import RunFolder
from tests.support.clips import clip_tokenizer
from tests.support.fuzzing import allowed_errors, damaged, edited_json
from tests.support.oracles import tree_graph


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  """CLIP's own, with OpenAI's merges, which the package open_clip_torch carries."""
  return clip_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_packaged_lists(name, tokenizer):
  """Names that CLIP's tokenizer distinguishes and has room for."""
  classes = load_class_list(name)
  assert all(template.count("{}") == 1 for template in classes.ensemble)
  assert (classes.synsets is None) == (not name.startswith("imagenet"))
  if classes.synsets:
    assert classes.synsets == tuple(sorted(set(classes.synsets)))
    assert len(classes.synsets) == len(classes)
  words = class_lists.normalized_names(classes.names)
  rows = tokenizer([f"{name}." for name in words])["input_ids"]
  assert len(set(map(tuple, rows))) == len(rows)
  # 16 context vectors, SOS and EOT beside the name.
  assert max(map(len, rows)) + 16 <= 77
  for template in (classes.template, max(classes.ensemble, key=len)):
    rows = tokenizer([template.replace("{}", name) for name in words])["input_ids"]
    assert max(map(len, rows)) <= 77


def test_lists_and_templates_stay_as_published():
  """Labels of CoOp's splits, prompts and figures of everybody depend on names and
  their order."""
  lists = [dataclasses.astuple(load_class_list(name))[:4] for name in CLASS_LISTS]
  templates = {
    name: class_lists.load_templates(name) for name in sorted(class_lists.TEMPLATES)
  }
  assert templates.pop("imagenet_60") == templates["imagenet"][:60]
  content = json.dumps([lists, [*templates.values()]])
  digest = hashlib.sha256(content.encode()).hexdigest()
  assert digest == "9aad4a6a7583e4f283b9c66235a144f49ea69da2933bc8d39fe96df47024e0b6"
  with pytest.raises(VocabularyError, match="imagenet80.txt: can't be read"):
    class_lists.load_templates("imagenet80")


def test_a_text_file(tmp_path):
  file = tmp_path / "names.txt"
  file.write_text("grey_wolf\ncat\n", encoding="utf-8")
  template = "a photo of a {}."
  expected = ("grey_wolf", "cat"), None, template, (template,)
  assert dataclasses.astuple(load_class_list(str(file))) == expected
  file.write_bytes("\ufeffcat\r\n  d\u00f6g \r\n\r\n".encode())
  assert class_lists.read_names(file) == ("cat", "d\u00f6g")


def test_empty_lines_are_skipped_and_named(tmp_path, caplog):
  file = tmp_path / "names.txt"
  file.write_text("\ncat\n  \ndog\n\n", encoding="utf-8")
  for _ in range(2):
    assert load_class_list(file).names == ("cat", "dog")
  # Those at the end are none.
  assert [
    message.endswith(": 1, 3") and str(file) in message for message in caplog.messages
  ] == [True]


def test_a_runs_classes_and_their_checksum(tmp_path):
  """No change of a byte gives other names."""
  folder = RunFolder(tmp_path)
  folder.write_classes(("grey_wolf", "k\u00e9pi"))
  assert load_class_list(folder.class_names).names == ("grey_wolf", "k\u00e9pi")
  content = folder.class_names.read_bytes()
  for place in range(len(content)):
    changed = bytearray(content)
    changed[place] ^= 1
    folder.class_names.write_bytes(changed)
    try:
      assert load_class_list(folder.class_names).names == ("grey_wolf", "k\u00e9pi"), (
        bytes(changed)
      )
    except VocabularyError as error:
      assert str(folder.class_names) in str(error)
  folder.class_names.write_text('{"format_version": 2, "names": ["cat"]}')
  with pytest.raises(VocabularyError, match="format_version is 2, expected 1"):
    load_class_list(folder.class_names)


ANNOTATIONS = (
  '{"images": [], "categories": [{"id": 7, "name": "bow_(weapon)", "synset": "bow.n.04",'
  ' "synonyms": ["bow_(weapon)"]}, {"name": "aerosol_can", "id": 2}]}'
)


@pytest.mark.parametrize(
  ("content", "names", "synsets"),
  [
    ('["dog", " cat "]', ("dog", "cat"), None),
    ('{"dog": ["a pet that barks"], "cat": 3}', ("dog", "cat"), None),
    (
      '\ufeff[{"name": "dog", "synset": "n02084071"}, {"synset": "n02121620", "name": "cat"}]',
      ("dog", "cat"),
      ("n02084071", "n02121620"),
    ),
    # Categories of COCO and LVIS in ascending order of their ids, and not the keys of
    # the file.
    (ANNOTATIONS, ("aerosol can", "bow (weapon)"), None),
    (
      '{"tags": ["a label"], "categories": ["a group", "a kind"]}',
      ("tags", "categories"),
      None,
    ),
  ],
)
def test_a_json_file(content, names, synsets, tmp_path):
  file = tmp_path / "names.JSON"
  file.write_text(content, encoding="utf-8")
  classes = load_class_list(file)
  assert (classes.names, classes.synsets) == (names, synsets)


REFUSED_JSON = [
  (b'{"images": [], "categories": [{"id": 1}]}', r"categories\[0\].name is missing"),
  (b'{"images": [], "annotations": []}', "without categories"),
  (b'["dog",', "line 1"),
  (b"\xff", "not JSON .*utf-8"),
  (b"[" * 100_000, "JSON"),
  (b"{}", "is empty"),
  (b'["dog", ["cat"]]', "item 2 of 2: found a list"),
  (b'{"dog": 1, "dog": 2}', "'dog'"),
  (b'{"0": "dog", "1": "cat"}', "keys are numbers"),
  (b'[{"nam": "dog"}]', "item 1 of 1: found an object"),
  (b'[{"name": "dog", "synset": "dog.n.01"}]', "synset 'dog.n.01'"),
  (b'[{"name": "dog", "synset": "n02084071"}, "cat"]', "1 of 2 classes"),
  (
    b'[{"name": "a", "synset": "n00000001"}, {"name": "b", "synset": "n00000001"}]',
    "n00000001",
  ),
]
REFUSED_TEXT = [
  (b"\xff\xfe\x00", "not UTF-8"),
  (b"", "empty"),
  (b"cat\n" + 10**6 * b"x", "name 2, 'x*'.* is too long"),
  # A line ends at a line feed and nowhere else: else rows that are exported would
  # belong to other names than the file's lines.
  *(
    (f"cat\nred{letter}dog\nowl\n".encode(), rf"name 2, .* U\+{ord(letter):04X}")
    for letter in "\u2028\u2029\x85\x0b\x0c\x1c\x1b\t\r"
  ),
]


@pytest.mark.parametrize(
  ("suffix", "content", "where"),
  [*(("json", *row) for row in REFUSED_JSON), *(("txt", *row) for row in REFUSED_TEXT)],
)
def test_an_unusable_file_is_an_error_of_one_line(suffix, content, where, tmp_path):
  file = tmp_path / f"names.{suffix}"
  file.write_bytes(content)
  with pytest.raises(VocabularyError, match=where) as error:
    load_class_list(file)
  message = str(error.value)
  assert str(file) in message and message.isprintable()
  assert len(message) < 300 + len(str(file))


@pytest.mark.parametrize("name", ["imagenet", "none/names.txt"])
def test_neither_a_list_nor_a_file(name):
  with pytest.raises(VocabularyError, match=name):
    load_class_list(name)


def test_names_that_stand_twice_are_usable_and_told_of(tmp_path, caplog):
  file = tmp_path / "names.txt"
  file.write_text("Turkey\ncrane\nturkey\ncrane\n", encoding="utf-8")
  logging.getLogger("pomp_jax").propagate = True
  with caplog.at_level("WARNING", "pomp_jax"):
    assert load_class_list(file).names == ("Turkey", "crane", "turkey", "crane")
  assert f"{file}: 2 of 4 classes" in caplog.text
  assert "'turkey', names 1 and 3" in caplog.text
  with pytest.raises(VocabularyError, match="empty"):
    class_lists.normalized_names([])


def test_synsets_are_those_of_the_fall_2011_release_with_clips_lengths(tokenizer):
  ids, words, lengths = class_lists.read_table(class_lists.SYNSETS)
  assert load_class_list("imagenet21k").synsets == ids
  lemmas = words[ids.index("n02084071")].split(", ")
  assert lemmas[0] == "dog" and "domestic dog" in lemmas
  rows = tokenizer([f"{of_class.split(', ')[0]}." for of_class in words])["input_ids"]
  assert [len(row) - 1 for row in rows] == list(map(int, lengths))


def read_classes(path, data):
  path.write_bytes(data)
  with allowed_errors(VocabularyError, within=[path]):
    classes = load_class_list(path)
    assert len(classes.names) > 0
    class_lists.normalized_names(classes.names)  # a name may stand twice
    for name in classes.names:
      name.encode()
    assert classes.synsets is None or len(classes.synsets) == len(classes)


LISTS = [
  ["cat", "red dog"],
  {"cat": 0, "red_dog": {"any": "thing"}},
  [{"name": "cat", "synset": "n02084071"}, {"name": "dog", "synset": "n02084072"}],
  {
    "categories": [
      {"id": 3, "name": "bow_(tie)", "synonyms": ["bow"]},
      {"id": 1, "name": "cat"},
    ]
  },
]
_edited = [
  edited_json(valid, "name", "synset", "synonyms", "id", "n02084071") for valid in LISTS
]


@given(damaged([b"cat\nred_dog\nbow (weapon)\n", "é\r\nñandú\r\n".encode("utf-8-sig")]))
@example("a\u2028b\x85c".encode())
def test_damaged_names(tmp_path_factory, data):
  read_classes(tmp_path_factory.getbasetemp() / "names.txt", data)


@given(st.one_of(*_edited, damaged([json.dumps(valid).encode() for valid in LISTS])))
@example(b'[{"name": "a", "synset": ' + b"[" * 400 + b"]" * 400 + b"}]")
def test_edited_class_lists(tmp_path_factory, data):
  read_classes(tmp_path_factory.getbasetemp() / "names.json", data)


@pytest.fixture(scope="module")
def tree():
  return load_tree()


def test_depths_and_ancestors_are_networkxs(tree):
  # ImageNet-1K's teddy bear
  tree.nodes(["n04399382", *load_class_list("imagenet21k").synsets])
  graph = tree_graph(tree)
  shortest = nx.single_source_shortest_path_length(graph, tree.root)
  np.testing.assert_array_equal(
    tree.depth, [shortest[node] for node in range(len(tree))]
  )
  backward = graph.reverse()
  for node in np.random.default_rng(0).choice(len(tree), 300):
    ways = nx.single_source_shortest_path_length(backward, node)
    assert tree.ancestors[node].tolist() == sorted(ways)


WORDNET = pathlib.Path("/usr/share/wordnet/data.noun")
without_wordnet = pytest.mark.skipif(
  not WORDNET.exists(), reason="wordnet-base is not installed"
)


@pytest.mark.parametrize(
  "which", ["ten", pytest.param("imagenet", marks=without_wordnet)]
)
def test_the_packaged_names_are_stored_as_made(which):
  make = write_class_names
  try:
    ten = which == "ten"
    files = (
      make.make_downstream()
      if ten
      else make.make_imagenet(make.read_nouns(str(WORDNET)))
    )
  except importlib.metadata.PackageNotFoundError as error:
    pytest.skip(str(error))
  folder = pathlib.Path(class_lists.__file__).parent / "class_names"
  for path, content in files.items():
    assert (folder / path).read_text(encoding="utf-8") == content, path
