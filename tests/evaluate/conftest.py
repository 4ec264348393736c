"""An encoder of the random CLIP."""

import pytest

from pomp_jax.encoder import Encoder


@pytest.fixture(scope="session")
def encoder(clip_and_torch):
  return Encoder(clip_and_torch[0], chunk=8)
