"""The sheet of misclassified images: which they are, and what they were taken for."""

from unittest import mock

import numpy as np
import pytest

from pomp_jax.evaluate import opening
from pomp_jax.evaluate.classifier import Classifier
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.rooms.analysis import prediction_sheet as module
from pomp_jax.rooms.analysis.prediction_sheet import (
  MISTAKES,
  Sheet,
  misclassified,
  prediction_sheet,
)
from pomp_jax.train.training import PromptRun


def test_the_misclassified_images_come_with_what_they_were_taken_for():
  """Twelve at most, the most certain first; none of an image whose name is right."""
  names = ["cat", "dog"] * 20
  answers = ["cat"] * 40  # every dog is wrong
  certain = np.linspace(0.5, 0.9, 40).tolist()
  top3 = [[(name, p), ("fox", 1 - p)] for name, p in zip(answers, certain, strict=True)]
  images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones(
    (4, 4, 3), np.uint8
  )
  sheet, title = misclassified(Sheet(images, names, top3))
  assert sheet.images[:, 0, 0, 0].tolist() == list(range(39, 15, -2))
  assert set(sheet.names) == {"dog"} and sheet.top3[0] == top3[39]
  assert "12 of 20 misclassified images among 40" in title
  right = Sheet(images[:2], ["cat", "cat"], top3[:2])
  assert misclassified(right) == misclassified(None) == (None, "")


class OneMistake:
  """A source of pictures of cats, of which the last one is white."""

  names = ("cat", "dog")

  def __init__(self, n_images):
    self.labels = np.zeros(n_images, np.int32)

  def __len__(self):
    return len(self.labels)

  def images(self, indices):
    is_last = np.asarray(indices) == len(self) - 1
    return np.uint8(255 * is_last)[:, None, None, None] * np.ones((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
  ("n_images", "among"),
  [
    (300, 256),  # of a large split 256
    (100, 100),  # of a small one all
  ],
)
def test_mistakes_are_looked_for_among_many_images(
  monkeypatch, tmp_path, n_images, among
):
  """Twelve images have a place on the sheet; mistakes are rare, and looked for among
  more."""

  def predict(images, top):
    return [
      [("dog", 0.9), ("cat", 0.1)] if image.any() else [("cat", 0.9), ("dog", 0.1)]
      for image in images
    ]

  monkeypatch.setattr(
    opening, "open_source", lambda data, split, n_images: OneMistake(n_images)
  )
  classifier = mock.Mock(spec=Classifier, predict=predict)
  classifier.names = ["cat", "dog"]
  monkeypatch.setattr(module, "Classifier", lambda *given: classifier)
  drawn = {}
  monkeypatch.setattr(
    module,
    "_draw",
    lambda path, sheet, title: drawn.update({path.name: (sheet, title)}),
  )
  run = mock.Mock(spec=PromptRun, data=None)
  run.encoder = mock.Mock(sized=lambda source: source)
  results = {"eval": {"novel": {}}, "eval_images": {"novel": n_images}}
  prompt = Prompt(np.zeros((2, 4), np.float32), "clip")
  draw = prediction_sheet(run, prompt, results)
  draw(tmp_path / "predictions.png")
  sheet, title = drawn["predictions.png"]
  assert len(sheet.names) == 12 and title.startswith(f"novel: 12 of {n_images} images")
  sheet, title = drawn[MISTAKES]
  assert sheet.names == ["cat"] and sheet.images.all()
  assert f"1 of 1 misclassified image among {among}" in title
