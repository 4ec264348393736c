"""Builders: from files as distributed to records, read back by TFDS itself without TensorFlow."""

import collections
import functools
import io
import json
import sys
import tarfile
from unittest import mock

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.source import SourceError
from pomp_jax.data.synthetic import encode
from pomp_jax.data.tfds import open_tfds, tfds_splits
from pomp_jax.files.run_folder import read_json
from pomp_jax.rooms.prepare import DATASETS, PrepareError, Selection, archives, build, open_input

# The package exports the function of this name.
build_module = sys.modules["pomp_jax.rooms.prepare.build"]
SYNSETS = load_class_list("imagenet21k").synsets[1000:1012]


def jpeg(seed):
  noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
  return encode(Image.fromarray(noise).resize((48, 40)))


# 12 synsets of 3 to 8 images; in every fourth synset one image is cut and one is no image.
FILES = {
  synset: {f"{synset}_{i}.JPEG": jpeg(100 * c + i) for i in range(3 + c % 6)}
  for c, synset in enumerate(SYNSETS)
}
BAD = set()
for synset in SYNSETS[::4]:
  first, second, *_ = FILES[synset]
  FILES[synset][first] = FILES[synset][first][:-40]
  FILES[synset][second] = b"<html>not found</html>"
  BAD |= {f"{synset}/{first}", f"{synset}/{second}"}
GOOD = {f"{s}/{f}": d for s, files in FILES.items() for f, d in files.items()}
GOOD = {key: data for key, data in GOOD.items() if key not in BAD}


def add(tar, name, data, kind=tarfile.REGTYPE, link=""):
  member = tarfile.TarInfo(name)
  member.size, member.type, member.linkname = len(data), kind, link
  tar.addfile(member, io.BytesIO(data))


def synset_tar(synset):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as tar:
    for name, data in FILES[synset].items():
      add(tar, name, data)
    # What a tar may hold to do harm; none of it is an image.
    add(tar, "evil.JPEG", b"", tarfile.SYMTYPE, "/etc/passwd")
    add(tar, "hard.JPEG", b"", tarfile.LNKTYPE, next(iter(FILES[synset])))
    add(tar, "sub", b"", tarfile.DIRTYPE)
  return buffer.getvalue()


def folders(root):
  for synset, files in FILES.items():
    (root / synset).mkdir(parents=True)
    for name, data in files.items():
      (root / synset / name).write_bytes(data)
  return root


def folder_of_tars(root):
  root.mkdir()
  for synset in FILES:
    (root / f"{synset}.tar").write_bytes(synset_tar(synset))
  (root / "n99999999.tar").write_bytes(b"of another class")
  return root


def tar_of_tars(root, mode="w"):
  root.mkdir()
  with tarfile.open(root / "fall11_whole.tar", mode) as tar:
    for synset in FILES:
      add(tar, f"whole/{synset}.tar", synset_tar(synset))
    add(tar, "README", b"text")
  return root / "fall11_whole.tar"


LAYOUTS = (folders, folder_of_tars, tar_of_tars)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  monkeypatch.setattr(archives, "_SHARD_IMAGES", 20)
  monkeypatch.setattr(archives, "_SHARD_BYTES", 60_000)


def stored(data_dir, split="train", dataset="imagenet21k"):
  """(label name, image) by file name, as TFDS itself reads the set."""
  builder = tfds.builder_from_directory(data_dir / dataset / "1.0.0")
  names = builder.info.features["label"].names
  records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
  assert builder.info.splits[split].num_examples == len(records)
  rows = {r["file_name"].decode(): (names[r["label"]], r["image"]) for r in records}
  assert len(rows) == len(records)
  return rows


def made(path, out, selection=None, workers=1, *, dataset="imagenet21k", **options):
  """Builds records; returns the report."""
  source = open_input(dataset, path, **options)
  return build(source, out, selection or Selection(), workers)


def test_our_own_reader_agrees_with_tfds(tmp_path):
  """Also of records whose end was interrupted."""
  path, out = folders(tmp_path / "in"), tmp_path / "out"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build_module, "write_metadata", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      made(path, out)
  made(path, out)
  assert tfds_splits("imagenet21k", out) == ("train",)
  source = open_tfds("imagenet21k", "train", root=out).sized(8)
  every = load_class_list("imagenet21k")
  assert source.names == every.names[1000:1012]
  rows = stored(out)
  assert {key: image for key, (_, image) in rows.items()} == GOOD
  for index in range(len(source)):
    label, image = rows[source.keys[index]]
    assert source.encoded(index) == image
    assert every.synsets[1000 + source.labels[index]] == label


@pytest.mark.parametrize("layout", LAYOUTS)
def test_few_shots_and_held_out_images(tmp_path, layout):
  selection = Selection(shots=2, seed=1, held_out=1)
  workers = 2 if layout is tar_of_tars else 1
  path, out = layout(tmp_path / "in"), tmp_path / "out"
  made(path, out, selection, workers, images_per_class=3)
  train, validation = (stored(out, split) for split in ("train", "validation"))
  counts = {
    synset: tuple(sum(key.startswith(synset) for key in rows) for rows in (train, validation))
    for synset in SYNSETS
  }
  # The first synset has 3 images, of which one is readable; it is left to train on.
  assert counts.pop(SYNSETS[0]) == (1, 0)
  assert set(counts.values()) == {(2, 1)}
  assert not set(train) & set(validation)
  assert not (set(train) | set(validation)) & BAD
  if layout is not folders:
    made(folders(tmp_path / "f"), tmp_path / "folders", selection)
    assert stored(tmp_path / "folders") == train


def test_one_image_of_each_class_is_left_to_train_on(tmp_path, caplog):
  """However many are held out; all others validate."""
  some = [image for key, image in GOOD.items() if key.startswith(SYNSETS[5])]
  for synset, count in zip(SYNSETS, (1, 2, 3, 6), strict=False):
    (tmp_path / "in" / synset).mkdir(parents=True)
    for number in range(count):
      (tmp_path / "in" / synset / f"{number}.JPEG").write_bytes(some[number])
  report = made(tmp_path / "in", tmp_path / "out", Selection(held_out=3))
  for split, expected in (("train", [1, 1, 1, 3]), ("validation", [0, 1, 2, 3])):
    rows = stored(tmp_path / "out", split)
    of = collections.Counter(label for label, _ in rows.values())
    assert [of[synset] for synset in SYNSETS[:4]] == expected
  assert report["not_validated"] == [SYNSETS[0]]
  [warning] = [r.message for r in caplog.records if "one readable image" in r.message]
  assert warning.startswith("1 classes") and SYNSETS[0] in warning


def listed(path, synsets):
  """Writes a class list of some synsets."""
  path.write_text(json.dumps([{"name": synset, "synset": synset} for synset in synsets]))
  return str(path)


def test_splits_of_folders_and_classes_of_a_list(tmp_path):
  """An input with splits of its own keeps them whole, whatever is to be held out."""
  for split in ("imagenet21k_train", "imagenet21k_val"):
    folders(tmp_path / "in" / split)
  names = listed(tmp_path / "some.json", load_class_list("imagenet21k").synsets[1005:1020])
  made(tmp_path / "in", tmp_path / "out", names=names)
  for split in ("train", "validation"):
    rows = stored(tmp_path / "out", split)
    assert {label for label, _ in rows.values()} == set(SYNSETS[5:])
    assert set(rows) == {key for key in GOOD if key.split("/")[0] in SYNSETS[5:]}
  made(tmp_path / "in", tmp_path / "few", Selection(shots=1, held_out=1), images_per_class=2)
  assert len(stored(tmp_path / "few")) == len(SYNSETS)
  assert set(stored(tmp_path / "few", "validation")) == set(GOOD)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_readable_image_is_stored_with_its_label_after_an_interruption(
  tmp_path, layout, monkeypatch
):
  path, out = layout(tmp_path / "in"), tmp_path / "out"
  store, shard, calls, opened = build_module._store, build_module.Shard, [], []

  def interrupted(task, **settings):
    calls.append(task.index)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return store(task, **settings)

  def counted(path):
    opened.append(path)
    return shard(path)

  monkeypatch.setattr(build_module, "_store", interrupted)
  with pytest.raises(KeyboardInterrupt):
    made(path, out)
  assert not (out / "imagenet21k").exists()
  with pytest.raises(SourceError, match="not prepared|unknown to TFDS"):
    tfds_splits("imagenet21k", out)
  # Two shards and what they say.
  assert len([*(out / "imagenet21k.incomplete").rglob("*-0000*")]) == 4
  with pytest.raises(PrepareError, match=r"incomplete: .*'shots': 0.*'shots': 1"):
    made(path, out, Selection(shots=1))
  monkeypatch.setattr(build_module, "_store", store)
  monkeypatch.setattr(build_module, "Shard", counted)
  report = made(path, out)
  rows, folder = stored(out), out / "imagenet21k/1.0.0"
  assert {key: image for key, (_, image) in rows.items()} == GOOD
  assert all(key.startswith(f"{label}/") for key, (label, _) in rows.items())
  assert {bad["image"] for bad in report["unreadable"]} == BAD
  assert report["n_unreadable"] == len(BAD)
  train = report["splits"]["train"]
  assert train["images"] == len(GOOD) and train["shards"] > 2
  assert report == read_json(folder / "report.json")
  left = {file.name.split(".")[0] for file in folder.iterdir()}
  assert left == {"imagenet21k-train", "dataset_info", "features", "label", "index-train", "report"}
  assert [file.name for file in out.iterdir()] == ["imagenet21k"]
  # Once more: nothing to do. With other settings: refused.
  assert made(path, out) == report
  assert len(opened) == train["shards"] - 2
  for other in (Selection(shots=1), Selection(seed=1), Selection(held_out=1)):
    with pytest.raises(PrepareError, match=r"1\.0\.0: "):
      made(path, out, other)


def test_coop_splits(tmp_path):
  name, folder, file = "ucf101", "ucf101/UCF-101-midframes", "split_zhou_UCF101.json"
  classes, root = load_class_list(name).names, tmp_path / "in"
  split = {
    part: [[f"{part}/{label}.jpg", label, text] for label, text in enumerate(classes)]
    for part in ("train", "val", "test")
  }
  for part, items in split.items():
    (root / folder / part).mkdir(parents=True)
    for path, label, _ in items:
      (root / folder / path).write_bytes(jpeg(label % 10))
  (root / name / file).write_text(json.dumps(split))
  assert f"coop_{name}" in DATASETS
  made(root, tmp_path / "out", dataset=f"coop_{name}")
  for part, ours in (("train", "train"), ("val", "validation"), ("test", "test")):
    source = open_tfds(f"coop_{name}", ours, root=tmp_path / "out")
    assert source.names == classes
    found = zip(source.keys.tolist(), source.labels.tolist(), strict=True)
    assert dict(found) == {path: label for path, label, _ in split[part]}


def test_aircraft(tmp_path):
  """The archive's data folder with all of the variants, an image each in three splits."""
  names, root = load_class_list("fgvc_aircraft").names, tmp_path / "in/fgvc-aircraft-2013b/data"
  (root / "images").mkdir(parents=True)
  (root / "variants.txt").write_text("\n".join(names) + "\n")
  for part in ("train", "val", "test"):
    lines = [f"{part}{i:03d} {name}" for i, name in enumerate(names)]
    (root / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    for i in range(len(names)):
      (root / f"images/{part}{i:03d}.jpg").write_bytes(jpeg(i % 10))
  made(tmp_path / "in", tmp_path / "out", dataset="fgvc_aircraft")
  source = open_tfds("fgvc_aircraft", "validation", root=tmp_path / "out")
  assert source.names == names
  found = dict(zip(source.keys.tolist(), source.labels.tolist(), strict=True))
  assert found == {f"val{i:03d}.jpg": i for i in range(len(names))}


def cut(root):
  path = tar_of_tars(root)
  path.write_bytes(path.read_bytes()[:-30_000])
  return path


def one_file(name, content=b"nothing"):
  """A folder with one file, which is no image."""

  def make(root):
    (root / name).parent.mkdir(parents=True)
    (root / name).write_bytes(content)
    return root

  return make


@pytest.mark.parametrize(
  ("make", "message", "options"),
  [
    (cut, "fall11_whole.tar: ", {}),
    (functools.partial(tar_of_tars, mode="w:gz"), "extracted", {}),
    (one_file(f"{SYNSETS[3]}.tar", b"no tar" * 200), SYNSETS[3], {}),
    (one_file(f"{SYNSETS[0]}/a.JPEG"), "incomplete: .* 1 ", {}),
    (lambda root: root, "in: can't be read", {}),
    (folders, "prepare.names: got 'food101'", {"names": "food101"}),
    (lambda root: root, "in: ", {"dataset": "fgvc_aircraft"}),
  ],
)
def test_inputs_that_can_not_be_read(tmp_path, make, message, options):
  with pytest.raises((SourceError, PrepareError), match=message):
    made(make(tmp_path / "in"), tmp_path / "out", **options)
  assert not (tmp_path / "out/imagenet21k").exists()
