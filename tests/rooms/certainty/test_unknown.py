"""Scores of known and unknown images against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from pomp_jax.rooms.certainty.unknown import auroc, fpr_at


@pytest.mark.parametrize("digits", [1, 6])
def test_auroc_and_fpr_are_those_of_scikit_learn(digits):
  rng = np.random.default_rng(digits)
  known = np.round(rng.normal(1, 1, 137), digits)  # with one digit many are equal
  unknown = np.round(rng.normal(0, 1, 90), digits)
  is_known = np.repeat([1, 0], [137, 90])
  scores = np.concatenate([known, unknown])
  assert auroc(known, unknown) == pytest.approx(roc_auc_score(is_known, scores))
  false, true, _ = roc_curve(is_known, scores, drop_intermediate=False)
  assert fpr_at(known, unknown) == pytest.approx(false[true >= 0.95].min())


def test_a_score_that_says_nothing():
  same = np.zeros(10)
  assert auroc(same, same) == 0.5 and fpr_at(same, same) == 1.0
