"""Token ids, lengths and errors against HuggingFace's tokenizer, and ours against
open_clip's."""

import copy
import gzip
import pathlib
import shutil

import hypothesis
from hypothesis import strategies as st
import numpy as np
from open_clip.tokenizer import SimpleTokenizer, default_bpe
import pytest
from transformers import CLIPTextConfig

from pomp_jax.clip import tokens
from pomp_jax.clip.architecture import ClipError
from pomp_jax.clip.tokens import (
  MERGES_FILES,
  TokenizeError,
  check_token_counts,
  read_bpe,
  tokenize,
)
from pomp_jax.clip.weights import Files
from pomp_jax.data.class_lists import SYNSETS, read_table
from tests.support.clips import MERGES, clip_tokenizer


def _tokenize(stored, texts, **settings):
  return tokenize(
    texts, stored.clip.tokenizer, stored.clip.config.text_config, **settings
  )


@hypothesis.given(texts=st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_eot_is_where_huggingface_pools(stored, texts):
  texts = [*texts, "a zebra of the sea", "zebra cat zebra"]
  rows = stored.padded(texts)["input_ids"]
  eos_token_id = stored.clip.config.text_config.eos_token_id
  if eos_token_id == 2:
    expected = [max(range(len(row)), key=lambda i: row[i]) for row in rows]
  else:
    expected = [row.tolist().index(eos_token_id) for row in rows]
  ids, lengths = _tokenize(stored, texts)
  assert lengths.tolist() == expected
  for row, own, length in zip(rows, ids, lengths, strict=True):
    assert (
      own[:length].tolist() == row[1 : length + 1].tolist() and not own[length:].any()
    )
  assert ids.dtype == lengths.dtype == np.int32 and ids.shape[1] == lengths.max()


def test_a_text_takes_all_of_its_budget_and_not_one_token_more(small):
  letters = "a b c d e f g h i j k l m n"  # 14 tokens and EOT; SOS is the sixteenth
  _, lengths = _tokenize(small, [letters])
  assert lengths.tolist() == [small.clip.positions - 1]
  assert _tokenize(small, ["the cat."], budget=4)[1].tolist() == [4]
  with pytest.raises(
    TokenizeError, match="'the cat.': 4 tokens with EOT, expected at most 3"
  ):
    _tokenize(small, ["cat.", "the cat."], budget=3)
  with pytest.raises(TokenizeError) as error:
    _tokenize(small, ["cat", f"{letters}\no"])
  message = str(error.value)
  assert repr(f"{letters}\no") in message
  assert "16 tokens" in message and "at most 15" in message
  assert "\n" not in message


@pytest.mark.parametrize("budget", [1, 4, 9])
def test_a_text_that_is_cut_keeps_its_beginning_and_eot(small, budget):
  """As HuggingFace truncates; shorter ones stay as they are."""
  texts = [
    "the cat of the star and a leaf, a letter of it",
    "cat",
    "a b c d e f g h i j k l m n o",
  ]
  given = {"truncation": True, "max_length": budget + 1}  # with SOS
  rows = small.clip.tokenizer(texts, **given)["input_ids"]
  ids, lengths = _tokenize(small, texts, budget=budget, cut=True)
  assert lengths.tolist() == [len(row) - 1 for row in rows]
  for row, own, length in zip(rows, ids, lengths, strict=True):
    assert own[:length].tolist() == row[1:] and not own[length:].any()


def test_a_letter_with_which_a_tokenizer_pads_may_stand_in_a_text(small):
  tokenizer = copy.deepcopy(small.clip.tokenizer)
  tokenizer.pad_token = "!"
  assert "!" in tokenizer.all_special_tokens
  for check in (tokenize, check_token_counts):
    check(["cat!", "a & b"], tokenizer, small.clip.config.text_config, 8)


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


@pytest.mark.parametrize(
  ("text", "n_tokens"), [("&nGt;&nGt;", 13), ("q" * 12, 13), ("é" * 6, 13)]
)
def test_the_check_of_lengths_knows_entities_and_letters_of_several_bytes(
  text, n_tokens
):
  """Without merges each byte is a token: the first text is longer than it looks."""
  tokenizer = tokens.BytePairTokenizer([])
  config = CLIPTextConfig(vocab_size=514, eos_token_id=513)
  check_token_counts(["cat", text], tokenizer, config, n_tokens)
  with pytest.raises(TokenizeError, match=f"{n_tokens} tokens with EOT"):
    check_token_counts(["cat", text], tokenizer, config, n_tokens - 1)


def test_merges_without_a_line_of_their_version_are_all_read(tmp_path):
  (tmp_path / "merges.txt").write_bytes(GOOD.partition(b"\n")[2])
  found = _read_bpe(tmp_path, 524)
  (tmp_path / "merges.txt").write_bytes(GOOD)
  every = list(range(524))
  assert found.convert_ids_to_tokens(every) == _read_bpe(
    tmp_path, 524
  ).convert_ids_to_tokens(every)


def test_the_check_of_lengths_tokenizes_only_what_may_be_too_long(small, monkeypatch):
  seen = []
  monkeypatch.setattr(tokens, "tokenize", lambda texts, *_: seen.extend(texts))
  for texts in (["cat", "the star", "dog"], ["cat", "dog"]):
    check_token_counts(texts, small.clip.tokenizer, small.clip.config.text_config, 8)
  assert seen == ["the star", "cat"]


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|startoftext|>"])
def test_a_special_token_in_a_text_is_refused(small, token):
  """HuggingFace's tokenizer would end the sentence within it."""
  config = small.clip.config.text_config
  assert small.clip.tokenizer([f"a{token}b"])["input_ids"][0].count(
    config.eos_token_id
  ) in (1, 2)
  for check in (tokenize, check_token_counts):
    with pytest.raises(TokenizeError) as error:
      check(["cat", "dog", f"a{token}b"], small.clip.tokenizer, config, 15)
    assert repr(f"a{token}b") in str(error.value) and "\n" not in str(error.value)


def test_no_texts_and_a_tokenizer_of_another_checkpoint_are_refused(small):
  with pytest.raises(TokenizeError, match="no texts"):
    _tokenize(small, [])
  config = CLIPTextConfig(vocab_size=60_000, eos_token_id=49_407)
  with pytest.raises(TokenizeError, match="eos_token_id: got 49407"):
    tokenize(["cat"], small.clip.tokenizer, config)


ZIPPED = pathlib.Path(default_bpe())

NASTY = [
  "",
  " ",
  "\n\t ",
  "a  photo   of\ta\ncat",
  "Café crème brûlée, naïve façade",
  "cafe\u0301 e\u0301\u0302",  # combining marks
  "e&#769;",  # one that appears only with the entity
  "&lt;b&gt; AT&amp;T &amp;amp; &amp;lt; &nbsp;x&#x200b;y",
  # ftfy resolves entities, but not beside what looks like a tag.
  "<i>R&amp;amp;B &amp;#233; &amp;amp;amp;lt; </i>",
  "schÃ¶n â€œquotedâ€\x9d",  # UTF-8 read as Latin-1
  "\u201cquoted\u201d \u2018single\u2019 \ufb01sh ｆｕｌｌ　ｗｉｄｔｈ",
  "猫の写真 狗 고양이 кошка γάτα قطة חתול बिल्ली",
  "🐱🐶 👩‍👩‍👧‍👦 🇫🇷 ☕️",
  "it's they're I'M we'LL y'all 'S 'ſ don''t",
  "3.14159 1,000,000 ²³ ½ Ⅷ ٣",
  "İstanbul ẞ ǅ ŒUVRE ΌΣΟΣ",
  "_under_score_ #hash @at $5 100%",
  "!!!???...---///",
  "\x00\x01\x7f\x85\xa0\u2028\u3000\ufeff end",
  "<|startoftext|> <|endoftext|>",
  "Supercalifragilisticexpialidocious" * 8,
  "word " * 300,
  "ab" * 500,
]


def _read_bpe(folder, n_tokens=49_408, where="here"):
  return read_bpe(Files(str(folder)).find_first(MERGES_FILES), n_tokens, where)


@pytest.fixture(scope="module")
def theirs():
  return SimpleTokenizer()


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bpe")
  shutil.copy(ZIPPED, folder)
  return _read_bpe(folder)


def test_all_names_of_imagenet21k(ours, theirs):
  lemmas_N = [words.split(", ") for words in read_table(SYNSETS)[1]]
  names = [*sum(lemmas_N, []), *(f"{lemmas[0]}." for lemmas in lemmas_N)]
  assert len(names) > 50_000
  rows = ours(names, add_special_tokens=False)["input_ids"]
  for name, row in zip(names, rows, strict=True):
    assert row == theirs.encode(name), name


@pytest.mark.parametrize("text", NASTY)
def test_nasty_strings(ours, theirs, text):
  row = ours([text])["input_ids"][0]
  assert row == [theirs.sot_token_id, *theirs.encode(text), theirs.eot_token_id]


@hypothesis.given(text=st.text(max_size=40))
@hypothesis.example("&#13;&amp;#10;")
def test_any_text(ours, theirs, text):
  assert ours([text], add_special_tokens=False)["input_ids"] == [theirs.encode(text)]


def test_nothing_in_a_text_is_eot(ours, theirs):
  """In a name, open_clip's spelling of EOT would end the sentence before its end."""
  text = "a <end_of_text> b"
  assert theirs.eot_token_id in theirs.encode(text)
  row = ours([text])["input_ids"][0]
  assert row.count(ours.eos_token_id) == 1 and row[-1] == ours.eos_token_id


def test_huggingfaces_tokenizer_and_its_files_give_the_same(ours, tmp_path):
  huggingface = clip_tokenizer(tmp_path)
  from_merges = _read_bpe(tmp_path)
  texts = [
    "a photo of a grey wolf.",
    "Café at 10 o'clock!",
    *read_table(SYNSETS)[1][:2000],
  ]
  rows = ours(texts)["input_ids"]
  assert from_merges(texts)["input_ids"] == rows
  assert huggingface(texts)["input_ids"] == rows
  assert (ours.bos_token_id, ours.eos_token_id) == (49_406, 49_407)
  every = list(range(49_408))
  assert ours.convert_ids_to_tokens(every) == huggingface.convert_ids_to_tokens(every)


GOOD, ZIP = ("\n".join(["#version: 0.2", *MERGES, ""])).encode(), ZIPPED.read_bytes()


@pytest.mark.parametrize(
  "files, n_tokens, found",
  [
    ({}, 524, ", or ".join(MERGES_FILES)),
    ({"merges.txt": GOOD}, 600, "merges.txt: 10 merges make 524 tokens, expected 600"),
    ({"merges.txt": b"#version: 0.2\nt h\nth e</w> x\n"}, 524, "is no pair"),
    ({"merges.txt": b"#version: 0.2\nt h\nqu een</w>\n"}, 524, "`qu`"),
    *(
      ({ZIPPED.name: ZIP[: len(ZIP) // part]}, 49_408, "")
      for part in (len(ZIP), 1000, 2)
    ),
    ({ZIPPED.name: b""}, 49_408, ""),
    ({ZIPPED.name: b"#version\nt h\n"}, 524, "not the merges"),
    ({ZIPPED.name: gzip.compress(b"\n\xff\xfe\n")}, 524, "not the merges"),
  ],
)
def test_damaged_and_other_files(tmp_path, files, n_tokens, found):
  for name, content in files.items():
    (tmp_path / name).write_bytes(content)
  with pytest.raises(ClipError) as error:
    _read_bpe(tmp_path, n_tokens, "some/clip")
  assert "\n" not in str(error.value)
  assert found in str(error.value)
