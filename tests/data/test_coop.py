"""CoOp's layout: its splits, its few-shot subsets image for image, its ImageNets."""

import collections
import io
import json
import os
import pickle
import random
import sys
import types

import numpy as np
from PIL import Image
import pytest

from pomp_jax.data import coop
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.coop import COOP_SETS, open_coop
from pomp_jax.data.source import SourceError

# The few-shot index of EuroSAT, 4 shots, seed 2, as cross_modal_adaptation (MIT) publishes it under
# indices/eurosat: for each class the positions among its images in split_zhou_EuroSAT.json.
EUROSAT_SIZES = {
  "train": (1500, 1500, 1500, 1250, 1250, 1000, 1250, 1500, 1250, 1500),
  "val": (600, 600, 600, 500, 500, 400, 500, 600, 500, 600),
}
EUROSAT_4_SHOTS_SEED_2 = {
  "train": (
    *((115, 187, 173, 739), (346, 1371, 631, 515), (1240, 434, 1242, 73), (1190, 324, 882, 805)),
    *((1042, 761, 1114, 911), (514, 274, 922, 36), (56, 745, 952, 652), (778, 867, 1076, 336)),
    *((1147, 363, 483, 472), (48, 361, 665, 355)),
  ),
  "val": (
    *((139, 522, 368, 526), (573, 186, 456, 424), (537, 372, 362, 370), (439, 492, 228, 82)),
    *((488, 386, 204, 366), (378, 236, 335, 271), (127, 250, 142, 473), (510, 512, 527, 362)),
    *((338, 452, 232, 460), (472, 359, 581, 570)),
  ),
}


def jpeg(level=0):
  buffer = io.BytesIO()
  Image.new("RGB", (16, 12), (level, level, level)).save(buffer, "JPEG")
  return buffer.getvalue()


JPEG = jpeg()


def write(path, data=JPEG):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data if isinstance(data, bytes) else data.encode())


@pytest.fixture
def pets(tmp_path):
  """OxfordPets with 3 breeds: 6 training, 5 validation and 2 test images each."""
  names = ("abyssinian", "american_bulldog", "beagle")
  split = {
    part: [[f"{n}_{part}{i}.jpg", label, n] for label, n in enumerate(names) for i in range(count)]
    for part, count in (("train", 6), ("val", 5), ("test", 2))
  }
  random.Random(0).shuffle(split["train"])
  folder = tmp_path / "oxford_pets"
  for items in split.values():
    for path, label, _ in items:
      write(folder / "images" / path, jpeg(40 * label))
  write(folder / "split_zhou_OxfordPets.json", json.dumps(split))
  return folder


def split_of(pets):
  return json.loads((pets / "split_zhou_OxfordPets.json").read_text())


def test_splits_are_those_of_the_file(pets):
  splits = open_coop(pets.parent, "oxford_pets")
  assert list(splits) == ["train", "validation", "test"]
  for part, source in zip(("train", "val", "test"), splits.values(), strict=True):
    items = split_of(pets)[part]
    assert source.names == ("abyssinian", "american_bulldog", "beagle")
    assert list(zip(source.keys.tolist(), source.labels.tolist(), strict=True)) == [
      (path, label) for path, label, _ in items
    ]
    np.testing.assert_array_equal(
      source.images(np.arange(len(items)))[:, 3, 3, 0], 40 * source.labels
    )


def test_few_shots_are_the_published_ones(tmp_path, monkeypatch):
  monkeypatch.setattr(coop, "_check_files", lambda images, paths: None)
  split = {
    part: [[f"{c}/{i}.jpg", c, f"class {c}"] for c, size in enumerate(sizes) for i in range(size)]
    for part, sizes in EUROSAT_SIZES.items()
  }
  write(tmp_path / "eurosat/split_zhou_EuroSAT.json", json.dumps(split | {"test": split["val"]}))
  splits = open_coop(tmp_path, "eurosat", shots=4, seed=2)
  for part, source in (("train", splits["train"]), ("val", splits["validation"])):
    expected = EUROSAT_4_SHOTS_SEED_2[part]
    assert source.keys.tolist() == [f"{c}/{i}.jpg" for c, row in enumerate(expected) for i in row]
  assert len(splits["test"]) == 5400


def coop_draw(items, shots, stream):
  """Dassl's generate_fewshot_dataset without repeats, on (path, label) pairs."""
  of_class = collections.defaultdict(list)
  for item in items:
    of_class[item[1]].append(item)
  drawn = []
  for members in of_class.values():
    drawn += stream.sample(members, shots) if len(members) >= shots else members
  return [path for path, _ in drawn]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_class_of_few_images_gives_all_and_moves_no_other_draw(tmp_path, monkeypatch, seed):
  monkeypatch.setattr(coop, "_check_files", lambda images, paths: None)
  sizes = {"train": (30, 3, 4, 1, 25), "val": (9, 2, 8, 1, 9)}
  split = {
    part: [[f"{part}/{c}/{i}.jpg", c, f"class {c}"] for c, n in enumerate(row) for i in range(n)]
    for part, row in sizes.items()
  }
  for items in split.values():
    random.Random(seed).shuffle(items)
  write(tmp_path / "eurosat/split_zhou_EuroSAT.json", json.dumps(split | {"test": split["val"]}))
  splits = open_coop(tmp_path, "eurosat", shots=4, seed=seed)
  stream = random.Random(seed)
  for part, name in (("train", "train"), ("val", "validation")):
    items = [(path, label) for path, label, _ in split[part]]
    assert splits[name].keys.tolist() == coop_draw(items, 4, stream)
  assert np.bincount(splits["train"].labels).tolist() == [4, 3, 4, 1, 4]


class Datum:
  """As Dassl's: what matters to a pickle is its attributes."""

  def __init__(self, impath, label, classname):
    self._impath, self._label, self._domain, self._classname = impath, label, 0, classname


@pytest.fixture
def dassl(monkeypatch):
  """Datum lives where it does in Dassl."""
  names = "dassl", "dassl.data", "dassl.data.datasets", "dassl.data.datasets.base_dataset"
  for name in names:
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
  monkeypatch.setattr(Datum, "__module__", module.__name__)
  module.Datum = Datum


@pytest.mark.parametrize("kind", [2, 3, 4, 5, "json", "json with positions"])
def test_a_fixed_few_shot_file_is_followed(pets, dassl, kind):
  train, val = split_of(pets)["train"][3:7], split_of(pets)["val"][:2]
  items = {
    "train": [[f"/home/x/oxford_pets/images/{path}", y, name] for path, y, name in train],
    "val": [[f"./data/oxford_pets/images/{path}", y, name] for path, y, name in val],
  }
  if isinstance(kind, int):
    data = {part: [Datum(*item) for item in row] for part, row in items.items()}
    write(pets / "split_fewshot/shot_2-seed_7.pkl", pickle.dumps(data, protocol=kind))
  else:
    if kind != "json":
      items = {
        part: {"data": [dict(zip(("impath", "label", "classname"), i, strict=True)) for i in row]}
        for part, row in items.items()
      }
    write(pets / "split_fewshot/shot_2-seed_7.json", json.dumps(items))
  splits = open_coop(pets.parent, "oxford_pets", shots=2, seed=7)
  assert splits["train"].keys.tolist() == [path for path, _, _ in train]
  assert splits["validation"].keys.tolist() == [path for path, _, _ in val]
  assert len(splits["test"]) == 6


class Evil:
  def __init__(self, call, *arguments):
    self.call, self.arguments = call, arguments

  def __reduce__(self):
    return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_something_is_refused(pets, tmp_path, protocol):
  target = tmp_path / "made"
  write(
    pets / "split_fewshot/shot_1-seed_1.pkl",
    pickle.dumps({"train": [Evil(os.mkdir, str(target))]}, protocol=protocol),
  )
  with pytest.raises(SourceError, match=r"shot_1-seed_1\.pkl"):
    open_coop(pets.parent, "oxford_pets", shots=1)
  assert not target.exists()


def test_damaged_pickles_are_refused(pets, dassl):
  whole = pickle.dumps({"train": [Datum("a.jpg", 3, "c")] * 2}, protocol=4)
  others = [[set()], {1: 2}, {"train": [Evil(Datum, "a", 1, "b")]}, {"train": [{1: 2}]}, b"bytes"]
  for content in [whole[:end] for end in range(len(whole))] + [*map(pickle.dumps, others)]:
    write(pets / "split_fewshot/shot_1-seed_1.pkl", content)
    with pytest.raises(SourceError, match=r"shot_1-seed_1\.pkl"):
      open_coop(pets.parent, "oxford_pets", shots=1)


def test_aircraft(tmp_path):
  folder = tmp_path / "fgvc_aircraft"
  write(folder / "variants.txt", "707-320\nF/A-18\n\n")
  for part, line in (("train", "0001 F/A-18"), ("val", "0002 707-320"), ("test", "0003 F/A-18")):
    write(folder / f"images_variant_{part}.txt", line + "\n")
    write(folder / f"images/{line[:4]}.jpg")
  splits = open_coop(tmp_path, "fgvc_aircraft")
  assert {split: (s.keys.tolist(), s.labels.tolist()) for split, s in splits.items()} == {
    "train": (["0001.jpg"], [1]),
    "validation": (["0002.jpg"], [0]),
    "test": (["0003.jpg"], [1]),
  }
  assert splits["test"].names == ("707-320", "F/A-18")
  write(folder / "images_variant_val.txt", "0002 747\n")
  with pytest.raises(SourceError, match=r"images_variant_val\.txt: line 1, '0002 747'"):
    open_coop(tmp_path, "fgvc_aircraft")


@pytest.mark.parametrize(
  ("name", "below"),
  [
    ("imagenet1k", "imagenet/images/val"),
    ("imagenet_v2", "imagenetv2/imagenetv2-matched-frequency-format-val"),
    ("imagenet_a", "imagenet-adversarial/imagenet-a"),
    ("imagenet_r", "imagenet-rendition/imagenet-r"),
    ("imagenet_sketch", "imagenet-sketch/images"),
  ],
)
def test_imagenets(tmp_path, name, below):
  classes = load_class_list(name)
  folders = range(1000) if name == "imagenet_v2" else classes.synsets
  for folder in folders:
    write(tmp_path / below / str(folder) / "x.JPEG")
  write(tmp_path / below / "README.txt", "no class")
  expected = {"test"}
  if name == "imagenet1k":
    for synset in classes.synsets:
      for i in range(3):
        write(tmp_path / "imagenet/images/train" / synset / f"{i}.JPEG")
    expected.add("train")
  set_folder = tmp_path / below.split("/")[0]
  every = load_class_list("imagenet1k")
  lines = [f"{synset} {name} here" for synset, name in zip(every.synsets, every.names, strict=True)]
  write(set_folder / "classnames.txt", "\n".join(lines))
  splits = open_coop(tmp_path, name, shots=2)
  assert set(splits) == expected
  test = splits["test"]
  assert test.names == tuple(f"{name} here" for name in classes.names)
  assert test.labels.tolist() == list(range(len(classes)))
  assert test.encoded(7) == JPEG
  assert [key.split("/")[-2] for key in test.keys] == [str(folder) for folder in folders]
  if "train" in splits:
    assert np.bincount(splits["train"].labels).tolist() == [2] * 1000
  # Two classes of one name can't be told apart: our names for them.
  twice = [lines[0], lines[1].split()[0] + lines[0][9:], *lines[2:]]
  write(set_folder / "classnames.txt", "\n".join(twice))
  names = open_coop(tmp_path, name)["test"].names
  assert len(set(names)) == len(names)
  write(set_folder / "classnames.txt", "n01440764 tench")
  with pytest.raises(SourceError, match=r"classnames\.txt"):
    open_coop(tmp_path, name)
  (tmp_path / below / "another").mkdir()
  with pytest.raises(SourceError, match="folder 'another'"):
    open_coop(tmp_path, name)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("{", "not JSON"),
    ({"val": None}, "'val'"),
    ({"val": [["a.jpg", "0", "x"]]}, "split_zhou_OxfordPets.json"),
    ({"val": [["../../a.jpg", 0, "x"]]}, "split_zhou_OxfordPets.json"),
    ({"val": [["/etc/passwd", 0, "x"]]}, "split_zhou_OxfordPets.json"),
    ({"val": [["a.jpg", 0, "x"]]}, "label 0 is both 'abyssinian' and 'x'"),
    ({"val": [["a.jpg", 9, "x"]]}, r"labels are not 0\.\.3; the largest is 9"),
    ({"val": [["a.jpg", 0, "abyssinian"]]}, r"images/a.jpg: no such image \(1"),
  ],
)
def test_split_files_that_are_not_as_they_have_to_be(pets, change, message):
  text = change if isinstance(change, str) else json.dumps(split_of(pets) | change)
  write(pets / "split_zhou_OxfordPets.json", text)
  with pytest.raises(SourceError, match=message):
    open_coop(pets.parent, "oxford_pets")


def test_few_shot_files_that_do_not_match_the_data(pets):
  path = pets / "split_fewshot/shot_1-seed_1.json"
  train = split_of(pets)["train"]
  for fixed, message in (
    ({"train": [["oxford_pets/images/none.jpg", 0, "x"]]}, "'oxford_pets/images/none.jpg' with"),
    ({"train": [[f"oxford_pets/images/{train[0][0]}", 9, "x"]]}, "label 9"),
    ({"train": [[f"oxford_pets/images/{train[0][0]}", train[0][1], ""]]}, "no images of 'val'"),
    ({"train": [1, 2]}, "'train'"),
    ([], "no parts 'train' and 'val'"),
  ):
    write(path, json.dumps(fixed))
    with pytest.raises(SourceError, match=message):
      open_coop(pets.parent, "oxford_pets", shots=1)


def test_missing_sets(tmp_path):
  assert len(COOP_SETS) == 15
  for name in COOP_SETS:
    with pytest.raises(SourceError, match="can't be read"):
      open_coop(tmp_path, name)
  with pytest.raises(SourceError, match="'cats'"):
    open_coop(tmp_path, "cats")
