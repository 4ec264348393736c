"""CoOp's layout: its splits, its few-shot subsets image for image, its ImageNets."""

import collections
import json
import pickle
import random
import sys
import types

import numpy as np
from PIL import Image
import pytest

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.source import SourceError
from pomp_jax.rooms.data_sets import coop
from pomp_jax.rooms.data_sets.coop import open_coop
from tests.support.pictures import encode

# The few-shot index of EuroSAT, 4 shots, seed 2, as cross_modal_adaptation (MIT)
# publishes it under indices/eurosat: for each class the positions among its images in
# split_zhou_EuroSAT.json.
EUROSAT_SIZES = {
  "train": (1500, 1500, 1500, 1250, 1250, 1000, 1250, 1500, 1250, 1500),
  "val": (600, 600, 600, 500, 500, 400, 500, 600, 500, 600),
}
EUROSAT_4_SHOTS_SEED_2 = {
  "train": (
    *(
      (115, 187, 173, 739),
      (346, 1371, 631, 515),
      (1240, 434, 1242, 73),
      (1190, 324, 882, 805),
    ),
    *(
      (1042, 761, 1114, 911),
      (514, 274, 922, 36),
      (56, 745, 952, 652),
      (778, 867, 1076, 336),
    ),
    *((1147, 363, 483, 472), (48, 361, 665, 355)),
  ),
  "val": (
    *(
      (139, 522, 368, 526),
      (573, 186, 456, 424),
      (537, 372, 362, 370),
      (439, 492, 228, 82),
    ),
    *(
      (488, 386, 204, 366),
      (378, 236, 335, 271),
      (127, 250, 142, 473),
      (510, 512, 527, 362),
    ),
    *((338, 452, 232, 460), (472, 359, 581, 570)),
  ),
}


JPEG = encode(Image.new("RGB", (16, 12)))


def write(path, data=JPEG):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data if isinstance(data, bytes) else data.encode())


@pytest.fixture
def pets(tmp_path):
  """OxfordPets with 3 breeds: 6 training, 5 validation and 2 test images each."""
  names = ("abyssinian", "american_bulldog", "beagle")
  split = {
    part: [
      [f"{n}_{part}{i}.jpg", label, n]
      for label, n in enumerate(names)
      for i in range(count)
    ]
    for part, count in (("train", 6), ("val", 5), ("test", 2))
  }
  random.Random(0).shuffle(split["train"])
  folder = tmp_path / "oxford_pets"
  for path, _, _ in sum(split.values(), []):
    write(folder / "images" / path)
  write(folder / "split_zhou_OxfordPets.json", json.dumps(split))
  return folder


def few_shots_of(root, sizes, shots, seed, shuffle=False):
  """Few-shot subsets of classes of these sizes, and the split file; no image is
  written."""
  split = {
    part: [
      [f"{part}/{c}/{i}.jpg", c, f"class {c}"]
      for c, n in enumerate(row)
      for i in range(n)
    ]
    for part, row in sizes.items()
  }
  if shuffle:
    for items in split.values():
      random.Random(seed).shuffle(items)
  split["test"] = split["val"]
  write(root / "eurosat/split_zhou_EuroSAT.json", json.dumps(split))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(coop, "_check_files", lambda images, paths: None)
    splits = open_coop(root, "eurosat", shots=shots, seed=seed)
  return {
    "train": splits["train"],
    "val": splits["validation"],
    "test": splits["test"],
  }, split


def test_few_shots_are_the_published_ones(tmp_path):
  found, _ = few_shots_of(tmp_path, EUROSAT_SIZES, 4, 2)
  for part, expected in EUROSAT_4_SHOTS_SEED_2.items():
    keys = [f"{part}/{c}/{i}.jpg" for c, row in enumerate(expected) for i in row]
    assert found[part].keys.tolist() == keys
  assert len(found["test"]) == 5400


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_class_of_few_images_gives_all_and_moves_no_other_draw(tmp_path, seed):
  """As Dassl's generate_fewshot_dataset without repeats."""
  sizes = {"train": (30, 3, 4, 1, 25), "val": (9, 2, 8, 1, 9)}
  found, split = few_shots_of(tmp_path, sizes, 4, seed, shuffle=True)
  stream = random.Random(seed)
  for part in sizes:
    of_class, drawn = collections.defaultdict(list), []
    for path, label, _ in split[part]:
      of_class[label].append(path)
    for members in of_class.values():
      drawn += stream.sample(members, 4) if len(members) >= 4 else members
    assert found[part].keys.tolist() == drawn
  assert np.bincount(found["train"].labels).tolist() == [4, 3, 4, 1, 4]


class Datum:
  """As Dassl's: what matters to a pickle is its attributes."""

  def __init__(self, impath, label, classname):
    self._impath, self._label, self._domain, self._classname = (
      impath,
      label,
      0,
      classname,
    )


@pytest.mark.parametrize("kind", [2, 5, "json", "json with positions"])
def test_a_fixed_few_shot_file_is_followed(pets, monkeypatch, kind):
  for name in (
    "dassl",
    "dassl.data",
    "dassl.data.datasets",
    "dassl.data.datasets.base_dataset",
  ):
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
  monkeypatch.setattr(Datum, "__module__", module.__name__)
  module.Datum = Datum
  split = json.loads((pets / "split_zhou_OxfordPets.json").read_text())
  train, val = split["train"][3:7], split["val"][:2]
  items = {
    "train": [
      [f"/home/x/oxford_pets/images/{path}", y, name] for path, y, name in train
    ],
    "val": [[f"./data/oxford_pets/images/{path}", y, name] for path, y, name in val],
  }
  if isinstance(kind, int):
    data = {part: [Datum(*item) for item in row] for part, row in items.items()}
    write(pets / "split_fewshot/shot_2-seed_7.pkl", pickle.dumps(data, protocol=kind))
  else:
    if kind != "json":
      items = {
        part: {
          "data": [
            dict(zip(("impath", "label", "classname"), i, strict=True)) for i in row
          ]
        }
        for part, row in items.items()
      }
    write(pets / "split_fewshot/shot_2-seed_7.json", json.dumps(items))
  splits = open_coop(pets.parent, "oxford_pets", shots=2, seed=7)
  assert splits["train"].keys.tolist() == [path for path, _, _ in train]
  assert splits["validation"].keys.tolist() == [path for path, _, _ in val]
  assert len(splits["test"]) == 6


def test_a_list_of_aircraft_names_an_unknown_variant(tmp_path):
  folder = tmp_path / "fgvc_aircraft"
  write(folder / "variants.txt", "707-320\nF/A-18\n\n")
  for part in ("train", "val", "test"):
    write(
      folder / f"images_variant_{part}.txt",
      "0002 747\n" if part == "val" else "0001 F/A-18\n",
    )
  write(folder / "images/0001.jpg")
  with pytest.raises(SourceError, match=r"images_variant_val\.txt: line 1, '0002 747'"):
    open_coop(tmp_path, "fgvc_aircraft")


@pytest.mark.parametrize(
  ("name", "below"),
  [
    ("imagenet1k", "imagenet/images/val"),
    ("imagenet_v2", "imagenetv2/imagenetv2-matched-frequency-format-val"),
    ("imagenet_r", "imagenet-rendition/imagenet-r"),
  ],
)
def test_imagenets(tmp_path, name, below):
  classes, root = load_class_list(name), tmp_path / below
  folders = (
    [str(c) for c in range(1000)] if name == "imagenet_v2" else list(classes.synsets)
  )
  for folder in folders:
    write(root / folder / "x.JPEG")
  write(root / "README.txt", "no class")
  if name == "imagenet1k":
    for synset in classes.synsets:
      for i in range(3):
        write(tmp_path / "imagenet/images/train" / synset / f"{i}.JPEG")
  names_file = tmp_path / below.split("/")[0] / "classnames.txt"
  every = load_class_list("imagenet1k")
  lines = [
    f"{synset} {name} here"
    for synset, name in zip(every.synsets, every.names, strict=True)
  ]
  write(names_file, "\n".join(lines))
  splits = open_coop(tmp_path, name, shots=2)
  test = splits.pop("test")
  assert test.names == tuple(f"{name} here" for name in classes.names)
  assert test.labels.tolist() == list(range(len(classes)))
  assert test.encoded(7) == JPEG
  assert [key.split("/")[-2] for key in test.keys] == folders
  assert set(splits) == ({"train"} if name == "imagenet1k" else set())
  for train in splits.values():
    assert np.bincount(train.labels).tolist() == [2] * 1000
  # Two classes of one name can't be told apart: our names for them.
  write(
    names_file, "\n".join([lines[0], lines[1].split()[0] + lines[0][9:], *lines[2:]])
  )
  names = open_coop(tmp_path, name)["test"].names
  assert len(set(names)) == len(names)
  write(names_file, "n01440764 tench")
  with pytest.raises(SourceError, match=r"classnames\.txt"):
    open_coop(tmp_path, name)
  (root / "another").mkdir()
  with pytest.raises(SourceError, match="folder 'another'"):
    open_coop(tmp_path, name)


ITEM = "oxford_pets/images/abyssinian_train0.jpg"


@pytest.mark.parametrize(
  ("file", "content", "message"),
  [
    ("split_zhou_OxfordPets", "{", "not JSON"),
    ("split_zhou_OxfordPets", {"val": None}, "'val'"),
    (
      "split_zhou_OxfordPets",
      {"val": [["a.jpg", "0", "x"]]},
      "split_zhou_OxfordPets.json",
    ),
    (
      "split_zhou_OxfordPets",
      {"val": [["../../a.jpg", 0, "x"]]},
      "split_zhou_OxfordPets.json",
    ),
    (
      "split_zhou_OxfordPets",
      {"val": [["a.jpg", 0, "x"]]},
      "label 0 is both 'abyssinian' and 'x'",
    ),
    (
      "split_zhou_OxfordPets",
      {"val": [["a.jpg", 0, "abyssinian"]]},
      r"a.jpg: no such image \(1",
    ),
    (
      "split_fewshot/shot_1-seed_1",
      {"train": [["pets/a.jpg", 0, "x"]]},
      "'pets/a.jpg' with",
    ),
    ("split_fewshot/shot_1-seed_1", {"train": [[ITEM, 0, ""]]}, "no images of 'val'"),
    ("split_fewshot/shot_1-seed_1", {"train": [1, 2]}, "'train'"),
  ],
)
def test_split_files_that_are_not_as_they_have_to_be(pets, file, content, message):
  path = pets / f"{file}.json"
  whole = json.loads(path.read_text()) if path.exists() else {}
  write(path, content if isinstance(content, str) else json.dumps(whole | content))
  with pytest.raises(SourceError, match=message):
    open_coop(pets.parent, "oxford_pets", shots=1)
