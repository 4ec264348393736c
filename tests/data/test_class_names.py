"""Class lists: what is refused, and how names become texts."""

from types import SimpleNamespace

import numpy as np
import pytest

from pomp_jax.data.class_lists import VocabularyError, normalized_names, read_names
from pomp_jax.encoder import Encoder


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


@pytest.mark.parametrize(("names", "expected"), [([], "empty"), (["cat", " "], "name 2,")])
def test_refused_lists(names, expected):
  with pytest.raises(VocabularyError, match=expected) as error:
    normalized_names(names)
  assert "\n" not in str(error.value)


def test_reading_names(tmp_path):
  file = tmp_path / "names.txt"
  file.write_bytes("\ufeffcat\r\n  d\u00f6g \r\n\r\n".encode())
  assert read_names(file) == ("cat", "d\u00f6g")


@pytest.mark.parametrize(
  ("content", "expected"),
  [(b"cat\n\ndog\n", "name 2,"), (b"\xff\xfe\x00", "not UTF-8"), (b"", "empty")],
)
def test_refused_files(tmp_path, content, expected):
  file = tmp_path / "names.txt"
  file.write_bytes(content)
  with pytest.raises(VocabularyError, match=expected) as error:
    read_names(file)
  assert str(file) in str(error.value)


def test_a_missing_file(tmp_path):
  with pytest.raises(VocabularyError, match="none.txt"):
    read_names(tmp_path / "none.txt")


@pytest.mark.parametrize("letter", list("\u2028\u2029\x85\x0b\x0c\x1c\x1b\t\r"))
def test_a_line_ends_at_a_line_feed_and_nowhere_else(tmp_path, letter):
  """Else rows that are exported would belong to other names than the file's lines."""
  file = tmp_path / "names.txt"
  file.write_bytes(f"cat\nred{letter}dog\nowl\n".encode())
  with pytest.raises(VocabularyError, match=rf"name 2, .* U\+{ord(letter):04X}") as error:
    read_names(file)
  assert str(error.value).isprintable()
  file.write_bytes(b"cat\r\nred dog\r\nowl\r\n")
  assert read_names(file) == ("cat", "red dog", "owl")


def test_a_line_of_megabytes_is_refused_in_a_short_line(tmp_path):
  file = tmp_path / "names.txt"
  for content in ("cat\n" + "x" * 10**7, "\x1b]0;" * 10**6 + "\ncat", "y" * 65 * 2**20):
    file.write_text(content)
    with pytest.raises(VocabularyError) as error:
      read_names(file)
    assert str(error.value).isprintable() and len(str(error.value)) < 300 + len(str(file))
