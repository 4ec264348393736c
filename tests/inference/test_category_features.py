"""Features of categories and their synonyms, against the encoder's own."""

import numpy as np
import pytest

from pomp_jax.files.class_features import Category
from pomp_jax.files.prompt_file import Prompt, PromptFileError
from pomp_jax.inference import category_features

CATEGORIES = (
  Category("red star", ("scarlet star", "star")),
  Category("blue ring"),
  Category("star", ("red star",)),
)


def context(encoder, *shape):
  scale = np.random.default_rng(0).normal(0, 0.02, (*shape, encoder.clip.text_width))
  return scale.astype(np.float32)


@pytest.mark.parametrize("learned", [False, True])
def test_synonyms_are_means_of_unit_features(encoder, learned):
  prompt = Prompt(context(encoder, 4), "a/clip") if learned else "a {}"
  names = ["red star", "scarlet star", "star", "blue ring"]
  one, two, three, four = encoder.class_features(names, prompt)
  expected = np.stack([(one + two + three) / 3, four, (one + three) / 2])
  expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
  found = category_features(encoder, CATEGORIES, prompt, synonyms=True)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  plain = category_features(encoder, CATEGORIES, prompt)
  np.testing.assert_allclose(plain, np.stack([one, four, three]), atol=1e-6)
  assert np.abs(found - plain).max() > 1e-3


def test_one_context_a_class_leaves_none_for_synonyms(encoder):
  prompt = Prompt(context(encoder, 3, 4), "a/clip")
  assert category_features(encoder, CATEGORIES, prompt).shape[0] == 3
  with pytest.raises(PromptFileError, match="class-specific"):
    category_features(encoder, CATEGORIES, prompt, synonyms=True)
