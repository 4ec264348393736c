"""OpenAI CLIP's tokenizer out of the merges that the package open_clip_torch carries."""

import gzip
import importlib.util
import json
import pathlib

import pytest


def clip_tokenizer(folder: pathlib.Path):
  """HuggingFace's CLIPTokenizerFast with OpenAI's merges; skips the test where they are missing."""
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
  (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
  return CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
