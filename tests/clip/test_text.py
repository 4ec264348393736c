"""Text features against HuggingFace's torch model holding the same weights."""

import pytest
import torch

from pomp_jax.clip import text
from pomp_jax.clip.text import text_tower
from pomp_jax.config import checks, defaults, validate
from pomp_jax.config.declare import ConfigError
from pomp_jax.errors import InputError
from pomp_jax.rooms.benchmark import benchmark
from tests.support.checks import assert_close
from tests.support.clips import HAS_FLAX_CLIP, TOWERS, encode_texts, pooled

SENTENCES = [
  "a photo of a cat.",
  "the dog of the star, seen from the sea.",
  "x",
  "Crème brûlée, 1900 £!",
  "a zebra at the sea.",
  "cat <|endoftext|> dog",
]


@pytest.mark.parametrize("kind", TOWERS)
def test_sentences_equal_torch_clip(stored, kind):
  with torch.no_grad():
    expected = pooled(stored.torch_model.get_text_features(**stored.padded(SENTENCES)))
  tower = text_tower(kind, stored.clip.config.text_config)
  assert_close(encode_texts(stored.clip, SENTENCES, tower), expected)


def test_towers_that_cannot_be_had_are_refused(small, monkeypatch):
  """The reference where transformers has no FlaxCLIP, as from 5 on; the benchmark skips it."""
  assert text.has_flax_clip() == HAS_FLAX_CLIP
  for module in (text, checks, benchmark):
    monkeypatch.setattr(module, "has_flax_clip", lambda: False)
  config = defaults().replace({"clip.text_tower": "reference"})
  with pytest.raises(ConfigError, match=r"^config\.clip\.text_tower: .*'transformers<5'"):
    validate(config)
  validate(config.replace({"clip.text_tower": "shared"}))
  with pytest.raises(InputError, match=r"^text_tower: .*'transformers<5'"):
    text_tower("reference", small.clip.config.text_config)
  assert benchmark._available(["shared", "reference"]) == ["shared"]
