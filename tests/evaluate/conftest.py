"""One random CLIP for the folder."""

import pytest

from pomp_jax.clip import load_clip
from pomp_jax.encoder import Encoder
from tests.support.clips import write_random_clip


@pytest.fixture(scope="session")
def clip_and_torch(tmp_path_factory):
  folder = tmp_path_factory.mktemp("clip")
  model = write_random_clip(folder)
  return load_clip(str(folder)), model


@pytest.fixture(scope="session")
def encoder(clip_and_torch):
  return Encoder(clip_and_torch[0], chunk=8)
