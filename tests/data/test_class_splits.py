"""Class lists of segmentation and detection, packaged and a user's."""

import numpy as np
import pytest

from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.data.class_splits import CLASS_SPLITS, read_class_split


@pytest.mark.parametrize(
  ("name", "n", "n_base", "n_novel"),
  [
    ("ade20k", 150, 0, 0),
    ("coco", 80, 48, 17),
    ("coco_stuff", 171, 156, 15),
    ("pascal_context", 59, 0, 0),
    ("voc", 20, 15, 5),
  ],
)
def test_packaged_lists(name, n, n_base, n_novel):
  classes = read_class_split(name)
  assert name in CLASS_SPLITS
  assert len(classes) == len(set(classes.names)) == n
  assert (len(classes.indices("base")), len(classes.indices("novel"))) == (n_base, n_novel)


def test_novel_classes_of_coco_stuff_and_voc_are_the_published_ones():
  stuff = read_class_split("coco_stuff")
  novel = [stuff.names[c] for c in stuff.indices("novel")]
  assert novel[:4] == ["cow", "giraffe", "suitcase", "frisbee"]
  assert novel[-3:] == ["road", "tree", "wall-concrete"]
  values = np.array([20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171])
  assert [stuff.values[c] for c in stuff.indices("novel")] == [(v,) for v in values]
  voc = read_class_split("voc")
  assert voc.names[15:] == ("pottedplant", "sheep", "sofa", "train", "tvmonitor")
  assert voc.indices("novel").tolist() == [15, 16, 17, 18, 19]


def test_a_users_file(tmp_path):
  path = tmp_path / "names.txt"
  path.write_text("sofa, couch\tnovel\t3, 4\r\ncat\tbase\t0\n", encoding="utf-8")
  classes = read_class_split(path)
  assert classes.names == ("sofa", "cat")
  assert classes.synonyms == (("sofa", "couch"), ("cat",))
  assert classes.groups == ("novel", "base")
  assert classes.values == ((3, 4), (0,))


@pytest.mark.parametrize(
  ("text", "part"),
  [
    ("", "empty"),
    ("cat\ncat", "repeats"),
    ("cat, cat", "line 1"),
    ("cat,", "line 1"),
    ("cat\tbase\ndog", "line 2"),
    ("cat\tseen", "seen"),
    ("cat\tbase\tx", "line 1"),
    ("cat\tbase\t1\ndog\tbase\t1", "line 2"),
    ("cat\tbase\t65536", "65536"),
    ("cat\tbase\t1\t2", "4 columns"),
    ("cat\x1b\tbase", "U+001B"),
  ],
)
def test_an_unusable_file(tmp_path, text, part):
  path = tmp_path / "names.txt"
  path.write_text(text, encoding="utf-8")
  with pytest.raises(VocabularyError) as error:
    read_class_split(path)
  assert part in str(error.value) and str(path) in str(error.value)


def test_an_unknown_name():
  with pytest.raises(VocabularyError, match="coco_stuff"):
    read_class_split("coco_things")
