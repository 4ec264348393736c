"""Class lists: what is refused, and how names become texts."""

import numpy as np
import pytest

from pomp_jax.data.vocabulary import VocabularyError, make_vocabulary, read_names


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
  vocabulary = make_vocabulary(["grey_wolf", "cat"], count_words)
  assert vocabulary.names == ("grey_wolf", "cat")
  np.testing.assert_array_equal(vocabulary.token_ids, [[4, 4, 1, 9], [3, 1, 9, 0]])
  np.testing.assert_array_equal(vocabulary.name_lengths, [2, 1])
  np.testing.assert_array_equal(vocabulary.lengths, [4, 3])


@pytest.mark.parametrize(
  ("names", "expected"),
  [
    ([], "empty"),
    (["cat", " "], "name 2 of 2 is empty"),
    (["cat", "dog", "cat"], "'cat' stands twice, as name 1 and 3"),
    (["grey_wolf", "grey wolf"], "'grey wolf' stands twice"),
  ],
)
def test_refused_lists(names, expected):
  with pytest.raises(VocabularyError, match=expected) as error:
    make_vocabulary(names, count_words)
  assert "\n" not in str(error.value)


def test_reading_names(tmp_path):
  file = tmp_path / "names.txt"
  file.write_bytes("\ufeffcat\r\n  d\u00f6g \r\n\r\n".encode())
  assert read_names(file) == ("cat", "d\u00f6g")


@pytest.mark.parametrize(
  ("content", "expected"),
  [(b"cat\n\ndog\n", "name 2 of 3 is empty"), (b"\xff\xfe\x00", "not UTF-8"), (b"", "empty")],
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
