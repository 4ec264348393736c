"""Regions of a network on eight devices against one."""

import jax
import numpy as np
import pytest

from pomp_jax.config.fields import Clip
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.rooms.regions.fields import Propose
from pomp_jax.rooms.regions.mask_former.published_weights import MaskFormerFile
from pomp_jax.rooms.regions.proposals import Proposer
from tests.rooms.regions.region_jobs import TINY, random_params

pytestmark = pytest.mark.mesh

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def test_regions():
  network = MaskFormerFile(TINY, random_params(), ())
  images = [IMAGES[0], IMAGES[1][:28], IMAGES[2]]
  found = [
    Proposer(
      network, make_mesh(devices=jax.devices()[:n]), None, Propose(), Clip(), 0.5
    ).regions(images)
    for n in (1, 8)
  ]
  for ours, theirs in zip(*found, strict=True):
    for one, other in zip(ours, theirs, strict=True):
      np.testing.assert_allclose(
        one.astype(float), other.astype(float), rtol=2e-3, atol=1
      )
    np.testing.assert_allclose(ours.objectness, theirs.objectness, atol=1e-4)
