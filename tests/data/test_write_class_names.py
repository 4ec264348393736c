"""The rules by which names are made; the stored files, where their packages are installed."""

import importlib.metadata
import pathlib

import pytest

from pomp_jax.data.prepare import write_class_names
from pomp_jax.data.prepare.write_class_names import Noun, distinct_names

WORDNET = pathlib.Path("/usr/share/wordnet/data.noun")


def noun(lemmas, parents="", groups="", gloss=""):
  return Noun(tuple(lemmas.split("/")), tuple(parents.split()), tuple(groups.split()), gloss)


NOUNS = {
  "thing": noun("thing"),
  "bird": noun("bird", "thing"),
  "device": noun("device/machine", "thing"),
  "wader": noun("wading bird/wader", "bird"),
  "crane1": noun("crane", "wader"),
  "crane2": noun("Crane", "device"),
  "perch1": noun("perch", "bird", gloss="rod for birds"),
  "perch2": noun("perch", "bird", "genus"),
  "genus": noun("Perca", "thing"),
  "cock1": noun("cock/rooster", "bird"),
  "cock2": noun("cock", "bird"),
  "wren": noun("wren/jenny wren", "bird"),
  "bank1": noun("bank/shore", "thing"),
  "bank2": noun("bank/shore", "device"),
  "bank3": noun("bank", "bird"),
}


@pytest.mark.parametrize(
  ("ids", "names"),
  [
    ("crane1 wren crane2", ["crane, wading bird", "wren", "Crane, device"]),
    ("perch1 perch2", ["perch, rod for birds", "perch, Perca"]),
    ("cock1 cock2 bird", ["cock, rooster", "cock", "bird"]),
    # More words are taken while names are shared.
    ("bank1 bank2 bank3", ["bank, shore", "bank, shore, device", "bank, bird"]),
  ],
)
def test_names_of_alike_classes(ids, names):
  assert distinct_names(ids.split(), NOUNS) == names


def test_nothing_tells_them_apart():
  nouns = {"a": noun("a", gloss="x"), "b": noun("a", gloss="x")}
  with pytest.raises(ValueError, match="a: .*'a, x'"):
    distinct_names(["a", "b"], nouns)


def test_reading_wordnet(tmp_path):
  """Two entries as `data.noun` has them, the dog's with its members, groups and kinds."""
  file = tmp_path / "data.noun"
  file.write_text(
    "  1 This software and database is being provided to you\n"
    "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 004 @ 02083346 n 0000"
    " @ 01317541 n 0000 #m 02083863 n 0000 ~ 01322604 n 0000 | a member of the genus Canis"
    " (probably descended from the common wolf); occurs in many breeds  \n"
    "09044862 15 n 02 United_States 0 U.S. 0 001 @i 08168978 n 0000"
    " | (geography) the North American republic containing fully 50 states of all sizes \n"
  )
  dog = ("dog", "domestic dog", "Canis familiaris"), ("n02083346", "n01317541"), ("n02083863",)
  states = ("United States", "U.S."), ("n08168978",), ()
  assert write_class_names.read_nouns(str(file)) == {
    "n02084071": Noun(*dog, "member of the genus Canis"),
    "n09044862": Noun(*states, "North American republic containing fully 50 states"),
  }


def need(*packages):
  for package in packages:
    try:
      importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
      pytest.skip(f"{package} is not installed")


def check_stored(files):
  data = pathlib.Path(write_class_names.__file__).parent.parent / "class_names"
  for path, content in files.items():
    assert (data / path).read_text(encoding="utf-8") == content, path


def test_the_ten_are_stored_as_made():
  need("tensorflow-datasets", "clip-benchmark")
  check_stored(write_class_names.make_downstream())


def test_imagenets_are_stored_as_made():
  need("timm", "open_clip_torch")
  if not WORDNET.exists():
    pytest.skip("Debian's package wordnet-base is not installed")
  nouns = write_class_names.read_nouns(str(WORDNET))
  check_stored(write_class_names.make_imagenet(nouns))
