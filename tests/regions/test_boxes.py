"""Boxes and the selection of detections against torchvision and detectron2's order of steps."""

import time

import numpy as np
import pytest
import torch
from torchvision import ops

from pomp_jax.regions.boxes import boxes_of_masks, clip_boxes, iou, select_detections


def _boxes(seed, n, side=200):
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, side, (n, 2))
  return np.concatenate([corner, corner + rng.uniform(1, side / 2, (n, 2))], 1).astype(np.float32)


def test_boxes_of_masks_equal_torchvisions():
  masks = np.random.default_rng(0).random((20, 9, 13)) < 0.05
  masks = masks[masks.any(axis=(1, 2))]
  expected = ops.masks_to_boxes(torch.as_tensor(masks)).numpy()
  expected[:, 2:] += 1  # theirs hold the last pixel
  np.testing.assert_array_equal(boxes_of_masks(masks), expected)
  np.testing.assert_array_equal(boxes_of_masks(np.zeros((2, 5, 6), bool)), np.zeros((2, 4)))


def test_iou_equals_torchvisions():
  one, two = _boxes(0, 12), _boxes(1, 30)
  expected = ops.box_iou(torch.as_tensor(one), torch.as_tensor(two)).numpy()
  np.testing.assert_allclose(iou(one, two), expected, rtol=0, atol=1e-6)
  assert not iou(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)).any()


def test_clipped_boxes_equal_torchvisions():
  boxes = _boxes(0, 12) - 30
  expected = ops.clip_boxes_to_image(torch.as_tensor(boxes), (100, 150)).numpy()
  np.testing.assert_array_equal(clip_boxes(boxes, 100, 150), expected)


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
  found = select_detections(boxes, scores, min_score=0.1, max_iou=0.4, top=top)
  np.testing.assert_array_equal(found.regions, regions[kept])
  np.testing.assert_array_equal(found.classes, classes[kept])
  np.testing.assert_array_equal(found.scores, scores[found.regions, found.classes])


def test_nothing_above_the_threshold_and_equal_boxes():
  """Of boxes with equal scores the first is kept."""
  for n_regions in (0, 3):
    found = select_detections(_boxes(0, n_regions), np.full((n_regions, 4), 0.02, np.float32))
    assert [len(part) for part in found] == [0, 0, 0]
  boxes = np.tile(np.array([[0, 0, 5, 5]], np.float32), (4, 1))
  found = select_detections(boxes, np.full((4, 2), 0.5, np.float32))
  np.testing.assert_array_equal(found.regions, [0, 0])
  np.testing.assert_array_equal(found.classes, [0, 1])


def test_an_image_of_lvis_size_takes_less_than_a_second():
  """Every score a candidate, the worst case; process time, since other programs share the cores."""
  boxes = _boxes(0, 300, side=2000)
  scores = np.random.default_rng(0).uniform(0.03, 1, (300, 1203)).astype(np.float32)
  start = time.process_time()
  found = select_detections(boxes, scores)
  assert time.process_time() - start < 1
  assert len(found.scores) == 300
