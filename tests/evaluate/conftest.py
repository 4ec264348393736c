"""An encoder of the random CLIP."""

import dataclasses

import pytest

from pomp_jax.encoder import Encoder
from tests.train.conftest import encoders_opened_once  # noqa: F401


def with_kernel(clip, part, kernel):
  """Returns the CLIP with another projection."""
  return dataclasses.replace(clip, params=clip.params | {part: {"kernel": kernel}})


@pytest.fixture(scope="session")
def encoder(clip_and_torch):
  return Encoder(clip_and_torch[0], chunk=8)
