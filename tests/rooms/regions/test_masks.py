"""Boxes, masks and label maps against torchvision, torch, NumPy and detectron2's
rules."""

import types

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision import ops

from pomp_jax.rooms.regions import label_maps
from pomp_jax.rooms.regions.detections import iou, select_detections
from pomp_jax.rooms.regions.label_maps import label_maps_of_regions
from pomp_jax.rooms.regions.masks import boxes_of_masks, hard_masks, resized_sides

RNG = np.random.default_rng(0)


def _boxes(seed, n, side=200):
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, side, (n, 2))
  return np.concatenate([corner, corner + rng.uniform(1, side / 2, (n, 2))], 1).astype(
    np.float32
  )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top", [7, 300])
def test_detections_equal_torchvisions(seed, top):
  """The threshold, `batched_nms` over (region, class), the highest scores:
  detectron2's steps."""
  rng = np.random.default_rng(seed)
  boxes, scores = _boxes(seed, 40), rng.random((40, 9), np.float32) ** 3
  regions, classes = np.nonzero(scores > 0.1)
  kept = ops.batched_nms(
    torch.as_tensor(boxes[regions]),
    torch.as_tensor(scores[regions, classes]),
    torch.as_tensor(classes),
    0.4,
  ).numpy()[:top]
  found, own, best = select_detections(
    boxes, scores, min_score=0.1, max_iou=0.4, top=top
  )
  np.testing.assert_array_equal(found, regions[kept])
  np.testing.assert_array_equal(own, classes[kept])
  np.testing.assert_array_equal(best, scores[found, own])


def test_nothing_above_the_threshold_equal_boxes_and_empty_masks():
  """Of boxes with equal scores the first is kept."""
  for n_regions in (0, 3):
    found = select_detections(
      _boxes(0, n_regions), np.full((n_regions, 4), 0.02, np.float32)
    )
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
  """Shorter side of `size`, longer one of 4 times that at most, halves rounded
  upwards."""
  assert resized_sides(*given) == expected


DRAWN = np.random.default_rng(1)
# Exact, enlarged, reduced, and longer than the rows that are computed together.
CASES = [
  ((31, 40), (31, 40)),
  ((9, 12), (70, 41)),
  ((90, 64), (33, 50)),
  ((10, 8), (130, 150)),
]


def expected_maps(scores, masks, sides):
  stored = torch.tensor(masks.astype(np.float64))[None]
  weights = functional.interpolate(stored, sides, mode="bilinear")[0].numpy()
  sums = [np.einsum("rc,rhw->hwc", own.astype(float), weights) for own in scores]
  highest = weights.max(axis=0) / masks.max()
  # Rounding may decide between no region and one that ends here.
  wide = functional.max_pool2d(stored, 3, stride=1, padding=1)
  near = functional.interpolate(wide, sides, mode="bilinear")[0].numpy().max(axis=0)
  known = (near == 0) | (highest > 1e-5) if stored.shape[2:] != sides else highest >= 0
  return known, [np.where(highest == 0, -1, own.argmax(-1)) for own in sums], sums


@pytest.mark.parametrize(("grid", "sides"), CASES)
@pytest.mark.parametrize("kind", ["soft", "tiny", "sparse", "hard"])
def test_the_class_of_the_highest_sum(grid, sides, kind):
  masks = DRAWN.integers(0, 256, (19, *grid)).astype(np.uint8)
  if kind == "tiny":
    masks = (2.0 ** DRAWN.uniform(-24, -9, masks.shape)).astype(np.float16)
  elif kind != "soft":
    # none, one or several regions at a pixel
    masks[DRAWN.random(masks.shape) < 0.9] = 0
  masks = masks > 100 if kind == "hard" else masks
  scores = [DRAWN.random((19, 7)).astype(np.float32) for _ in range(3)]
  found = label_maps_of_regions(scores, masks, *sides)
  assert found.shape == (3, *sides) and found.dtype == np.int32
  known, expected, all_sums = expected_maps(scores, masks, sides)
  assert known.mean() > 0.8
  for own, label, sums in zip(found, expected, all_sums, strict=True):
    assert ((own == -1) == (label == -1))[known].all()
    # Or between two classes.
    two = np.sort(sums, axis=-1)[..., -2:]
    sure = known & (two[..., 1] - two[..., 0] > 1e-5 * two[..., 1])
    np.testing.assert_array_equal(own[sure], label[sure])
  if kind in ("sparse", "hard") and grid == sides:
    assert (found == -1).any() and sure.any()


@pytest.mark.parametrize("n_over", [1, 2, 3])
def test_hard_masks_that_overlap_by_hand(n_over):
  """A pixel each of the first region alone, of `n_over` at once, of the last alone,
  and of none."""
  masks = np.zeros((n_over, 1, 4), bool)
  masks[0, 0, 0] = masks[:, 0, 1] = masks[-1, 0, 2] = True
  # Each region has a class of its own, and class 3 is the second of all.
  scores = np.full((n_over, 4), 0.1, np.float32)
  scores[np.arange(n_over), np.arange(n_over)], scores[:, 3] = 0.9, 0.8
  [[found]] = label_maps_of_regions([scores], masks, 1, 4)
  assert found.tolist() == [0, 3 if n_over > 1 else 0, n_over - 1, -1]


def test_many_small_blocks(monkeypatch):
  """Several in both directions, the last of which reach beyond the image."""
  monkeypatch.setattr(label_maps, "_MAX_NUMBERS", 128 * 2 * 16)
  masks = DRAWN.integers(0, 256, (3, 20, 50)).astype(np.uint8)
  scores = [DRAWN.random((3, 4)).astype(np.float32)]
  _, (expected,), _ = expected_maps(scores, masks, (5, 300))
  assert label_maps._block(16, 300) == (1, 256)
  [found] = label_maps_of_regions(scores, masks, 5, 300)
  assert (found == expected).mean() > 0.999


def test_no_region():
  for masks in (np.zeros((0, 1, 1), bool), np.zeros((0, 4, 5), np.uint8)):
    found = label_maps_of_regions([np.zeros((0, 3), np.float32)] * 2, masks, 4, 5)
    np.testing.assert_array_equal(found, np.full((2, 4, 5), -1))
