"""Scores of regions against the published expressions in torch and NumPy, in
float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.rooms.regions.fields import Regions
from pomp_jax.rooms.regions.region_scorer import class_scores, fuse
from tests.support.checks import assert_close

R, C, E = 7, 5, 16
TRAINED = np.array([True, False, True, True, False])


def _logits(embeddings, rows, scale):
  cosine = (
    functional.normalize(embeddings, dim=-1) @ functional.normalize(rows, dim=-1).T
  )
  return scale * cosine


def test_a_row_of_zeros_has_equal_scores():
  classes = np.random.default_rng(0).standard_normal((C, E), np.float32)
  found = class_scores(np.zeros((1, E), np.float32), classes, "softmax", 100.0)
  assert_close(found.classes, np.full((1, C), 1 / C))


@pytest.fixture(scope="module")
def scores():
  """Of the network and of CLIP, ours and torch's float64 logits with the null column
  last."""
  rng = np.random.default_rng(0)
  regions, crops, classes = (rng.standard_normal((n, E), np.float32) for n in (R, R, C))
  null = rng.standard_normal(E, np.float32)
  rows = np.concatenate([classes, null[None]])
  net, clip, rows = (
    torch.as_tensor(array).double() for array in (regions, crops, rows)
  )
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
  p_net, p_clip = (
    np.roll(x.softmax(-1).numpy(), 1, axis=1) for x in (net_logits, clip_logits)
  )
  base = p_net[:, 1:] ** 0.65 * p_clip[:, 1:] ** 0.35
  novel = p_net[:, 1:] ** 0.35 * p_clip[:, 1:] ** 0.65
  joined = np.concatenate([p_net[:, :1], np.where(TRAINED, base, novel)], axis=1)
  joined /= joined.sum(axis=1, keepdims=True)
  fvlm = Regions(e_base=0.35, e_novel=0.65, null="keep")
  assert_close(fuse(net, clip, fvlm, TRAINED, np.ones(R, bool)), joined[:, 1:])


def test_fc_clips_fusion(scores):
  """Logs of seen and unseen classes, softmax, and the void of the whole softmax."""
  net, clip, _, net_logits, clip_logits = scores
  inside, outside = net_logits[:, :-1].softmax(-1), clip_logits[:, :-1].softmax(-1)
  seen = torch.as_tensor(TRAINED).double()
  logits = (inside**0.6 * outside**0.4).log() * seen + (
    inside**0.2 * outside**0.8
  ).log() * (1 - seen)
  expected = logits.softmax(-1) * (1 - net_logits.softmax(-1)[:, -1:])
  fc_clip = Regions(e_base=0.4, e_novel=0.8, null="gate")
  assert_close(fuse(net, clip, fc_clip, TRAINED, np.ones(R, bool)), expected)
