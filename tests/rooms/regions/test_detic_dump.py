"""The dump script for Detic's users, on a small model of Detic's structure, and its
scores."""

import sys
import types

import numpy as np
import torch
from torch.nn import functional as F

from docs.scripts import dump_detic as script
from pomp_jax.rooms.regions.region_folder import RegionFolder
from pomp_jax.rooms.regions.region_scorer import class_scores

# of the network's input, and of the file
SIZE, ORIGINAL = (60, 80), {"height": 30, "width": 40}


class Classifier(torch.nn.Module):
  """Detic's ZeroShotClassifier: linear, scaled cosine to the classes and a
  background of zeros."""

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
  """Three stages; the last one's boxes, and the mean of the sigmoids times
  objectness, rooted."""

  def __init__(self, vectors):
    super().__init__()
    self.box_predictor = torch.nn.ModuleList([Predictor(vectors) for _ in range(3)])
    self.mult_proposal_score = True

  def _forward_box(self, features, proposals):
    logits = [
      predictor.cls_score(features + k)
      for k, predictor in enumerate(self.box_predictor)
    ]
    moved = torch.tensor([[-3.0, 2, 50, 30], [4, 5, 20, 90], [0, 0, 80, 60]])
    self.box_predictor[-1].predict_boxes((logits[-1], moved), proposals)
    mean = sum(stage.sigmoid() for stage in logits) / 3
    return (mean * proposals[0].get("scores")[:, None]) ** 0.5

  def forward_with_given_boxes(self, features, instances):
    """The mask head: here the left half of each box."""
    (given,) = instances
    assert features.shape == (3, 12) and given.pred_classes.tolist() == [0] * 3
    given.pred_masks = torch.zeros(3, 1, 28, 28)
    given.pred_masks[..., :14] = given.pred_boxes[:, 2].reshape(3, 1, 1, 1) / SIZE[1]
    return instances


class Model(torch.nn.Module):
  def __init__(self, vectors):
    super().__init__()
    self.roi_heads = Heads(vectors)

  def forward(self, batch):
    self.scores = self.roi_heads._forward_box(
      batch[0]["features"], [Proposals(scores=batch[0]["scores"])]
    )


def pasted(masks, boxes, sides):
  """detectron2's paste_masks_in_image for halves of boxes with integer corners."""
  found = torch.zeros(len(masks), *sides, dtype=bool)
  for own, mask, (x0, y0, x1, y1) in zip(
    found, masks, boxes.round().int().tolist(), strict=True
  ):
    own[y0:y1, x0 : (x0 + x1) // 2] = mask[0, 0] >= 0.5
  return found


def test_masks_of_a_dump_are_those_at_the_boxes(tmp_path, monkeypatch):
  monkeypatch.setitem(
    sys.modules, "detectron2.layers", types.SimpleNamespace(paste_masks_in_image=pasted)
  )

  class Instances(types.SimpleNamespace):
    def __init__(self, size):
      assert size == SIZE

  parts = types.SimpleNamespace(Boxes=lambda boxes: boxes, Instances=Instances)
  monkeypatch.setitem(sys.modules, "detectron2.structures", parts)
  item = ORIGINAL | {
    "image_id": 4,
    "features": torch.randn(3, 12),
    "scores": torch.rand(3),
  }
  script.dump(
    Model(torch.randn(5, 8)), [[item]], tmp_path, "ViT-B/16", "a model", [], masks=True
  )
  found = RegionFolder(tmp_path).read(4, **ORIGINAL)
  # 50 and 80 of the input's 80 columns are at or above a half, 20 are not.
  expected = np.zeros((3, 30, 40), np.uint8)
  expected[0, 1:15, :12] = expected[2, :, :20] = 255
  np.testing.assert_array_equal(found.masks, expected)


def test_scores_of_a_dump_equal_detics(tmp_path):
  torch.manual_seed(0)
  vectors = torch.randn(5, 8)
  model = Model(vectors)
  items = [
    ORIGINAL | {"image_id": i, "features": torch.randn(3, 12), "scores": torch.rand(3)}
    for i in (4, 9)
  ]
  expected = []
  script.dump(
    model, [[item] for item in items], tmp_path, "ViT-B/16", "a model", ["cat"]
  )
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
    np.testing.assert_allclose(
      found.boxes, [[0, 1, 25, 15], [2, 2.5, 10, 30], [0, 0, 40, 30]]
    )
    own = class_scores(
      found.embeddings, vectors.numpy(), header.activation, header.scale
    )
    # Half-precision embeddings: 50 * 2^-11 in a logit.
    rooted = np.sqrt(own.classes * found.objectness[:, None])
    np.testing.assert_allclose(rooted, scores, atol=0.02, rtol=0.02)
    assert np.ptp(scores) > 0.3
