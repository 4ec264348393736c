"""Images that lie in several splits, byte for byte."""

from unittest import mock

import pytest

from pomp_jax.data.duplicates import find_duplicates
from pomp_jax.data.source import Files, StoredImages


@pytest.fixture
def split(tmp_path):
  """A function: name, contents of files -> their source; files are NAME/0, NAME/1, .."""

  def opened(name, *contents):
    (tmp_path / name).mkdir()
    for number, content in enumerate(contents):
      (tmp_path / name / str(number)).write_bytes(content)
    keys = [f"{name}/{number}" for number in range(len(contents))]
    return StoredImages(["one"], [0] * len(keys), keys, Files(tmp_path))

  return opened


def test_equal_files_of_earlier_splits(split, tmp_path):
  train = split("train", b"same", b"other", b"", b"long one")
  validation = split("validation", b"long one", b"more")
  test = split("test", b"same", b"some", b"", b"long one", b"new", b"new")
  with mock.patch.object(Files, "read", autospec=True, side_effect=Files.read) as read:
    found = find_duplicates(test, [train, validation])
  # Empty files, and those that are equal within the split, are no duplicates.
  assert found == {0: f"{tmp_path}/train/0", 3: f"{tmp_path}/train/3"}
  # Files whose size no other split has are not read.
  keys = sorted(call.args[2] for call in read.call_args_list)
  assert keys == [
    "test/0",
    "test/1",
    "test/3",
    "train/0",
    "train/3",
    "validation/0",
    "validation/1",
  ]


def test_a_file_is_no_duplicate_of_itself(split):
  train = split("train", b"a", b"a")
  assert find_duplicates(train, [train]) == {}


def test_files_that_are_gone_equal_none(split, tmp_path):
  train, test = split("train", b"same"), split("test", b"same", b"same")
  (tmp_path / "test/0").unlink()
  assert find_duplicates(test, [train]) == {1: f"{tmp_path}/train/0"}
