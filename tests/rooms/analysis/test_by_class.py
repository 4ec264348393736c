"""The drawn confusion matrix, and which prompt's it is."""

import csv

import numpy as np

from pomp_jax.evaluate.metrics import Tally
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.analysis import by_class

NAMES = ("cat", "dog", "owl")
# Rows are the classes of the images, columns the answers.
MATRIX = np.array([[3, 2, 0], [0, 1, 4], [0, 0, 0]])


def figures(matrix):
  """Those of images of each class that had these answers."""
  labels, answers = (
    np.repeat(one.ravel(), matrix.ravel()) for one in np.indices(matrix.shape)
  )
  tally = Tally(len(matrix))
  tally.add(labels, (labels != answers).astype(int), answers, np.full(len(labels), 0.5))
  return tally.figures() | tally.by_class()


def test_a_row_of_the_picture_is_a_class_and_a_column_an_answer(tmp_path, drawn):
  prompts = {"worse": figures(MATRIX[:, ::-1]), "better": figures(MATRIX)}
  of_set = {"split": "test", "classes": NAMES, "reference": "worse", "prompts": prompts}
  folder = RunFolder(tmp_path)
  by_class.write(folder, {"animals": of_set})
  [figure] = drawn
  axes = figure.axes[0]
  assert "better" in figure.get_suptitle()
  assert (axes.get_xlabel(), axes.get_ylabel()) == ("answer", "class of the image")
  for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
    assert tuple(tick.get_text() for tick in ticks) == NAMES
  # A class without images has an empty row.
  shares = [[0.6, 0.4, 0], [0, 0.2, 0.8], [0, 0, 0]]
  np.testing.assert_allclose(axes.images[0].get_array(), shares)
  numbers = {
    tuple(map(int, text.get_position()[::-1])): int(text.get_text())
    for text in axes.texts
  }
  assert numbers == {
    tuple(place): MATRIX[tuple(place)] for place in np.argwhere(MATRIX).tolist()
  }


def test_the_summary_has_the_hardest_classes_and_the_most_frequent_errors():
  """Of the better prompt; a class without images is not hard."""
  prompts = {"worse": figures(MATRIX[:, ::-1]), "better": figures(MATRIX)}
  found = by_class.summary({"split": "test", "classes": NAMES, "prompts": prompts})
  assert found["prompt"] == "better"
  assert found["hardest"] == [["dog", 5, 0.2], ["cat", 5, 0.6]]
  assert found["confused"] == [["dog", "owl", 4, 5], ["cat", "dog", 2, 5]]


def test_a_confusion_comes_with_the_images_of_its_class(tmp_path):
  """Not of the answer's class, which has none here."""
  of_set = {"split": "test", "classes": NAMES, "reference": "a"}
  by_class.write(
    RunFolder(tmp_path), {"animals": of_set | {"prompts": {"a": figures(MATRIX)}}}
  )
  with (tmp_path / "confusions.csv").open() as file:
    rows = list(csv.DictReader(file))
  found = {(row["class"], row["answer"]): row for row in rows}
  assert found.keys() == {("cat", "dog"), ("dog", "owl")}
  row = found["dog", "owl"]
  assert (row["images"], row["images_of_class"]) == ("4", "5")
