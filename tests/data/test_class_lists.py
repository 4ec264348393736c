"""Class lists, packaged ones and a user's, TFDS's labels, and the synsets of ImageNet-21K."""

from collections import Counter
import dataclasses
import importlib.metadata
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from pomp_jax.clip import load_clip
from pomp_jax.data import class_lists
from pomp_jax.data.class_lists import (
  CLASS_LISTS,
  TEMPLATES,
  VocabularyError,
  load_class_list,
  load_synsets,
  load_templates,
  load_tfds_labels,
  normalized_names,
  read_names,
)
from pomp_jax.data.prepare import write_class_names
from pomp_jax.encoder import Encoder
from pomp_jax.inference import Classifier, topk_accuracy
from tests.support.clips import clip_tokenizer

SIZES = {
  "imagenet21k": 21_841,
  "imagenet21k_p": 11_221,
  "imagenet21k_p_w21": 10_450,
  "imagenet1k": 1000,
  "imagenet_v2": 1000,
  "imagenet_sketch": 1000,
  "imagenet_a": 200,
  "imagenet_r": 200,
  "caltech101": 100,
  "oxford_pets": 37,
  "stanford_cars": 196,
  "flowers102": 102,
  "food101": 101,
  "fgvc_aircraft": 100,
  "sun397": 397,
  "dtd": 47,
  "eurosat": 10,
  "ucf101": 101,
}
TEN = list(SIZES)[8:]
# Of CoOp's fixed splits: label -> name.
COOP = {
  "caltech101": {0: "face", 3: "accordion", 4: "airplane", 18: "car_side", 99: "yin_yang"},
  "oxford_pets": {0: "abyssinian", 2: "american_pit_bull_terrier", 36: "yorkshire_terrier"},
  "stanford_cars": {0: "2000 AM General Hummer SUV", 195: "2012 smart fortwo Convertible"},
  "flowers102": {0: "pink primrose", 59: "pink-yellow dahlia", 101: "blackberry lily"},
  "food101": {0: "apple_pie", 16: "cheese_plate", 17: "cheesecake", 100: "waffles"},
  "fgvc_aircraft": {0: "707-320", 72: "F-16A/B", 99: "Yak-42"},
  "sun397": {0: "abbey", 8: "outdoor apartment_building", 396: "youth_hostel"},
  "dtd": {0: "banded", 46: "zigzagged"},
  "eurosat": {0: "Annual Crop Land", 3: "Highway or Road", 9: "Sea or Lake"},
  "ucf101": {0: "Apply_Eye_Makeup", 23: "Cricket_Shot", 100: "Yo_Yo"},
}
TEMPLATE = {
  "oxford_pets": "a photo of a {}, a type of pet.",
  "flowers102": "a photo of a {}, a type of flower.",
  "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
  "dtd": "{} texture.",
  "eurosat": "a centered satellite photo of {}.",
  "food101": "a photo of {}, a type of food.",
  "ucf101": "a photo of a person doing {}.",
}
# The names of ImageNet-1K: two pairs that CLIP calls alike, a bird and a machine.
IMAGENET = {
  **{0: "tench", 1: "goldfish", 134: "crane bird", 517: "construction crane", 657: "missile"},
  **{744: "projectile", 836: "sunglass", 837: "sunglasses", 999: "toilet paper"},
}


@pytest.mark.parametrize("name", SIZES)
def test_packaged_lists(name):
  """Sizes, names that stay distinct in a sentence, sorted synsets, CoOp's names and templates."""
  classes = load_class_list(name)
  assert list(SIZES) == list(CLASS_LISTS)
  assert len(classes) == len(classes.names) == SIZES[name]
  sentences = [words.casefold() for words in normalized_names(classes.names)]
  assert len(set(sentences)) == SIZES[name]
  assert all(words == words.strip() and words.isprintable() for words in classes.names)
  assert classes.source
  if name in TEN:
    assert classes.synsets is None
  else:
    assert len(classes.synsets) == SIZES[name]
    assert list(classes.synsets) == sorted(set(classes.synsets))
  same_as_imagenet = name in ("imagenet1k", "imagenet_v2", "imagenet_sketch")
  for label, words in (IMAGENET if same_as_imagenet else COOP.get(name, {})).items():
    assert classes.names[label] == words
  assert classes.template == TEMPLATE.get(name, "a photo of a {}.")
  assert all(template.count("{}") == 1 for template in classes.ensemble)


@pytest.mark.parametrize("name", ["caltech101", "food101", "sun397", "dtd", "fgvc_aircraft"])
def test_alphabetical_order(name):
  """Labels count the sorted folders (SUN397's have the qualifier last), capitals first."""
  names = load_class_list(name).names
  if name == "sun397":
    names = [" ".join(reversed(words.split(" "))) for words in names]
  folders = {"face": "Faces", "leopard": "Leopards", "motorbike": "Motorbikes"}
  names = [folders.get(words, words.replace("airplane", "airplanes")) for words in names]
  assert names == sorted(names)


def test_subsets():
  parts = {name: load_class_list(name) for name in SIZES if name.startswith("imagenet")}
  ids = {name: set(part.synsets) for name, part in parts.items()}
  assert ids["imagenet21k_p_w21"] < ids["imagenet21k_p"] < ids["imagenet21k"]
  assert ids["imagenet_a"] < ids["imagenet1k"] and ids["imagenet_r"] < ids["imagenet1k"]
  # The teddy bear is no class of the fall 2011 release.
  assert ids["imagenet1k"] - ids["imagenet21k"] == {"n04399382"}
  assert parts["imagenet1k"].synsets[::999] == ("n01440764", "n15075141")
  whole = dict(zip(parts["imagenet21k"].synsets, parts["imagenet21k"].names, strict=True))
  for name in ("imagenet21k_p", "imagenet21k_p_w21"):
    assert [whole[synset] for synset in parts[name].synsets] == list(parts[name].names)
  assert parts["imagenet_a"].names[0] == "stingray"
  assert parts["imagenet_r"].names[:3] == ("goldfish", "great white shark", "hammerhead shark")


def test_imagenet_21k_names_begin_with_the_first_lemma_and_are_it_where_it_is_the_only_one():
  classes, synsets = load_class_list("imagenet21k"), load_synsets()
  assert classes.synsets == synsets.ids
  count = Counter(name.casefold() for name in synsets.names)
  assert sum(count[name.casefold()] > 1 for name in synsets.names) == 3243
  for name, lemma in zip(classes.names, synsets.names, strict=True):
    assert name == lemma or name.startswith(f"{lemma}, ")
    if count[lemma.casefold()] == 1:
      assert name == lemma
  named = dict(zip(classes.synsets, classes.names, strict=True))
  assert named["n02084071"] == "dog"
  assert named["n02012849"] == "crane, wading bird"
  assert named["n03126707"] == "crane, lifting device"
  assert named["n11962272"] == "coneflower, Echinacea"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  """CLIP's own, with OpenAI's merges, which the package open_clip_torch carries."""
  return clip_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("name", ["imagenet21k", "imagenet1k", *TEN])  # the others are subsets
def test_clips_tokenizer_tells_the_names_apart_and_its_77_positions_hold_them(name, tokenizer):
  classes = load_class_list(name)
  words = normalized_names(classes.names)
  rows = tokenizer([f"{name}." for name in words])["input_ids"]
  assert len(set(map(tuple, rows))) == len(rows)
  # 16 context vectors, SOS and EOT beside the name.
  assert max(map(len, rows)) + 16 <= 77
  for template in (classes.template, max(classes.ensemble, key=len)):
    rows = tokenizer([template.replace("{}", name) for name in words])["input_ids"]
    assert max(map(len, rows)) <= 77


def test_ensembles():
  assert set(TEMPLATES) == {"imagenet", "imagenet_7", *TEN}
  eighty, seven = load_templates("imagenet"), load_templates("imagenet_7")
  assert (eighty[0], eighty[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")
  assert "; ".join(seven) == (
    "itap of a {}.; a bad photo of the {}.; a origami {}.; a photo of the large {}.;"
    " a {} in a video game.; art of the {}.; a photo of the small {}."
  )
  assert set(seven) < set(eighty)
  sizes = {"imagenet": 80, "caltech101": 34, "stanford_cars": 8, "ucf101": 48}
  assert {name: len(load_templates(name)) for name in sizes} == sizes
  assert load_class_list("imagenet21k").ensemble == eighty
  with pytest.raises(VocabularyError, match="unknown templates 'imagenet80'.*imagenet_7"):
    load_templates("imagenet80")


def test_a_text_file(tmp_path):
  file = tmp_path / "names.txt"
  file.write_text("grey_wolf\ncat\n", encoding="utf-8")
  classes = load_class_list(file)
  template = "a photo of a {}."
  expected = ("grey_wolf", "cat"), None, template, (template,), str(file)
  assert dataclasses.astuple(classes) == expected
  assert load_class_list(str(file)) == classes
  file.write_bytes("\ufeffcat\r\n  d\u00f6g \r\n\r\n".encode())
  assert read_names(file) == ("cat", "d\u00f6g")


ANNOTATIONS = (
  '{"images": [], "categories": [{"id": 7, "name": "bow_(weapon)", "synset": "bow.n.04",'
  ' "synonyms": ["bow_(weapon)"]}, {"name": "aerosol_can", "id": 2}]}'
)


@pytest.mark.parametrize(
  ("content", "names", "synsets"),
  [
    ('["dog", " cat "]', ("dog", "cat"), None),
    ('{"dog": ["a pet that barks"], "cat": 3}', ("dog", "cat"), None),
    ('[{"name": "dog"}, {"name": "cat", "synset": null, "id": 7}]', ("dog", "cat"), None),
    (
      '\ufeff[{"name": "dog", "synset": "n02084071"}, {"synset": "n02121620", "name": "cat"}]',
      ("dog", "cat"),
      ("n02084071", "n02121620"),
    ),
    # Categories of COCO and LVIS in ascending order of their ids, and not the keys of the file.
    (ANNOTATIONS, ("aerosol can", "bow (weapon)"), None),
    ('{"tags": ["a label"], "categories": ["a group", "a kind"]}', ("tags", "categories"), None),
  ],
)
def test_a_json_file(content, names, synsets, tmp_path):
  file = tmp_path / "names.JSON"
  file.write_text(content, encoding="utf-8")
  classes = load_class_list(file)
  assert (classes.names, classes.synsets) == (names, synsets)


def test_annotations_may_be_larger_than_any_list_of_names(tmp_path, monkeypatch):
  file = tmp_path / "lvis_v1_val.json"
  file.write_text(ANNOTATIONS, encoding="utf-8")
  monkeypatch.setattr(class_lists, "_MAX_FILE_BYTES", 100)
  assert load_class_list(file).names == ("aerosol can", "bow (weapon)")
  file.write_text('["dog"' + 100 * " " + "]", encoding="utf-8")
  with pytest.raises(VocabularyError, match="lvis_v1_val.json: the file is without categories"):
    load_class_list(file)


def refused(content, where, file):
  """Holds that an unusable file is an error of one line that names it."""
  file.write_bytes(content)
  with pytest.raises(VocabularyError, match=where) as error:
    load_class_list(file)
  message = str(error.value)
  assert str(file) in message and message.isprintable()
  assert len(message) < 300 + len(str(file))


@pytest.mark.parametrize(
  ("content", "where"),
  [
    (b'{"images": [], "categories": [{"id": 1}]}', r"categories\[0\].name is missing"),
    (b'{"images": [], "categories": []}', "categories is a list of 0"),
    (b'{"images": [], "annotations": []}', "without categories"),
    (b'["dog",', "line 1"),
    (b"\xff", "UTF-8"),
    (b"[" * 100_000, "JSON"),
    (b"[]", "is empty"),
    (b"{}", "is empty"),
    (b"3", "found 3"),
    (b"null", "found null"),
    (b'"dog"', "found 'dog'"),
    (b'["dog", 3]', "item 2 of 2: found 3"),
    (b'["dog", ["cat"]]', "item 2 of 2: found a list"),
    (b'["dog", true]', "item 2 of 2: found true"),
    (b'["dog", ""]', "name 2,"),
    (b'{"dog": 1, "dog": 2}', "'dog'"),
    (b'{"0": "dog", "1": "cat"}', "keys are numbers"),
    (b'[{"nam": "dog"}]', "item 1 of 1: found an object"),
    (b'[{"name": {"dog": 1}}]', "item 1 of 1"),
    (b'[{"name": "dog", "synset": "dog.n.01"}]', "synset 'dog.n.01'"),
    (b'[{"name": "dog", "synset": 2084071}]', "synset 2084071"),
    (b'[{"name": "dog", "synset": "n02084071"}, "cat"]', "1 of 2 classes"),
    (b'[{"name": "a", "synset": "n00000001"}, {"name": "b", "synset": "n00000001"}]', "n00000001"),
  ],
)
def test_refused_json(content, where, tmp_path):
  refused(content, where, tmp_path / "names.json")


@pytest.mark.parametrize(
  ("content", "where"),
  [
    (b"cat\n\ndog\n", "name 2,"),
    (b"\xff\xfe\x00", "not UTF-8"),
    (b"", "empty"),
    # A line ends at a line feed and nowhere else: else rows that are exported would belong to
    # other names than the file's lines.
    *(
      (f"cat\nred{letter}dog\nowl\n".encode(), rf"name 2, .* U\+{ord(letter):04X}")
      for letter in "\u2028\u2029\x85\x0b\x0c\x1c\x1b\t\r"
    ),
  ],
)
def test_refused_text(content, where, tmp_path):
  refused(content, where, tmp_path / "names.txt")


def test_a_line_of_megabytes_is_refused_in_a_short_line(tmp_path):
  for content in (b"cat\n" + 10**7 * b"x", 10**6 * b"\x1b]0;" + b"\ncat", 65 * 2**20 * b"y"):
    refused(content, "names.txt", tmp_path / "names.txt")


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("imagenet", "'imagenet'.*imagenet21k, .*ucf101"),
    ("none/names", "none/names"),
    ("names.txt", "names.txt"),
    ("names.json", "names.json"),
  ],
)
def test_neither_a_list_nor_a_file(name, expected, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(VocabularyError, match=expected):
    load_class_list(name)


@pytest.mark.parametrize(("names", "expected"), [([], "empty"), (["cat", " "], "name 2,")])
def test_refused_lists(names, expected):
  with pytest.raises(VocabularyError, match=expected) as error:
    normalized_names(names)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "suffix, text",
  [
    ("txt", "Turkey\ncrane\nturkey\ncrane\n"),
    ("json", '["Turkey", "crane", "turkey", "crane"]'),
  ],
)
def test_names_that_stand_twice_are_usable_and_told_of(tmp_path, caplog, suffix, text):
  file = tmp_path / f"names.{suffix}"
  file.write_text(text, encoding="utf-8")
  with caplog.at_level("WARNING"):
    logging.getLogger("pomp_jax").propagate = True
    assert load_class_list(file).names == ("Turkey", "crane", "turkey", "crane")
  assert f"{file}: 2 of 4 classes" in caplog.text
  assert "'turkey', names 1 and 3" in caplog.text


def test_classes_of_one_name_share_features_and_lose_to_each_other():
  encoder = Encoder(load_clip("world"))
  names = ("red circle", "blue square", "red circle")
  features = encoder.class_features(names, "a photo of a {}.")
  np.testing.assert_allclose(features[0], features[2], atol=1e-6)
  # XLA may round two rows differently. Ties need identical ones.
  features = features[np.array([0, 1, 0])]
  found = topk_accuracy(features, features, np.arange(3), ks=(1, 2))
  assert found["top1"] == pytest.approx(1 / 3) and found["top2"] == 1
  with pytest.raises(VocabularyError, match="'red circle'"):
    Classifier(encoder, "a photo of a {}.", names)


def count_words(texts):
  """A tokenizer of words and full stops, with EOT = 9."""
  rows = [text.replace(".", " .").split() for text in texts]
  lengths = np.array([len(row) + 1 for row in rows], np.int32)
  ids = np.zeros((len(rows), lengths.max()), np.int32)
  for i, row in enumerate(rows):
    ids[i, : len(row)] = [len(word) for word in row]
    ids[i, len(row)] = 9
  return ids, lengths


def test_names_become_sentences():
  clip = SimpleNamespace(positions=9)
  encoder = SimpleNamespace(clip=clip, _tokenize=lambda texts, budget: count_words(texts))
  vocabulary = Encoder.vocabulary(encoder, ["grey_wolf", "cat"], 2)
  np.testing.assert_array_equal(vocabulary.ids, [[4, 4, 1, 9], [3, 1, 9, 0]])
  np.testing.assert_array_equal(vocabulary.name_lengths, [2, 1])
  np.testing.assert_array_equal(vocabulary.lengths, [4, 3])


# Those whose labels TFDS counts as we do.
SAME_ORDER = {
  *("oxford_pets", "stanford_cars", "flowers102", "sun397", "dtd", "eurosat", "ucf101"),
  *("imagenet_v2", "imagenet_sketch"),
}


def package_file(package, file):
  try:
    return importlib.metadata.distribution(package).locate_file(file)
  except importlib.metadata.PackageNotFoundError:
    pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize(
  "name", sorted(SAME_ORDER | {"caltech101", "food101", "imagenet_a", "imagenet_r"})
)
def test_labels_are_those_of_tfds(name):
  """Each class has one label, with letters of its longest word: a shifted table would not do."""
  (labels, class_of_label), classes = load_tfds_labels(name), load_class_list(name)
  assert len(labels) == len(class_of_label)
  assert sorted(class_of_label[class_of_label >= 0]) == list(range(len(classes)))
  if name in SAME_ORDER:
    np.testing.assert_array_equal(class_of_label, np.arange(len(classes)))
  with pytest.raises(ValueError, match="read-only"):
    class_of_label[0] = 1
  words = classes.synsets or classes.names
  for label, index in zip(labels, class_of_label, strict=True):
    if index >= 0:
      longest = max(words[index].replace("_", " ").split(), key=len)
      assert longest.lower() in label.lower().replace("_", " ")
    elif classes.synsets:
      assert label not in classes.synsets
  if classes.synsets:
    file = "tensorflow_datasets/datasets/imagenet2012/labels.txt"
    assert labels == tuple(package_file("tensorflow-datasets", file).read_text().split())
  else:
    package_file("tensorflow-datasets", ".")
    assert labels == tuple(write_class_names.tfds_labels(name))


def test_the_order_differs():
  labels, classes = load_tfds_labels("food101")
  differing = np.flatnonzero(classes != np.arange(101))
  assert {labels[i]: classes[i] for i in differing} == {"cheesecake": 17, "cheese_plate": 16}
  labels, classes = load_tfds_labels("caltech101")
  left_out = [labels[i] for i in np.flatnonzero(classes < 0)]
  assert left_out == ["background_google", "faces_easy"]
  assert classes[labels.index("faces")] == 0
  assert classes[labels.index("accordion")] == 3


@pytest.mark.parametrize("name", ["imagenet21k", "fgvc_aircraft"])
def test_sets_that_tfds_lacks(name):
  with pytest.raises(VocabularyError, match=name):
    load_tfds_labels(name)


def test_synsets_are_those_of_the_fall_2011_release_with_clips_lengths(tokenizer):
  synsets = load_synsets()
  assert len(synsets.ids) == len(set(synsets.ids)) == 21_841
  assert list(synsets.ids) == sorted(synsets.ids)
  lemmas = synsets.lemmas[synsets.ids.index("n02084071")]
  assert lemmas[0] == "dog" and "domestic dog" in lemmas
  assert all(name and "\t" not in name for name in synsets.names)
  assert len(set(synsets.names)) == 20_099
  assert synsets.lengths.sum() == 94_447
  assert (synsets.lengths.min(), synsets.lengths.max()) == (3, 14)
  rows = tokenizer([f"{name}." for name in synsets.names])["input_ids"]
  np.testing.assert_array_equal([len(row) - 1 for row in rows], synsets.lengths)
