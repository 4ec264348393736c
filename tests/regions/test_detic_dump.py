"""The dump script for Detic's users, on a small model of Detic's structure, and its scores."""

import importlib.util
import pathlib

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pomp_jax.regions.files import RegionFolder
from pomp_jax.regions.scores import class_scores, with_objectness

SCRIPT = pathlib.Path(__file__).parent.parent.parent / "docs" / "dump_detic.py"
SIZE, ORIGINAL = (60, 80), {"height": 30, "width": 40}  # of the network's input, and of the file


class Classifier(torch.nn.Module):
  """Detic's ZeroShotClassifier: linear, scaled cosine to the classes and a background of zeros."""

  def __init__(self, vectors):
    super().__init__()
    self.linear = torch.nn.Linear(12, 8)
    self.norm_temperature, self.use_bias = 50.0, False
    self.weight = torch.cat([F.normalize(vectors, dim=1), torch.zeros(1, 8)]).T

  def forward(self, x):
    return self.norm_temperature * F.normalize(self.linear(x), dim=1) @ self.weight


class Predictor(torch.nn.Module):
  def __init__(self, vectors):
    super().__init__()
    self.cls_score = Classifier(vectors)

  def predict_boxes(self, predictions, proposals):
    return [predictions[1]]


class Proposals(dict):
  """Fields by name."""

  image_size, has = SIZE, dict.__contains__


class Heads(torch.nn.Module):
  """Three stages; the last one's boxes, and the mean of the sigmoids times objectness, rooted."""

  def __init__(self, vectors):
    super().__init__()
    self.box_predictor = torch.nn.ModuleList([Predictor(vectors) for _ in range(3)])
    self.mult_proposal_score = True

  def _forward_box(self, features, proposals):
    logits = [predictor.cls_score(features + k) for k, predictor in enumerate(self.box_predictor)]
    moved = torch.tensor([[-3.0, 2, 50, 30], [4, 5, 20, 90], [0, 0, 80, 60]])
    self.box_predictor[-1].predict_boxes((logits[-1], moved), proposals)
    mean = sum(stage.sigmoid() for stage in logits) / 3
    return (mean * proposals[0].get("scores")[:, None]) ** 0.5


class Model(torch.nn.Module):
  def __init__(self, vectors):
    super().__init__()
    self.roi_heads = Heads(vectors)

  def forward(self, batch):
    self.scores = self.roi_heads._forward_box(
      batch[0]["features"], [Proposals(scores=batch[0]["scores"])]
    )


@pytest.fixture(scope="module")
def script():
  spec = importlib.util.spec_from_file_location("dump_detic", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_scores_of_a_dump_equal_detics(script, tmp_path):
  torch.manual_seed(0)
  vectors = torch.randn(5, 8)
  model = Model(vectors)
  items = [
    ORIGINAL | {"image_id": i, "features": torch.randn(3, 12), "scores": torch.rand(3)}
    for i in (4, 9)
  ]
  expected = []
  script.dump(model, [[item] for item in items], tmp_path, "ViT-B/16", "a model", ["cat"])
  for item in items:
    with torch.no_grad():
      model([item])
    expected.append(model.scores[:, :-1].numpy())
  regions = RegionFolder(tmp_path)
  header = regions.header
  assert (header.made_by, header.clip_model) == ("a model", "ViT-B/16")
  assert header.trained_classes == ("cat",)
  for item, scores in zip(items, expected, strict=True):
    found = regions.read(item["image_id"], **ORIGINAL)
    np.testing.assert_allclose(found.boxes, [[0, 1, 25, 15], [2, 2.5, 10, 30], [0, 0, 40, 30]])
    own = class_scores(found.embeddings, vectors.numpy(), header.activation, header.scale)
    # Half-precision embeddings: 50 * 2^-11 in a logit.
    rooted = with_objectness(own.classes, found.objectness)
    np.testing.assert_allclose(rooted, scores, atol=0.02, rtol=0.02)
    assert np.ptp(scores) > 0.3
