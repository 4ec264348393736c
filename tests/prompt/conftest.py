"""A random CLIP with twelve classes, and some images."""

import numpy as np
import pytest

from tests.support.torch_world import write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
  """A CLIP of 40 positions, and twelve names."""
  return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def images():
  return np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)


@pytest.fixture(scope="session")
def image_features(world, images):
  """Their features by torch in float64 [16, E]."""
  return world.image_features(images).numpy()
