"""Images that lie in several splits, byte for byte."""

import io
from unittest import mock

from PIL import Image
import pytest

from pomp_jax.data.duplicates import find_duplicates
from pomp_jax.data.source import Files, StoredImages


def picture(colour, side=8):
  file = io.BytesIO()
  Image.new("RGB", (side, side), colour).save(file, "BMP")
  return file.getvalue()


@pytest.fixture
def split(tmp_path):
  """A function: name, contents of files -> their source; files are NAME/0, NAME/1,
  .."""

  def opened(name, *contents):
    (tmp_path / name).mkdir()
    for number, content in enumerate(contents):
      (tmp_path / name / str(number)).write_bytes(content)
    keys = [f"{name}/{number}" for number in range(len(contents))]
    return StoredImages(["one"], [0] * len(keys), keys, Files(tmp_path))

  return opened


def test_equal_files_of_earlier_splits(split, tmp_path):
  """Of equal size are all of 8 x 8 pixels; no other split has a file of the size of
  the rest."""
  large = picture("red", 20)
  train = split("train", picture("red"), picture("green"), b"", large)
  validation = split("validation", large, picture("red", 9))
  test = split("test", picture("red"), picture("blue"), large, picture("red", 10))
  with mock.patch.object(Files, "read", autospec=True, side_effect=Files.read) as read:
    found = find_duplicates(test, [train, validation])
  assert found == {0: f"{tmp_path}/train/0", 2: f"{tmp_path}/train/3"}
  keys = {call.args[2] for call in read.call_args_list}
  assert keys == {
    "test/0",
    "test/1",
    "test/2",
    "train/0",
    "train/1",
    "train/3",
    "validation/0",
  }


def test_files_that_are_no_pictures_or_gone_equal_none(split, tmp_path):
  train = split("train", picture("red"), b"no image", b"")
  test = split("test", picture("red"), b"no image", b"", picture("red"))
  (tmp_path / "test/0").unlink()
  assert find_duplicates(test, [train]) == {3: f"{tmp_path}/train/0"}


def test_a_file_is_no_duplicate_of_itself_nor_of_its_own_split(split):
  train = split("train", picture("red"), picture("red"))
  assert find_duplicates(train, [train]) == {}
  assert find_duplicates(train, []) == {}
