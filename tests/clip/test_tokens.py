"""Token ids, lengths and errors against the tokenizer called the ordinary way."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
from transformers import CLIPTextConfig

from pomp_jax.clip import TokenizeError, tokenize, tokens
from pomp_jax.clip.tokens import check_token_counts


def _tokenize(stored, texts, **settings):
  return tokenize(texts, stored.clip.tokenizer, stored.clip.config.text_config, **settings)


def test_ids_are_the_sentence_without_sos_and_zeros_after_eot(stored):
  ids, lengths = _tokenize(stored, ["cat.", "the dog of the star."])
  assert ids.dtype == lengths.dtype == np.int32
  for row, length, text in zip(ids, lengths, ["cat.", "the dog of the star."], strict=True):
    expected = stored.clip.tokenizer(text)["input_ids"][1:]
    assert row[:length].tolist() == expected
    assert not row[length:].any()
  assert ids.shape[1] == lengths.max()


@hypothesis.given(texts=st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_eot_is_where_huggingface_pools(stored, texts):
  texts = [*texts, "a zebra of the sea", "zebra cat <|endoftext|> zebra"]
  rows = stored.padded(texts)["input_ids"]
  eos_token_id = stored.clip.config.text_config.eos_token_id
  if eos_token_id == 2:
    expected = [max(range(len(row)), key=lambda i: row[i]) for row in rows]
  else:
    expected = [row.tolist().index(eos_token_id) for row in rows]
  ids, lengths = _tokenize(stored, texts)
  assert lengths.tolist() == expected
  for row, own, length in zip(rows, ids, lengths, strict=True):
    assert own[:length].tolist() == row[1 : length + 1].tolist()


def test_a_text_takes_all_of_its_budget_and_not_one_token_more(small):
  letters = "a b c d e f g h i j k l m n"  # 14 tokens and EOT; SOS is the sixteenth
  _, lengths = _tokenize(small, [letters])
  assert lengths.tolist() == [small.clip.positions - 1]
  with pytest.raises(TokenizeError) as error:
    _tokenize(small, ["cat", f"{letters}\no"])
  message = str(error.value)
  assert repr(f"{letters}\no") in message
  assert "16 tokens" in message and "at most 15" in message
  assert "\n" not in message


def _is_too_long(function, clip, texts, budget):
  try:
    function(texts, clip.tokenizer, clip.config.text_config, budget)
  except TokenizeError:
    return True
  return False


@hypothesis.given(
  texts=st.lists(
    st.text(max_size=14)
    | st.text("abc .,;&#İﬁ…क़", max_size=14)
    | st.sampled_from(("&nGt;&nGt;&nGt;", "&#x958;&#x958;", "the cat of the star")),
    min_size=1,
    max_size=4,
  ),
  budget=st.integers(1, 15),
)
def test_the_check_of_lengths_refuses_what_the_tower_can_not_take(small, texts, budget):
  expected = _is_too_long(tokenize, small.clip, texts, budget)
  assert _is_too_long(check_token_counts, small.clip, texts, budget) == expected


def test_the_check_of_lengths_tokenizes_only_what_may_be_too_long(small, monkeypatch):
  seen = []
  monkeypatch.setattr(tokens, "tokenize", lambda texts, *_: seen.extend(texts))
  for texts in (["cat", "the star", "dog"], ["cat", "dog"]):
    check_token_counts(texts, small.clip.tokenizer, small.clip.config.text_config, 8)
  assert seen == ["the star", "cat"]


def test_a_context_shrinks_the_budget(small):
  assert _tokenize(small, ["the cat."], budget=4)[1].tolist() == [4]
  with pytest.raises(TokenizeError, match="'the cat.': 4 tokens with EOT, expected at most 3"):
    _tokenize(small, ["cat.", "the cat."], budget=3)


def test_no_texts_and_a_tokenizer_of_another_checkpoint_are_refused(small):
  with pytest.raises(TokenizeError, match="no texts"):
    _tokenize(small, [])
  config = CLIPTextConfig(vocab_size=60_000, eos_token_id=49_407)
  with pytest.raises(TokenizeError, match="eos_token_id: got 49407"):
    tokenize(["cat"], small.clip.tokenizer, config)
