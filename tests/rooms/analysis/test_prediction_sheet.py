"""The sheet of misclassified images: which they are, and what they were taken for."""

import numpy as np

from pomp_jax.rooms.analysis.prediction_sheet import Sheet, misclassified


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
