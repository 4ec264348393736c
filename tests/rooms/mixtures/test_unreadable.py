"""Weights of mixtures beside unreadable validation images."""

import pytest

from pomp_jax.data.skipped_images import CorruptDataError
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.named_prompts import read_prompts
from pomp_jax.rooms.mixtures.weights import Weights
from tests.train.test_unreadable import config_of, images  # noqa: F401  # fixtures


def test_weights_of_a_mixture(config_of, images):  # noqa: F811
  """Chosen on the validation images that can be read."""
  prompts = read_prompts(["{}. + a {}."], "evaluate.prompts", chosen=True)
  config = config_of(images)
  encoder = opening.open_encoder(config.clip)
  choose = lambda config: Weights(
    prompts, config.clip, config.data, config.eval
  ).choose(encoder)
  _, (row,) = choose(config)
  assert (row["validation_images"], row["validation_classes"]) == (29, 10)
  with pytest.raises(
    CorruptDataError, match="1 of 30 images can't be read, 0 are allowed"
  ):
    choose(config_of(images, **{"data.max_corrupt": 0.0}))
