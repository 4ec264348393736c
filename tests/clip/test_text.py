"""Text features against HuggingFace's torch model holding the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax.clip import text, text_tower
from pomp_jax.config import Settings, checks, validate
from pomp_jax.config.declare import ConfigError
from pomp_jax.errors import InputError
from pomp_jax.rooms.benchmark import benchmark
from tests.support.checks import assert_close, equations
from tests.support.clips import HAS_FLAX_CLIP, TOWERS, encode_texts, reference_tower

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
  rows = stored.padded(SENTENCES)
  expected = stored.torch_text_features(rows["input_ids"], rows["attention_mask"])
  tower = text_tower(kind, stored.clip.config.text_config)
  assert_close(encode_texts(stored.clip, SENTENCES, tower), expected)


def test_what_follows_the_first_eot_does_not_matter(stored):
  texts = ["cat <|endoftext|> dog", "cat", "a zebra at the sea.", "a zebra"]
  written, alone, followed, zebra = encode_texts(stored.clip, texts)
  assert_close(written, alone, 1e-6)
  # By the legacy rule the feature is read at "zebra", whose id is above EOT's.
  legacy = stored.clip.config.text_config.eos_token_id == 2
  assert np.allclose(followed, zebra, atol=1e-5) == legacy


def test_bfloat16_is_the_type_of_every_product(small):
  width = small.clip.text_width
  tower = reference_tower(small.clip.config.text_config, jnp.bfloat16)
  program = jax.make_jaxpr(tower)(
    small.clip.text_params, jnp.ones((2, width)), jnp.ones((3, 4, width)), jnp.full(3, 4)
  )
  products = [e for e in equations(program.jaxpr) if e.primitive.name == "dot_general"]
  assert len(products) == 3 * 8 + 1
  assert {variable.aval.dtype.name for e in products for variable in e.invars} == {"bfloat16"}
  assert program.out_avals[0].dtype == jnp.float32


def test_towers_that_cannot_be_had_are_refused(small, monkeypatch):
  """The reference where transformers has no FlaxCLIP, as from 5 on; the benchmark skips it."""
  assert text.has_flax_clip() == HAS_FLAX_CLIP
  with pytest.raises(ValueError, match="text_tower: got 'fancy'"):
    text_tower("fancy", small.clip.config.text_config)
  for module in (text, checks, benchmark):
    monkeypatch.setattr(module, "has_flax_clip", lambda: False)
  config = Settings().replace({"clip.text_tower": "reference"})
  with pytest.raises(ConfigError, match=r"^config\.clip\.text_tower: .*'transformers<5'"):
    validate(config)
  validate(config.replace({"clip.text_tower": "shared"}))
  with pytest.raises(InputError, match=r"^text_tower: .*'transformers<5'"):
    text_tower("reference", small.clip.config.text_config)
  assert benchmark._available(["shared", "reference"]) == ["shared"]
