"""Builders: from files as distributed to records, read back by TFDS itself without
TensorFlow."""

import collections
import gzip
import io
import json
import tarfile
from unittest import mock

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from pomp_jax.config import defaults
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.source import SourceError
from pomp_jax.files.run_folder import read_json
from pomp_jax.rooms.data_sets import archives, prepare
from pomp_jax.rooms.data_sets.archives import DATASETS, open_input
from pomp_jax.rooms.data_sets.prepare import PrepareError, Selection, build
from pomp_jax.rooms.data_sets.tfds import open_tfds, tfds_splits
from tests.support.data_files import tar_bytes
from tests.support.pictures import encode

SYNSETS = load_class_list("imagenet21k").synsets[1000:1012]


def jpeg(seed):
  noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
  return encode(Image.fromarray(noise).resize((48, 40)))


# 12 synsets of 3 to 8 images; in every fourth synset one image is cut and one is no
# image.
FILES, BAD, GOOD = {}, set(), {}
for c, synset in enumerate(SYNSETS):
  FILES[synset] = {f"{synset}_{i}.JPEG": jpeg(100 * c + i) for i in range(3 + c % 6)}
  GOOD |= {f"{synset}/{name}": content for name, content in FILES[synset].items()}
  if c % 4 == 0:
    first, second, *_ = FILES[synset]
    FILES[synset] |= {
      first: FILES[synset][first][:-40],
      second: b"<html>not found</html>",
    }
    BAD |= {f"{synset}/{first}", f"{synset}/{second}"}
GOOD = {key: content for key, content in GOOD.items() if key not in BAD}


def synset_tar(synset):
  """Its images, and what a tar may hold to do harm; none of that is an image."""
  buffer = io.BytesIO(tar_bytes(FILES[synset]))
  with tarfile.open(fileobj=buffer, mode="a") as tar:
    for name, kind, link in (
      ("evil.JPEG", tarfile.SYMTYPE, "/etc/passwd"),
      ("hard.JPEG", tarfile.LNKTYPE, next(iter(FILES[synset]))),
      ("sub", tarfile.DIRTYPE, ""),
    ):
      member = tarfile.TarInfo(name)
      member.type, member.linkname = kind, link
      tar.addfile(member)
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


def tar_of_tars(root, pack=bytes):
  root.mkdir()
  tars = {f"whole/{synset}.tar": synset_tar(synset) for synset in FILES}
  (root / "fall11_whole.tar").write_bytes(pack(tar_bytes(tars | {"README": b"text"})))
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
  records = builder.as_data_source(
    split, decoders={"image": tfds.decode.SkipDecoding()}
  )
  assert builder.info.splits[split].num_examples == len(records)
  rows = {r["file_name"].decode(): (names[r["label"]], r["image"]) for r in records}
  assert len(rows) == len(records)
  return rows


def made(path, out, selection=None, workers=1, *, dataset="imagenet21k", **options):
  """Builds records; returns the report."""
  source = open_input(dataset, path, **options)
  return build(source, out, selection or Selection(), workers)


@pytest.mark.parametrize(
  "layout",
  [
    *LAYOUTS[:2],
    pytest.param(tar_of_tars, marks=pytest.mark.slow("worker processes start")),
  ],
)
def test_few_shots_and_held_out_images(tmp_path, layout):
  selection = Selection(shots=2, seed=1, held_out=1)
  workers = 2 if layout is tar_of_tars else 1
  path, out = layout(tmp_path / "in"), tmp_path / "out"
  made(path, out, selection, workers, images_per_class=3)
  train, validation = (stored(out, split) for split in ("train", "validation"))
  counts = {
    synset: tuple(
      sum(key.startswith(synset) for key in rows) for rows in (train, validation)
    )
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


def test_the_job_builds_what_its_fields_say(tmp_path, monkeypatch):
  """Each field reaches the function that it names; the functions have tests of their
  own."""
  source = object()
  opened = mock.Mock(return_value=source)
  built = mock.Mock(
    return_value={"splits": {}, "n_unreadable": 0, "dataset": "imagenet21k"}
  )
  monkeypatch.setattr(prepare, "open_input", opened)
  monkeypatch.setattr(prepare, "build", built)
  fields = {"input": "in", "dataset": "imagenet21k", "names": "names.json", "shots": 5}
  fields |= {"shots_seed": 3, "held_out": 2, "workers": 7}
  config = defaults("prepare").replace(
    {f"prepare.{name}": value for name, value in fields.items()}
  )
  assert {*fields} == {
    name.removeprefix("prepare.") for name in config.flat() if "prepare." in name
  }
  prepare.run(config, str(tmp_path))
  opened.assert_called_once_with(
    "imagenet21k", "in", names="names.json", images_per_class=7
  )
  built.assert_called_once_with(source, str(tmp_path), Selection(5, 3, 2), 7)


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


def test_splits_of_folders_and_classes_of_a_list(tmp_path):
  """An input with splits of its own keeps them whole, whatever is to be held out."""
  for split in ("imagenet21k_train", "imagenet21k_val"):
    folders(tmp_path / "in" / split)
  some = load_class_list("imagenet21k").synsets[1005:1020]
  names = [{"name": synset, "synset": synset} for synset in some]
  (tmp_path / "some.json").write_text(json.dumps(names))
  made(tmp_path / "in", tmp_path / "out", names=str(tmp_path / "some.json"))
  for split in ("train", "validation"):
    rows = stored(tmp_path / "out", split)
    assert {label for label, _ in rows.values()} == set(SYNSETS[5:])
    assert set(rows) == {key for key in GOOD if key.split("/")[0] in SYNSETS[5:]}
  made(
    tmp_path / "in",
    tmp_path / "few",
    Selection(shots=1, held_out=1),
    images_per_class=2,
  )
  assert len(stored(tmp_path / "few")) == len(SYNSETS)
  assert set(stored(tmp_path / "few", "validation")) == set(GOOD)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_readable_image_is_stored_after_an_interruption(
  tmp_path, layout, monkeypatch
):
  path, out = layout(tmp_path / "in"), tmp_path / "out"
  store, answers = prepare._store, [mock.DEFAULT, mock.DEFAULT, KeyboardInterrupt]
  monkeypatch.setattr(prepare, "_store", mock.Mock(wraps=store, side_effect=answers))
  with pytest.raises(KeyboardInterrupt):
    made(path, out)
  assert not (out / "imagenet21k").exists()
  with pytest.raises(SourceError, match="not prepared|unknown to TFDS"):
    tfds_splits("imagenet21k", str(out))
  # Two shards and what they say.
  assert len([*(out / "imagenet21k.incomplete").rglob("*-0000*")]) == 4
  with pytest.raises(PrepareError, match=r"incomplete: .*'shots': 0.*'shots': 1"):
    made(path, out, Selection(shots=1))
  monkeypatch.setattr(prepare, "_store", store)
  counted = mock.Mock(side_effect=prepare.Shard)
  monkeypatch.setattr(prepare, "Shard", counted)
  # The end may be interrupted too.
  with monkeypatch.context() as patch:
    patch.setattr(prepare, "write_metadata", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      made(path, out)
  report = made(path, out)
  rows, folder = stored(out), out / "imagenet21k/1.0.0"
  assert {key: image for key, (_, image) in rows.items()} == GOOD
  assert all(key.startswith(f"{label}/") for key, (label, _) in rows.items())
  # Our own reader agrees with TFDS's.
  assert tfds_splits("imagenet21k", str(out)) == ("train",)
  source = open_tfds("imagenet21k", "train", root=out)
  assert source.names == load_class_list("imagenet21k").names[1000:1012]
  for index in range(len(source)):
    label, image = rows[source.keys[index]]
    assert source.encoded(index) == image and SYNSETS[source.labels[index]] == label
  assert {bad["image"] for bad in report["unreadable"]} == BAD
  assert report["n_unreadable"] == len(BAD)
  train = report["splits"]["train"]
  assert train["images"] == len(GOOD) and train["shards"] > 2
  assert report == read_json(folder / "report.json")
  left = {file.name.split(".")[0] for file in folder.iterdir()}
  assert left == {
    "imagenet21k-train",
    "dataset_info",
    "features",
    "label",
    "index-train",
    "report",
  }
  assert [file.name for file in out.iterdir()] == ["imagenet21k"]
  # A complete set is left as it is, and refused with other settings.
  assert made(path, out) == report
  assert counted.call_count == train["shards"] - 2
  for other in (Selection(shots=1), Selection(seed=1), Selection(held_out=1)):
    with pytest.raises(PrepareError, match=r"1\.0\.0: "):
      made(path, out, other)


@pytest.mark.parametrize("dataset", ["coop_ucf101", "fgvc_aircraft"])
def test_coops_splits_and_aircrafts(tmp_path, dataset):
  """An image of each class in three splits; of Aircraft the archive's data folder."""
  assert dataset in DATASETS
  names = load_class_list(dataset.removeprefix("coop_")).names
  split = {
    part: [[f"{part}{label:03d}.jpg", label, name] for label, name in enumerate(names)]
    for part in ("train", "val", "test")
  }
  root, images = tmp_path / "in/ucf101", "UCF-101-midframes"
  if dataset == "fgvc_aircraft":
    root, images = tmp_path / "in/fgvc-aircraft-2013b/data", "images"
  (root / images).mkdir(parents=True)
  (root / "split_zhou_UCF101.json").write_text(json.dumps(split))
  (root / "variants.txt").write_text("\n".join(names) + "\n")
  for part, items in split.items():
    lines = [f"{path[:-4]} {name}\n" for path, _, name in items]
    (root / f"images_variant_{part}.txt").write_text("".join(lines))
    for path, label, _ in items:
      (root / images / path).write_bytes(jpeg(label % 10))
  made(tmp_path / "in", tmp_path / "out", dataset=dataset)
  for part, ours in (("train", "train"), ("val", "validation"), ("test", "test")):
    source = open_tfds(dataset, ours, root=tmp_path / "out")
    assert source.names == names
    found = zip(source.keys.tolist(), source.labels.tolist(), strict=True)
    assert dict(found) == {path: label for path, label, _ in split[part]}


def one_file(root, name, content=b"nothing"):
  """Makes a folder with one file, which is no image."""
  (root / name).parent.mkdir(parents=True)
  (root / name).write_bytes(content)
  return root


@pytest.mark.parametrize(
  ("make", "message", "options"),
  [
    (
      lambda root: tar_of_tars(root, lambda tar: tar[:-30_000]),
      "fall11_whole.tar: ",
      {},
    ),
    (lambda root: tar_of_tars(root, gzip.compress), "extracted", {}),
    (lambda root: one_file(root, f"{SYNSETS[3]}.tar", b"no tar" * 200), SYNSETS[3], {}),
    (lambda root: one_file(root, f"{SYNSETS[0]}/a.JPEG"), "incomplete: .* 1 ", {}),
    (lambda root: root, "in: can't be read", {}),
    (folders, "prepare.names: got 'food101'", {"names": "food101"}),
    (lambda root: root, "in: ", {"dataset": "fgvc_aircraft"}),
  ],
)
def test_inputs_that_can_not_be_read(tmp_path, make, message, options):
  with pytest.raises((SourceError, PrepareError), match=message):
    made(make(tmp_path / "in"), tmp_path / "out", **options)
  assert not (tmp_path / "out/imagenet21k").exists()
