"""Fuzzing of the readers of published data sets: splits, few-shot files and
archives."""

import contextlib
import io
import itertools
import json
import pathlib
import tarfile

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
import pytest

from pomp_jax.data.images import ImageError
from pomp_jax.data.source import SourceError
from pomp_jax.rooms.data_sets.archives import open_input
from pomp_jax.rooms.data_sets.coop import open_coop
from tests.support.fuzzing import allowed_errors, bombs, damaged, edited_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def eurosat(folder):
  """A small set in CoOp's layout; its splits."""
  images = folder / "eurosat" / "2750"
  images.mkdir(parents=True)
  for file in (images / "a.jpg", folder / "outside.jpg"):
    Image.new("RGB", (10, 10)).save(file)
  items = [["a.jpg", label, name] for label, name in enumerate(("river", "forest"))]
  return dict.fromkeys(("train", "val", "test"), items)


def read_coop(folder, shots=0):
  with allowed_errors(SourceError, within=[folder / "eurosat"]):
    for source in open_coop(folder, "eurosat", shots=shots).values():
      root = (folder / "eurosat" / "2750").resolve()
      for index in range(len(source)):
        assert pathlib.Path(source.where(index)).resolve().is_relative_to(root)
        source.encoded(index)
  assert not (folder / "exploded").exists()


@given(data=st.data())
def test_edited_splits(folder, eurosat, data):
  words = ("train", "a.jpg", "../../outside.jpg", "/etc/passwd", "x/../a.jpg", "river")
  file = folder / "eurosat" / "split_zhou_EuroSAT.json"
  file.write_bytes(data.draw(edited_json(eurosat, *words)))
  read_coop(folder)


@pytest.mark.parametrize("suffix", [".json", ".pkl"])
def test_edited_few_shot_files(folder, eurosat, suffix):
  (folder / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(eurosat))
  few = folder / "eurosat" / "split_fewshot"
  few.mkdir(exist_ok=True)
  items = {
    part: [["/data/eurosat/2750/a.jpg", 0, "river"]] for part in ("train", "val")
  }
  pickled = bombs(folder / "exploded")

  @given(st.data())
  def check(data):
    edited = edited_json(items, "train", "data", "impath", "_impath", "label")
    strategy = (
      edited if suffix == ".json" else damaged(pickled) | st.sampled_from(pickled)
    )
    (few / f"shot_1-seed_1{suffix}").write_bytes(data.draw(strategy))
    read_coop(folder, shots=1)

  check()
  (few / f"shot_1-seed_1{suffix}").unlink()


def awkward_tar(mode):
  """Members of awkward names, each as a file and as every kind that is none."""
  file = io.BytesIO()
  names = [
    "data/variants.txt",
    "data/images/a.jpg",
    "/etc/images/b.jpg",
    "../../images/c.jpg",
  ]
  names += [
    "images/..jpg",
    "images/../d.jpg",
    "a/images/\x01.jpg",
    "images/.jpg",
    "images",
  ]
  kinds = [
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
  ]
  with tarfile.open(fileobj=file, mode=mode) as tar:
    for name, kind in itertools.product(names, kinds):
      member = tarfile.TarInfo(name)
      member.type, member.linkname = kind, "/etc/passwd"
      member.size = 600 if member.isreg() else 0
      tar.addfile(member, io.BytesIO(600 * b"x"))
  return file.getvalue()


_TARS = [awkward_tar("w"), awkward_tar("w:gz")]


@given(data=st.sampled_from(_TARS) | damaged(_TARS))
def test_a_folder_of_damaged_tars(tmp_path_factory, data):
  folder = tmp_path_factory.mktemp("tars")
  (folder / "n02084071.tar").write_bytes(data)
  with allowed_errors(SourceError, within=[folder]):
    for task in open_input("imagenet21k", folder).tasks:
      for unit in task.units:
        images = unit.open()
        for index in range(len(images)):
          with contextlib.suppress(ImageError):
            images.encoded(index)
