"""A random CLIP with twelve classes, and some images."""

import numpy as np
import pytest

from docs.studies.other_samplers import OTHER_CORRECTIONS, OTHER_SAMPLERS
from pomp_jax.prompt.loss import CORRECTIONS
from pomp_jax.prompt.sampling.samplers import SAMPLERS
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


@pytest.fixture
def rows_of_studies(monkeypatch):
  """Registers the samplers and corrections of docs/studies/other_samplers.py."""
  for name, sampler in OTHER_SAMPLERS.items():
    monkeypatch.setitem(SAMPLERS, name, sampler)
  for name, correction in OTHER_CORRECTIONS.items():
    monkeypatch.setitem(CORRECTIONS, name, correction)
