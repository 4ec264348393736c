"""The stored ImageNet-21K classes, against what is known of the release and of CLIP's tokenizer."""

import gzip
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from pomp_jax.data.imagenet21k import load_synsets


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
  package = importlib.util.find_spec("open_clip")
  if package is None:
    pytest.skip("open_clip_torch is not installed")
  from transformers import CLIPTokenizerFast
  from transformers.models.clip.tokenization_clip import bytes_to_unicode

  file = pathlib.Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
  lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
  merges = lines[1 : 49152 - 256 - 2 + 1]
  letters = list(bytes_to_unicode().values())
  tokens = letters + [letter + "</w>" for letter in letters]
  tokens += ["".join(merge.split()) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
  (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
  (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
  tokenizer = CLIPTokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
  synsets = load_synsets()
  rows = tokenizer([f"{name}." for name in synsets.names])["input_ids"]
  np.testing.assert_array_equal([len(row) - 1 for row in rows], synsets.lengths)
