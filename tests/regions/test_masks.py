"""Hard masks at other sizes against torch's interpolation, and their run lengths."""

import types

from faster_coco_eval.core import mask as mask_api
import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.regions.masks import hard_masks, run_lengths_of

RNG = np.random.default_rng(0)


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


def test_run_lengths_are_the_librarys():
  mask = RNG.random((7, 9)) < 0.5
  found = run_lengths_of(mask)
  assert found["size"] == [7, 9] and isinstance(found["counts"], str)
  decoded = mask_api.decode(found | {"counts": found["counts"].encode()})
  np.testing.assert_array_equal(decoded.astype(bool), mask)
