"""Class matrices: names and classes, and published features."""

import numpy as np
import pytest

from pomp_jax.config import ConfigError
from pomp_jax.files.prompt_file import Prompt, PromptFileError
from pomp_jax.inference.class_matrix import ClassMatrix, check_prompt, class_matrix, key_parts
from pomp_jax.inference.named_prompts import NamedPrompt, only_prompt, read_prompts
from tests.support.checks import assert_close

SYNONYMS = (("sky",), ("person", "person in shirt", "person in dress"), ("dining_table", "desk"))


def test_rows_are_the_names_under_the_text(encoder):
  (named,) = read_prompts(("a picture of {}!",), "segment.prompts")
  matrix = class_matrix(encoder, SYNONYMS, named)
  names = [name for names in SYNONYMS for name in names]
  assert_close(matrix.features, encoder.class_features(names, "a picture of {}!"), 1e-6)
  assert matrix.starts.tolist() == [0, 1, 4]


def test_a_field_of_one_prompt_takes_no_others():
  prompts = read_prompts(("a {}", "the {}"), "segment.prompts")
  assert only_prompt(prompts[:1], "propose.prompt") is prompts[0]
  with pytest.raises(ConfigError, match=r"propose\.prompt.*a \{\}, the \{\}"):
    only_prompt(prompts, "propose.prompt")


def test_the_best_of_a_classs_names_counts():
  matrix = ClassMatrix(np.zeros((6, 4), np.float32), np.array([0, 1, 4]))
  scores = np.random.default_rng(0).normal(size=(2, 5, 6))
  expected = [scores[..., 0], scores[..., 1:4].max(-1), scores[..., 4:].max(-1)]
  np.testing.assert_array_equal(matrix.over_names(scores), np.stack(expected, -1))


def test_published_features_have_a_row_a_class(encoder, tmp_path):
  width = encoder.clip.config.projection_dim
  features = np.random.default_rng(1).normal(size=(3, width)).astype(np.float16)
  np.save(tmp_path / "pomp.npy", features)
  (named,) = read_prompts((str(tmp_path / "pomp.npy"),), "segment.prompts")
  matrix = class_matrix(encoder, SYNONYMS, named)
  unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1)[:, None]
  assert_close(matrix.features, unit, 1e-6)
  assert matrix.starts.tolist() == [0, 1, 2]
  check_prompt(named, SYNONYMS, encoder.clip.config, encoder.clip.name)
  for synonyms in (SYNONYMS[:2], (*SYNONYMS, ("dog",))):
    with pytest.raises(PromptFileError, match=r"pomp\.npy: the array's shape"):
      check_prompt(named, synonyms, encoder.clip.config, encoder.clip.name)
    with pytest.raises(PromptFileError, match=r"pomp\.npy: the array's shape"):
      class_matrix(encoder, synonyms, named)


def test_a_prompt_of_another_width_or_number_of_names_is_refused(encoder):
  width, name = encoder.clip.text_width, encoder.clip.name
  for shape in ((4, width + 1), (4, 2, width)):
    named = NamedPrompt("a.npz", Prompt(np.zeros(shape, np.float32), name, "end"))
    with pytest.raises(PromptFileError, match=r"a\.npz"):
      check_prompt(named, SYNONYMS, encoder.clip.config, name)


def test_keys_differ_by_prompt_and_names():
  one, two = read_prompts(("a {}", "the {}"), "segment.prompts")
  parts = [key_parts(named, names) for named in (one, two) for names in (SYNONYMS, SYNONYMS[:2])]
  assert len({str(part) for part in parts}) == 4
