"""Label maps of regions against torch's interpolation and NumPy's sums in float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.rooms.regions import label_maps
from pomp_jax.rooms.regions.label_maps import label_maps_of_regions

RNG = np.random.default_rng(1)
# Exact, enlarged, reduced, and longer than the rows that are computed together.
CASES = [((31, 40), (31, 40)), ((9, 12), (70, 41)), ((90, 64), (33, 50)), ((10, 8), (130, 150))]


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
  masks = RNG.integers(0, 256, (19, *grid)).astype(np.uint8)
  if kind == "tiny":
    masks = (2.0 ** RNG.uniform(-24, -9, masks.shape)).astype(np.float16)
  elif kind != "soft":
    masks[RNG.random(masks.shape) < 0.9] = 0  # none, one or several regions at a pixel
  masks = masks > 100 if kind == "hard" else masks
  scores = [RNG.random((19, 7)).astype(np.float32) for _ in range(3)]
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


def test_many_small_blocks(monkeypatch):
  """Several in both directions, the last of which reach beyond the image."""
  monkeypatch.setattr(label_maps, "_MAX_NUMBERS", 128 * 2 * 16)
  masks = RNG.integers(0, 256, (3, 20, 50)).astype(np.uint8)
  scores = [RNG.random((3, 4)).astype(np.float32)]
  _, (expected,), _ = expected_maps(scores, masks, (5, 300))
  assert label_maps._block(16, 300) == (1, 256)
  [found] = label_maps_of_regions(scores, masks, 5, 300)
  assert (found == expected).mean() > 0.999


def test_no_region():
  for masks in (np.zeros((0, 1, 1), bool), np.zeros((0, 4, 5), np.uint8)):
    found = label_maps_of_regions([np.zeros((0, 3), np.float32)] * 2, masks, 4, 5)
    np.testing.assert_array_equal(found, np.full((2, 4, 5), -1))
