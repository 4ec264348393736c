"""A random CLIP, ten classes and some images of noise."""

from typing import NamedTuple

import numpy as np
import pytest

from pomp_jax.prompt.learner import Frozen
from tests.support.torch_world import NAMES, World, write_world


class Tiny(NamedTuple):
  """A CLIP with ten classes, eight images and their labels."""

  world: World
  frozen: Frozen
  images: np.ndarray
  labels: np.ndarray


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
  """Class features of its own for learners that want fixed ones."""
  world = write_world(tmp_path_factory.mktemp("tiny"), NAMES[:4] + NAMES[5:11], positions=24)
  rng = np.random.default_rng(0)
  classes = rng.standard_normal((10, world.clip.config.projection_dim)).astype(np.float32)
  images = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
  labels = np.array([3, 3, 7, 0, 1, 9, 4, 3], np.int32)
  return Tiny(world, world.frozen._replace(classes=classes), images, labels)
