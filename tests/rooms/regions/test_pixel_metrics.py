"""Segmentation figures against ZSSeg's formula, torchmetrics and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score, recall_score
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from pomp_jax.rooms.regions.pixel_metrics import PixelTally

BASE, NOVEL = np.array([0, 2, 3]), np.array([1, 4])
GROUPS = {"base": BASE, "novel": NOVEL}


def zsseg(pairs, n_classes, classes):
  """mIoU over some classes as ZSSeg's evaluator defines it, by loops; None without
  truth."""
  total, either = 0.0, 0
  for c in classes:
    truth = sum(t == c for t, p in pairs if t >= 0)
    predicted = sum(p == c for t, p in pairs if t >= 0)
    both = sum(t == p == c for t, p in pairs)
    either += truth + predicted > 0
    total += both / (truth + predicted - both) if truth else 0.0
  return total / either


@pytest.mark.parametrize("seed", range(4))
def test_equals_zssegs_formula_torchmetrics_and_scikit_learn(seed):
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
  iou, accuracy = tally.per_class()
  np.testing.assert_allclose(iou[:4], index.compute()[:4], rtol=1e-6)
  figures = tally.figures(GROUPS)
  truth, own = np.array([pair for pair in pairs if pair[0] >= 0]).T
  np.testing.assert_allclose(
    accuracy[:4], recall_score(truth, own, labels=range(4), average=None)
  )
  assert np.isnan(accuracy[4])
  assert figures["mACC"] == pytest.approx(np.mean(accuracy[:4]))
  assert figures["pACC"] == pytest.approx(accuracy_score(truth, own))
  weighted = jaccard_score(truth, own, labels=range(5), average="weighted")
  assert figures["fwIoU"] == pytest.approx(weighted)
  for name, classes in GROUPS.items():
    in_truth = len({*classes} & {*truth.tolist()})
    found = figures[name]["classes"], figures[name]["classes_in_truth"]
    assert found == (len(classes), in_truth)
  assert (figures["classes"], figures["classes_in_truth"]) == (5, 4)
  in_novel = np.isin(truth, NOVEL)
  assert figures["novel"]["pACC"] == pytest.approx(np.mean((truth == own)[in_novel]))
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
