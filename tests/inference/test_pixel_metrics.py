"""Segmentation figures against hand-computed cases, ZSSeg's formula and torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from pomp_jax.inference.pixel_metrics import PixelTally

BASE, NOVEL = np.array([0, 2, 3]), np.array([1, 4])
GROUPS = {"base": BASE, "novel": NOVEL}


def test_a_hand_computed_case():
  tally = PixelTally(4)
  labels = np.array([[0, 0, 1], [1, 1, -1], [2, -1, -1]])
  predicted = np.array([[0, 1, 1], [1, 3, 3], [0, 2, 0]])
  tally.add(labels, predicted)
  # Truth 2, 3, 1, 0; predicted 2, 3, 0, 1 on the six valid pixels; both 1, 2, 0, 0.
  assert tally.counts.tolist() == [[2, 3, 1, 0], [2, 3, 0, 1], [1, 2, 0, 0]]
  iou, accuracy = tally.per_class()
  np.testing.assert_allclose(iou, [1 / 3, 1 / 2, 0, np.nan])
  np.testing.assert_allclose(accuracy, [1 / 2, 2 / 3, 0, np.nan])
  figures = tally.figures({"base": np.array([0, 2, 3]), "novel": np.array([1])})
  assert figures["mIoU"] == pytest.approx((1 / 3 + 1 / 2) / 4)
  assert figures["mIoU_plain"] == pytest.approx((1 / 3 + 1 / 2) / 3)
  assert figures["fwIoU"] == pytest.approx((2 / 3 + 3 / 2) / 6)
  assert figures["mACC"] == pytest.approx((1 / 2 + 2 / 3) / 3)
  assert figures["pACC"] == pytest.approx(3 / 6)
  assert figures["base"]["mIoU"] == pytest.approx(1 / 9)
  assert figures["novel"]["pACC"] == pytest.approx(2 / 3)
  assert figures["hIoU"] == pytest.approx(2 * (1 / 9) * (1 / 2) / (1 / 9 + 1 / 2))
  assert figures["hIoU_plain"] == pytest.approx(2 * (1 / 6) * (1 / 2) / (1 / 6 + 1 / 2))


def zsseg(pairs, n_classes, classes):
  """mIoU over some classes as ZSSeg's evaluator defines it, by loops; None without truth."""
  total, either = 0.0, 0
  for c in classes:
    truth = sum(t == c for t, p in pairs if t >= 0)
    predicted = sum(p == c for t, p in pairs if t >= 0)
    both = sum(t == p == c for t, p in pairs)
    either += truth + predicted > 0
    total += both / (truth + predicted - both) if truth else 0.0
  return total / either


@pytest.mark.parametrize("seed", range(4))
def test_equals_zssegs_formula_and_torchmetrics_per_class(seed):
  rng = np.random.default_rng(seed)
  tally = PixelTally(5)
  index = MulticlassJaccardIndex(5, average="none", ignore_index=-1)
  pairs = []
  for _ in range(3):
    # Class 4 is never in the truth, so that it counts by predictions alone.
    labels, predicted = rng.integers(-1, 4, (7, 9)), rng.integers(0, 5, (7, 9))
    tally.add(labels, predicted)
    index.update(torch.tensor(predicted), torch.tensor(labels))
    pairs += zip(labels.ravel().tolist(), predicted.ravel().tolist(), strict=True)
  iou, _ = tally.per_class()
  np.testing.assert_allclose(iou[:4], index.compute()[:4], rtol=1e-6)
  figures = tally.figures(GROUPS)
  base, novel = zsseg(pairs, 5, BASE), zsseg(pairs, 5, NOVEL)
  assert figures["mIoU"] == pytest.approx(zsseg(pairs, 5, range(5)))
  assert figures["base"]["mIoU"] == pytest.approx(base)
  assert figures["novel"]["mIoU"] == pytest.approx(novel)
  assert figures["hIoU"] == pytest.approx(2 / (1 / base + 1 / novel))
  assert figures["novel"]["mIoU_plain"] == pytest.approx(2 * novel)


def test_a_prediction_without_a_class_is_wrong():
  tally = PixelTally(2)
  tally.add(np.array([[0, 1]]), np.array([[0, -1]]))
  assert tally.figures()["pACC"] == 0.5
  assert tally.figures()["mIoU"] == 0.5


def test_nothing_to_measure():
  tally = PixelTally(3)
  tally.add(np.full((2, 2), -1), np.zeros((2, 2), int))
  figures = tally.figures({"base": np.array([0]), "novel": np.array([1])})
  assert figures["mIoU"] is None and figures["hIoU"] is None
  with pytest.raises(ValueError, match="3"):
    tally.add(np.zeros((1, 1), int), np.full((1, 1), 3))
