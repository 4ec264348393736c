"""Scores of regions against the published expressions in torch and NumPy, in float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.rooms.regions.scores import FUSIONS, class_scores, fuse, with_objectness
from tests.support.checks import assert_close

R, T, C, E = 7, 3, 5, 16
TRAINED = np.array([True, False, True, True, False])
VALID = np.array([True] * 4 + [False] + [True] * 2)


@pytest.fixture(scope="module")
def arrays():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape, np.float32)
  return draw(R, E), draw(R, T, E), draw(C, E), draw(E), draw(R, E)


def _logits(embeddings, rows, scale):
  cosine = functional.normalize(embeddings, dim=-1) @ functional.normalize(rows, dim=-1).T
  return scale * cosine


def _double(*arrays):
  return (torch.as_tensor(array).double() for array in arrays)


def test_softmax_scores_equal_clips_and_zssegs(arrays):
  regions, _, classes, null, _ = arrays
  embeddings, rows, null_row = _double(regions, classes, null)
  found = class_scores(regions, classes, "softmax", 10.0)
  assert_close(found.classes, _logits(embeddings, rows, 10).softmax(-1))
  assert not np.asarray(found.null).any()
  found = class_scores(regions, classes, "softmax", 10.0, null)
  expected = _logits(embeddings, torch.cat([rows, null_row[None]]), 10).softmax(-1)
  assert_close(found.classes, expected[:, :-1])
  assert_close(found.null, expected[:, -1])


def test_detics_scores(arrays):
  """`ZeroShotClassifier` of each stage with a column of zeros, mean of the sigmoids, objectness."""
  _, stages, classes, _, _ = arrays
  embeddings, rows = _double(stages, classes)
  weights = functional.normalize(torch.cat([rows.T, torch.zeros(E, 1).double()], dim=1), dim=0)
  per_stage = [50 * functional.normalize(embeddings[:, t]) @ weights for t in range(T)]
  scores = sum(logits.sigmoid() for logits in per_stage) / T
  objectness = np.random.default_rng(1).random(R, np.float32)
  expected = (scores * torch.as_tensor(objectness).double()[:, None]) ** 0.5
  found = class_scores(stages, classes, "sigmoid", 50.0, np.zeros(E, np.float32))
  assert_close(with_objectness(found.classes, objectness), expected[:, :-1])
  assert_close(found.null, np.full(R, 0.5))


def test_a_row_of_zeros_has_equal_scores(arrays):
  _, _, classes, _, _ = arrays
  found = class_scores(np.zeros((1, E), np.float32), classes, "softmax", 100.0)
  assert_close(found.classes, np.full((1, C), 1 / C))


@pytest.fixture(scope="module")
def scores(arrays):
  """Of the network and of CLIP, ours and torch's float64 logits with the null column last."""
  regions, _, classes, null, crops = arrays
  net, clip, rows = _double(regions, crops, np.concatenate([classes, null[None]]))
  return (
    class_scores(regions, classes, "softmax", 5.0, null),
    class_scores(crops, classes, "softmax", 8.0),
    class_scores(crops, classes, "softmax", 8.0, null),
    _logits(net, rows, 5),
    _logits(clip, rows, 8),
  )


def test_fvlms_fusion(scores):
  """`ensemble_class_outputs`, with the background first."""
  net, _, clip, net_logits, clip_logits = scores
  p_net, p_clip = (np.roll(x.softmax(-1).numpy(), 1, axis=1) for x in (net_logits, clip_logits))
  base = p_net[:, 1:] ** 0.65 * p_clip[:, 1:] ** 0.35
  novel = p_net[:, 1:] ** 0.35 * p_clip[:, 1:] ** 0.65
  joined = np.concatenate([p_net[:, :1], np.where(TRAINED, base, novel)], axis=1)
  joined /= joined.sum(axis=1, keepdims=True)
  assert_close(fuse(net, clip, FUSIONS["fvlm"], TRAINED, np.ones(R, bool)), joined[:, 1:])


def test_fc_clips_fusion(scores):
  """Logs of seen and unseen classes, softmax, and the void of the whole softmax."""
  net, clip, _, net_logits, clip_logits = scores
  inside, outside = net_logits[:, :-1].softmax(-1), clip_logits[:, :-1].softmax(-1)
  seen = torch.as_tensor(TRAINED).double()
  logits = (inside**0.6 * outside**0.4).log() * seen + (inside**0.2 * outside**0.8).log() * (
    1 - seen
  )
  expected = logits.softmax(-1) * (1 - net_logits.softmax(-1)[:, -1:])
  assert_close(fuse(net, clip, FUSIONS["fc_clip"], TRAINED, np.ones(R, bool)), expected)
