"""Thresholds and sets of TorchCP, another library of conformal prediction, on synthetic
scores: the file that tests/rooms/certainty/test_promises.py compares ours with.

python -m docs.studies.torchcp_sets --output=tests/rooms/certainty/torchcp_sets.json

TorchCP is no requirement of the tests: it needs torchsort, which has no wheels, and
imports it with all else. Its sets need no sorting network, so that the study puts an
empty module in the place of torchsort. Install the rest beside the requirements of the
tests:

pip install --no-deps torchcp torch_geometric pandas pytz xxhash

Shapes: B images, N classes.
"""

import argparse
from collections.abc import Sequence
import json
import math
import pathlib
import sys
import types
from typing import Any, NamedTuple

import numpy as np

SEED = 7
N_CLASSES = 12
# Of the last classes there are few, too few for a threshold of their own.
N_OF_CLASS = (40, 40, 30, 30, 25, 20, 20, 15, 15, 10, 6, 3)
N_NEW = 60
COVERAGES = (0.8, 0.9)
# Penalty and free ranks of RAPS: ours, and stronger ones.
RAPS = ((0.01, 5), (0.1, 2))


class Scores(NamedTuple):
  """Logits of a classifier, and the right classes of the validation images."""

  validation_BxN: np.ndarray
  labels_B: np.ndarray
  new_BxN: np.ndarray


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the scores with TorchCP's answers."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--output", type=pathlib.Path, required=True)
  options = parser.parse_args(argv)
  sys.modules["torchsort"] = _no_torchsort()
  scores = drawn_scores()
  answers = {
    "made_by": f"docs/studies/torchcp_sets.py, TorchCP {_version()}",
    "validation": scores.validation_BxN.tolist(),
    "labels": scores.labels_B.tolist(),
    "new": scores.new_BxN.tolist(),
    "classwise": [of_classwise(scores, coverage) for coverage in COVERAGES],
    "raps": [
      of_raps(scores, coverage, penalty, free_ranks)
      for coverage in COVERAGES
      for penalty, free_ranks in RAPS
    ],
  }
  options.output.write_text(_json(answers), encoding="utf-8")
  for kind in ("classwise", "raps"):
    for case in answers[kind]:
      sizes = [len(labels) for labels in case["sets"]]
      print(kind, case["coverage"], f"mean size {np.mean(sizes):.2f}")


def drawn_scores() -> Scores:
  """Scores of an overconfident classifier, with five decimals, no two in a row equal."""
  rng = np.random.default_rng(SEED)
  labels_B = rng.permutation(np.repeat(np.arange(N_CLASSES), N_OF_CLASS))
  logits_BxN = 2 * rng.normal(size=(len(labels_B) + N_NEW, N_CLASSES))
  n_validation = len(labels_B)
  right_B = rng.normal(2, 2, n_validation)
  logits_BxN[np.arange(n_validation), labels_B] += right_B
  logits_BxN = logits_BxN.round(5)
  gaps = np.diff(np.sort(logits_BxN, axis=1), axis=1)
  assert gaps.min() > 0
  return Scores(
    validation_BxN=logits_BxN[:n_validation],
    labels_B=labels_B,
    new_BxN=logits_BxN[n_validation:],
  )


def of_classwise(scores: Scores, coverage: float) -> dict[str, Any]:
  """A threshold on 1 - p for each class; null where its images are too few."""
  from torchcp.classification.predictor import ClassConditionalPredictor
  from torchcp.classification.score import LAC

  predictor = ClassConditionalPredictor(LAC())
  answers = _answers(predictor, scores, coverage)
  thresholds = predictor.q_hat.tolist()
  answers["thresholds"] = [one if math.isfinite(one) else None for one in thresholds]
  return answers


def of_raps(
  scores: Scores, coverage: float, penalty: float, free_ranks: int
) -> dict[str, Any]:
  """The threshold of RAPS without randomisation.

  Args:
    scores: logits and labels.
    coverage: share of images whose set is to hold the right class.
    penalty: penalty of each rank below the free ones.
    free_ranks: ranks without a penalty.
  """
  import torchcp.classification.predictor as predictors
  import torchcp.classification.score as torchcp_scores

  raps = torchcp_scores.RAPS(randomized=False, penalty=penalty, kreg=free_ranks)
  predictor = predictors.SplitPredictor(raps)
  answers = _answers(predictor, scores, coverage)
  answers["threshold"] = float(predictor.q_hat)
  answers["penalty"] = penalty
  answers["free_ranks"] = free_ranks
  return answers


def _answers(predictor: Any, scores: Scores, coverage: float) -> dict[str, Any]:
  """Calibrates a predictor; returns the coverage and the labels in each new set."""
  import torch

  predictor.calculate_threshold(
    torch.tensor(scores.validation_BxN), torch.tensor(scores.labels_B), 1 - coverage
  )
  is_in_BxN = predictor.predict_with_logits(torch.tensor(scores.new_BxN)).numpy()
  sets = [np.flatnonzero(is_in_N).tolist() for is_in_N in is_in_BxN]
  return {"coverage": coverage, "sets": sets}


def _no_torchsort() -> types.ModuleType:
  """A module with the names that TorchCP imports, which its sets do not call."""
  module = types.ModuleType("torchsort")
  vars(module).update(soft_rank=None, soft_sort=None)
  return module


def _version() -> str:
  import torchcp

  return torchcp.__version__


def _json(answers: dict[str, Any]) -> str:
  """JSON with a line for each entry."""
  lines = [
    f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}"
    for name, value in answers.items()
  ]
  return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
  main()
