"""Text features against HuggingFace's torch model holding the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax.clip import text_tower, tokenize
from pomp_jax.clip.text import token_embeddings
from pomp_jax.prompt.context import PromptContext
from tests.support.checks import assert_close, equations
from tests.support.clips import encode_texts
from tests.support.flax_clip import TOWERS, reference_tower

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


@pytest.mark.parametrize("kind", TOWERS)
def test_a_prompt_of_words_equals_the_sentence(quick, kind):
  clip, names, words = quick.clip, ["cat", "the star of dogs"], "a photo of a"
  ids, lengths = tokenize([f"{name}." for name in names], clip.tokenizer, clip.config.text_config)
  word_ids = np.array(clip.tokenizer(words, add_special_tokens=False)["input_ids"], np.int32)
  module = PromptContext(
    len(word_ids), clip.text_width, init_value=token_embeddings(clip.params, word_ids)
  )
  sequences, _ = module.init_with_output(
    jax.random.key(0),
    clip.sos_embedding,
    jnp.asarray(token_embeddings(clip.params, ids)),
    jnp.asarray(lengths) - 2,
    jnp.asarray(lengths),
  )
  found = jax.jit(text_tower(kind, clip.config.text_config))(clip.text_params, *sequences)
  rows = quick.padded([f"{words} {name}." for name in names])
  assert_close(found, quick.torch_text_features(rows["input_ids"]))


@pytest.mark.parametrize("kind", TOWERS)
def test_padding_after_eot_never_matters(quick, kind):
  clip = quick.clip
  ids, lengths = tokenize(SENTENCES, clip.tokenizer, clip.config.text_config)
  suffix = jnp.asarray(token_embeddings(clip.params, ids))
  noise = 30 * jax.random.normal(jax.random.key(0), suffix.shape)
  padding = jnp.arange(suffix.shape[1])[None] >= lengths[:, None]
  assert padding.any()
  tower = jax.jit(text_tower(kind, clip.config.text_config))
  prefix = clip.sos_embedding[None]
  expected = tower(clip.text_params, prefix, suffix, lengths)
  found = tower(
    clip.text_params, prefix, jnp.where(padding[:, :, None], noise, suffix), jnp.asarray(lengths)
  )
  assert_close(found, expected, 1e-6)


def test_bfloat16_is_within_its_error_of_float32(quick):
  clip = quick.clip
  exact, rounded = (
    encode_texts(clip, SENTENCES, reference_tower(clip.config.text_config, dtype))
    for dtype in (jnp.float32, jnp.bfloat16)
  )
  assert rounded.dtype == jnp.float32
  # bfloat16 keeps 8 bits (unit roundoff 2^-8 = 0.4%); over three layers of random weights that
  # adds up to 0.8-1.4% of the largest value (six seeds).
  assert_close(rounded, exact, 0.03)


def test_bfloat16_is_the_type_of_every_product(small):
  width = small.clip.text_width
  tower = reference_tower(small.clip.config.text_config, jnp.bfloat16)
  program = jax.make_jaxpr(tower)(
    small.clip.text_params, jnp.ones((2, width)), jnp.ones((3, 4, width)), jnp.full(3, 4)
  )
  products = [e for e in equations(program.jaxpr) if e.primitive.name == "dot_general"]
  assert len(products) == 3 * 8 + 1
  assert {variable.aval.dtype.name for e in products for variable in e.invars} == {"bfloat16"}


def test_a_prompt_beyond_the_positions_is_refused(small):
  tower = reference_tower(small.clip.config.text_config)
  width = small.clip.text_width
  with pytest.raises(ValueError, match="5 [+] 12 tokens: expected at most 16"):
    tower(
      small.clip.text_params,
      jnp.zeros((5, width)),
      jnp.zeros((1, 12, width)),
      jnp.array([12], jnp.int32),
    )


def test_an_unknown_tower_is_refused_with_the_known_ones(small):
  with pytest.raises(ValueError, match="text_tower: got 'fancy'"):
    text_tower("fancy", small.clip.config.text_config)
