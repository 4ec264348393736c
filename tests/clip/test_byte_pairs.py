"""CLIP's tokenizer against open_clip's, token for token, and its files."""

import gzip
import json
import pathlib
import shutil

from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, default_bpe
import pytest

from pomp_jax.clip.architecture import ClipError
from pomp_jax.clip.tokens import ACCEPTED_FILES, BytePairTokenizer, read_bpe
from pomp_jax.data.class_lists import load_synsets
from tests.support.clips import MERGES, clip_tokenizer

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


def _find(folder):
  return lambda name: next((file for file in [folder / name] if file.is_file()), None)


@pytest.fixture(scope="module")
def theirs():
  return SimpleTokenizer()


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bpe")
  shutil.copy(ZIPPED, folder)
  return read_bpe(_find(folder), 49_408, "here")


def test_all_names_of_imagenet21k(ours, theirs):
  names = [lemma for lemmas in load_synsets().lemmas for lemma in lemmas]
  names += [f"{lemmas[0]}." for lemmas in load_synsets().lemmas]
  assert len(names) > 50_000
  rows = ours(names, add_special_tokens=False)["input_ids"]
  for name, row in zip(names, rows, strict=True):
    assert row == theirs.encode(name), name


@pytest.mark.parametrize("text", NASTY)
def test_nasty_strings(ours, theirs, text):
  row = ours([text])["input_ids"][0]
  assert row == [theirs.sot_token_id, *theirs.encode(text), theirs.eot_token_id]


@given(text=st.text(max_size=40))
@example("&#13;&amp;#10;")
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
  from_merges = read_bpe(_find(tmp_path), 49_408, "here")
  texts = ["a photo of a grey wolf.", "Café at 10 o'clock!", *load_synsets().names[:2000]]
  rows = ours(texts)["input_ids"]
  assert from_merges(texts)["input_ids"] == rows
  assert huggingface(texts)["input_ids"] == rows
  assert (ours.bos_token_id, ours.eos_token_id) == (49_406, 49_407)
  every = list(range(49_408))
  assert ours.convert_ids_to_tokens(every) == huggingface.convert_ids_to_tokens(every)


@pytest.fixture
def merges(tmp_path):
  (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
  return tmp_path


def _error(folder, n_tokens=524):
  with pytest.raises(ClipError) as error:
    read_bpe(_find(folder), n_tokens, "some/clip")
  message = str(error.value)
  assert "\n" not in message
  return message


def test_no_tokenizer_names_the_files_accepted(tmp_path):
  message = _error(tmp_path)
  assert message.endswith(ACCEPTED_FILES)


def test_files_of_another_vocabulary(merges):
  assert "merges.txt: 10 merges make 524 tokens, expected 600" in _error(merges, 600)
  (merges / "vocab.json").write_text(json.dumps({"a": 0}))
  assert "vocab.json: 1 tokens" in _error(merges)
  (merges / "vocab.json").write_text("{")
  assert "vocab.json: not a vocabulary" in _error(merges)


@pytest.mark.parametrize(
  "lines, found",
  [
    ("t h\nth e</w> x\n", "is no pair"),
    ("t h\nqu een</w>\n", "`qu`"),
    ("\0\n", "is no pair"),
  ],
)
def test_damaged_merges(tmp_path, lines, found):
  (tmp_path / "merges.txt").write_text("#version: 0.2\n" + lines)
  assert found in _error(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5])
def test_truncated_merges(tmp_path, share):
  content = ZIPPED.read_bytes()
  (tmp_path / ZIPPED.name).write_bytes(content[: int(share * len(content))])
  _error(tmp_path, 49_408)


def test_merges_that_are_no_gzip_or_no_text(tmp_path):
  (tmp_path / ZIPPED.name).write_bytes(b"#version\nt h\n")
  assert "not the merges" in _error(tmp_path)
  (tmp_path / ZIPPED.name).write_bytes(gzip.compress(b"\n\xff\xfe\n"))
  assert "not the merges" in _error(tmp_path)


def test_merges_apply_in_their_order():
  tokenizer = BytePairTokenizer([("b", "c</w>"), ("a", "b"), ("a", "bc</w>")])
  ids = tokenizer(["abc", "ab", "abab"], add_special_tokens=False)["input_ids"]
  b_end = 256 + ord("b") - 0x21
  assert ids == [[514], [ord("a") - 0x21, b_end], [513, ord("a") - 0x21, b_end]]
  assert tokenizer.eos_token_id == 516
