"""Boxes, masks and sizes of images against torchvision, torch, PIL and detectron2's rules."""

import types

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision import ops

from pomp_jax.rooms.regions.detections import iou, select_detections
from pomp_jax.rooms.regions.masks import boxes_of_masks, hard_masks, resized_sides

RNG = np.random.default_rng(0)


def _boxes(seed, n, side=200):
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, side, (n, 2))
  return np.concatenate([corner, corner + rng.uniform(1, side / 2, (n, 2))], 1).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top", [7, 300])
def test_detections_equal_torchvisions(seed, top):
  """The threshold, `batched_nms` over (region, class), the highest scores: detectron2's steps."""
  rng = np.random.default_rng(seed)
  boxes, scores = _boxes(seed, 40), rng.random((40, 9), np.float32) ** 3
  regions, classes = np.nonzero(scores > 0.1)
  kept = ops.batched_nms(
    torch.as_tensor(boxes[regions]),
    torch.as_tensor(scores[regions, classes]),
    torch.as_tensor(classes),
    0.4,
  ).numpy()[:top]
  found, own, best = select_detections(boxes, scores, min_score=0.1, max_iou=0.4, top=top)
  np.testing.assert_array_equal(found, regions[kept])
  np.testing.assert_array_equal(own, classes[kept])
  np.testing.assert_array_equal(best, scores[found, own])


def test_nothing_above_the_threshold_equal_boxes_and_empty_masks():
  """Of boxes with equal scores the first is kept."""
  for n_regions in (0, 3):
    found = select_detections(_boxes(0, n_regions), np.full((n_regions, 4), 0.02, np.float32))
    assert [len(part) for part in found] == [0, 0, 0]
  boxes = np.tile(np.array([[0, 0, 5, 5]], np.float32), (4, 1))
  found, classes, _ = select_detections(boxes, np.full((4, 2), 0.5, np.float32))
  np.testing.assert_array_equal(found, [0, 0])
  np.testing.assert_array_equal(classes, [0, 1])
  empty = boxes_of_masks(np.zeros((2, 5, 6), bool))
  assert empty.shape == (2, 4) and not empty.any() and not iou(empty, empty).any()


@pytest.mark.parametrize("sides", [(40, 52), (25, 90), (9, 13), (10, 12)])
@pytest.mark.parametrize("threshold", [0.4, 0.5])
def test_masks_are_torchs(sides, threshold):
  """Enlarged, reduced, both and neither; hard masks as well."""
  soft = RNG.integers(0, 256, (3, 10, 12)).astype(np.uint8)
  soft[0, 0, :2] = 102, 103  # 102 is 0.4 times 255
  hard = soft > 100
  for masks, scale in ((soft, 255), (hard, 1)):
    stored = torch.tensor(masks.astype(np.float64))[None]
    expected = functional.interpolate(stored, sides, mode="bilinear")[0].numpy()
    found = hard_masks(masks, *sides, threshold)
    assert isinstance(found, types.GeneratorType)  # one in memory at a time
    found = np.array(list(found))
    assert found.dtype == bool and found.shape == (3, *sides)
    sure = abs(expected - scale * threshold) > (0 if sides == (10, 12) else 1e-4)
    np.testing.assert_array_equal(found[sure], (expected > scale * threshold)[sure])
    assert sure.mean() > 0.9


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ((427, 640, 640), (640, 959)),
    ((640, 428, 640), (957, 640)),
    ((100, 640, 640), (400, 2560)),  # 4,096 would be too long
    ((2048, 300, 512), (2048, 300)),
    ((48, 31, 0), (48, 31)),
    # Multiples of 4.
    ((30, 64, 0, 4), (32, 64)),
    ((40, 56, 64, 4), (64, 88)),
    ((1, 9, 0, 4), (4, 8)),
  ],
)
def test_sides_are_detectron2s(given, expected):
  """Shorter side of `size`, longer one of 4 times that at most, halves rounded upwards."""
  assert resized_sides(*given) == expected
