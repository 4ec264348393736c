"""The stored ImageNet-21K classes, against what is known of the release and of CLIP's tokenizer."""

import numpy as np

from pomp_jax.data.class_lists import load_synsets
from tests.support.clips import clip_tokenizer


def test_classes_are_those_of_the_fall_2011_release():
  synsets = load_synsets()
  assert len(synsets.ids) == len(set(synsets.ids)) == 21_841
  assert list(synsets.ids) == sorted(synsets.ids)
  assert synsets.lemmas[synsets.ids.index("n02084071")][0] == "dog"
  assert "domestic dog" in synsets.lemmas[synsets.ids.index("n02084071")]
  assert all(name and "\t" not in name for name in synsets.names)
  assert len(set(synsets.names)) == 20_099


def test_lengths_have_the_known_mean_and_range():
  lengths = load_synsets().lengths
  assert lengths.sum() == 94_447
  assert (lengths.min(), lengths.max()) == (3, 14)


def test_lengths_are_those_of_clips_own_tokenizer(tmp_path):
  """With OpenAI's merges, which the package open_clip_torch carries."""
  tokenizer = clip_tokenizer(tmp_path)
  synsets = load_synsets()
  rows = tokenizer([f"{name}." for name in synsets.names])["input_ids"]
  np.testing.assert_array_equal([len(row) - 1 for row in rows], synsets.lengths)
