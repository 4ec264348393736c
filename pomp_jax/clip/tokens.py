"""Texts to token ids: CLIP's byte-pair tokenizer, and the position where a feature is
read.

As in OpenAI's code, a text is cleaned first: ftfy repairs it (mojibake, ligatures,
curly quotes, full width), HTML entities are resolved twice, white space becomes single
spaces, and letters become lowercase. HuggingFace's tokenizer of the same merges skips
the repair and the entities. Unlike OpenAI's and HuggingFace's code, this file reads no
text as SOS or EOT: to `BytePairTokenizer`, "<|endoftext|>" is plain text. A text that
HuggingFace's tokenizers would read as a special token, such as "</s>" or "[SEP]", is an
error. Shapes: N texts, L tokens in the longest text.
"""

from collections.abc import Sequence
import gzip
import html
import string
from typing import Any, NamedTuple

import ftfy
from jaxtyping import Int32
import numpy as np
import regex
import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, CLIPTextConfig

from pomp_jax.clip.architecture import ClipError
from pomp_jax.errors import InputError
from pomp_jax.files.paths import Path, read_bytes
from pomp_jax.files.terminal import quoted

Tokenizer = Any  # HuggingFace's, or one of the two below with the same interface

MERGES = "merges.txt"
MERGES_FILES = ("bpe_simple_vocab_16e6.txt.gz", MERGES)

# OpenAI's file lists more merges than the vocabulary uses. 49,408 tokens are 2 * 256
# bytes, SOS, EOT and the merges that are used.
_N_OPENAI_MERGES = 49_408 - 2 * 256 - 2
_END = "</w>"
# open_clip pads CLIP's tokens with this id, and replaces a stripped end token by it.
_ZERO = 0
_WORD = regex.compile(
  r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", flags=regex.IGNORECASE
)


class TokenizeError(InputError, ValueError):
  """A text cannot be tokenized for the tower; the message is one line."""


class BytePairTokenizer:
  """CLIP's tokenizer, with the interface of HuggingFace's.

  The order of ids is: the 256 bytes, the 256 bytes at the end of a word, one token for
  each merge, SOS, EOT.
  """

  pad_token_id = _ZERO

  def __init__(self, merges: Sequence[tuple[str, str]]):
    """Builds the vocabulary.

    Args:
      merges: pairs of tokens that are joined into one token, in order of priority.
    """
    # CLIP orders the bytes by their letters: visible letters of Latin-1 first, then
    # the letters from U+0100 on that stand for the other bytes.
    letters = sorted(ByteLevel.alphabet())
    last_letters = [letter + _END for letter in letters]
    joined = [left + right for left, right in merges]
    tokens = [*letters, *last_letters, *joined]
    ids = {token: i for i, token in enumerate(tokens)}
    model = BPE(ids, list(merges), end_of_word_suffix=_END)
    self._bpe = tokenizers.Tokenizer(model)
    # `__call__` cuts words with `regex`, because the library's tables of Unicode are
    # older.
    self._bpe.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)

    # The library does not know SOS and EOT, so it reads no text as SOS or EOT.
    self.bos_token_id = len(tokens)
    self.eos_token_id = len(tokens) + 1
    self._tokens = [*tokens, "<|startoftext|>", "<|endoftext|>"]

  def __call__(
    self, texts: Sequence[str], add_special_tokens: bool = True
  ) -> dict[str, list[list[int]]]:
    """Returns `input_ids`, one list per text, with SOS before and EOT after the text if
    `add_special_tokens`."""
    words = [_WORD.findall(clean(text)) for text in texts]
    rows = [row.ids for row in self._bpe.encode_batch(words, is_pretokenized=True)]
    if add_special_tokens:
      rows = [[self.bos_token_id, *row, self.eos_token_id] for row in rows]
    return {"input_ids": rows}

  def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
    """Returns tokens in HuggingFace's spelling: a letter for each byte, and "</w>" at
    the end of a word."""
    return [self._tokens[i] for i in ids]


class FileTokenizer:
  """A tokenizer other than CLIP's, read from HuggingFace's files: SigLIP's, BERT's or
  XLM-V's."""

  def __init__(
    self, folder: str, *, clean: str = "whitespace", strip_sep_token: bool = False
  ):
    """Reads a tokenizer's files; the keywords are open_clip's `tokenizer_kwargs`.

    Args:
      folder: folder with the files.
      clean: how texts are cleaned, one of _CLEANERS.
      strip_sep_token: whether the end token is replaced by a zero.

    Raises:
      Exception: the files can't be read. The library raises no narrower class.
    """
    self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    self.clean = _CLEANERS[clean]
    self._strips_end = strip_sep_token
    self.pad_token_id = int(self._tokenizer.pad_token_id)
    self.all_special_tokens = list(self._tokenizer.all_special_tokens)
    # An empty text has a start token or none, and an end token.
    *start_ids, end_id = self._tokenizer([""])["input_ids"][0]
    self.bos_token_id = start_ids[0] if start_ids else None
    # CLIPA's feature is read at the last position. open_clip never puts a word there:
    # its tokenizer ends a text with [SEP], and replaces [SEP] by a zero.
    self.eos_token_id = _ZERO if strip_sep_token else end_id
    # Number of tokens after a name: "." and the end token. Canonical text has no ".".
    self.n_after_name = 1 if clean == "canonicalize" else 2

  def __call__(
    self, texts: Sequence[str], add_special_tokens: bool = True
  ) -> dict[str, list[list[int]]]:
    """Returns `input_ids`, one list per text, with start and end tokens if
    `add_special_tokens`."""
    cleaned = [self.clean(text) for text in texts]
    rows = self._tokenizer(cleaned, add_special_tokens=add_special_tokens)["input_ids"]
    if add_special_tokens and self._strips_end:
      rows = [[*row[:-1], self.eos_token_id] for row in rows]
    return {"input_ids": rows}

  def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
    """Returns the vocabulary's string of each id."""
    return self._tokenizer.convert_ids_to_tokens(list(ids))


def _basic(text: str) -> str:
  """Repairs a text and resolves its HTML entities, like open_clip's `whitespace`."""
  repaired = ftfy.fix_text(text)
  # Unescape twice, as in OpenAI's code: "&amp;amp;" becomes "&".
  unescaped = html.unescape(html.unescape(repaired))
  return " ".join(unescaped.split())


def clean(text: str) -> str:
  """Repairs, unescapes and lowercases a text, as in the training of CLIP's towers."""
  return _basic(text).lower()


def _canonical(text: str) -> str:
  """Lowercases and drops punctuation, as in SigLIP's training (Zhai et al., 2023)."""
  without_punctuation = str.maketrans("", "", string.punctuation)
  words = _basic(text).replace("_", " ").translate(without_punctuation)
  return " ".join(words.lower().split())


_CLEANERS = {"whitespace": _basic, "lower": clean, "canonicalize": _canonical}


def read_bpe(file: Path | None, n_tokens: int, where: str) -> BytePairTokenizer:
  """Reads CLIP's tokenizer from its merges.

  Args:
    file: one of MERGES_FILES; None if neither exists.
    n_tokens: rows of the checkpoint's token embeddings.
    where: name of the checkpoint, for messages.

  Raises:
    ClipError: the file is missing or damaged, or gives another number of tokens.
  """
  if file is None:
    expected = ", or ".join(MERGES_FILES)
    raise ClipError(f"{where}: no tokenizer beside the weights, expected {expected}")
  try:
    merges = _merges(file)
    tokenizer = BytePairTokenizer(merges)
  except Exception as error:  # the tokenizers' library raises bare Exceptions
    raise ClipError(
      f"{file}: not the merges of a CLIP's tokenizer ({error})"
    ) from error
  vocabulary_size = tokenizer.eos_token_id + 1  # EOT has the last id
  if vocabulary_size != n_tokens:
    raise ClipError(
      f"{file}: {len(merges)} merges make {vocabulary_size} tokens, expected"
      f" {n_tokens}, the embeddings of {where}"
    )
  return tokenizer


def _merges(file: Path) -> list[tuple[str, str]]:
  """Reads the pairs of tokens in one of MERGES_FILES.

  Raises:
    ValueError: a line is not a pair.
  """
  content = read_bytes(file)
  if file.suffix == ".gz":
    # OpenAI's file has a line about the version, then more merges than are used.
    lines = gzip.decompress(content).decode().split("\n")
    lines = lines[1 : 1 + _N_OPENAI_MERGES]
  else:
    # HuggingFace's file may begin with a line about the version.
    lines = content.decode().split("\n")
    if lines[0].startswith("#version"):
      lines = lines[1:]
    lines = [line for line in lines if line]

  pairs = []
  for line in lines:
    tokens = line.split()
    if len(tokens) != 2:
      raise ValueError(f"{line[:40]!r} is no pair of tokens")
    pairs.append((tokens[0], tokens[1]))
  return pairs


class Tokens(NamedTuple):
  """Token ids of texts, and their lengths."""

  ids_NxL: Int32[np.ndarray, "N L"]  # ids without SOS, with EOT, zero-padded after EOT
  # number of ids of each text; its feature is read at the last, which is EOT
  lengths_N: Int32[np.ndarray, " N"]


def tokenize(
  texts: Sequence[str],
  tokenizer: Tokenizer,
  config: CLIPTextConfig,
  budget: int | None = None,
  *,
  cut: bool = False,
) -> Tokens:
  """Tokenizes texts.

  Args:
    texts: the N texts.
    tokenizer: the checkpoint's own tokenizer.
    config: sizes of the text tower. `_eot_position` reads the feature's place from its
      EOT id.
    budget: most tokens of a text, EOT included; if None, all positions except SOS's.
    cut: whether a text that is too long loses its last tokens before EOT, as with
      OpenAI's `truncate`.

  Raises:
    TokenizeError: no texts were given, a text contains a special token's text, or a
      text has more tokens than the budget.
  """
  if not texts:
    raise TokenizeError("no texts to tokenize, expected at least one")
  _check_plain(texts, tokenizer)
  if budget is None:
    budget = config.max_position_embeddings - 1
  rows = tokenizer(list(texts), add_special_tokens=True)["input_ids"]
  # Tokenizers without the attribute have a start token. SigLIP's has None: no start
  # token.
  has_sos = getattr(tokenizer, "bos_token_id", 0) is not None
  n_start = 1 if has_sos else 0

  # Drop the start token of each row, and what follows EOT.
  id_lists = []
  for row in rows:
    eot = _eot_position(row, config.eos_token_id)
    ids = list(row[n_start : eot + 1])
    if cut and len(ids) > budget:
      ids = [*ids[: budget - 1], ids[-1]]
    id_lists.append(ids)
  lengths_N = np.array([len(ids) for ids in id_lists], np.int32)
  longest = int(np.argmax(lengths_N))
  if lengths_N[longest] > budget:
    raise TokenizeError(
      f"{quoted(texts[longest])}: {lengths_N[longest]} tokens with EOT, expected at most"
      f" {budget}: the text tower's {config.max_position_embeddings} positions less SOS"
      " and the context"
    )
  ids_NxL = np.zeros((len(id_lists), lengths_N[longest]), np.int32)
  for i, ids in enumerate(id_lists):
    ids_NxL[i, : len(ids)] = ids
  return Tokens(ids_NxL, lengths_N)


def _special_tokens(tokenizer: Tokenizer) -> list[str]:
  """Texts that HuggingFace's tokenizer reads as one token, anywhere in a text."""
  # Skip single letters: some checkpoints pad with "!", which a name may contain.
  return [
    token for token in getattr(tokenizer, "all_special_tokens", ()) if len(token) > 1
  ]


def _check_plain(texts: Sequence[str], tokenizer: Tokenizer) -> None:
  """Checks that no text contains the text of a special token.

  The tokenizer would read the special token, and end or begin the sentence there.

  Raises:
    TokenizeError: a text contains a special token's text.
  """
  special_tokens = _special_tokens(tokenizer)
  if not special_tokens:
    return
  # Check the cleaned text, which the tokenizer reads: HTML entities and full-width
  # letters may hide a special token.
  clean_text = getattr(tokenizer, "clean", str)
  for text in texts:
    cleaned = clean_text(text)
    for token in special_tokens:
      if token in cleaned:
        raise TokenizeError(
          f"{quoted(text)}: {token!r} is a special token of this CLIP's tokenizer,"
          " expected a text without it"
        )


def check_token_counts(
  texts: Sequence[str], tokenizer: Tokenizer, config: CLIPTextConfig, budget: int
) -> None:
  """Checks texts as `tokenize` does, but tokenizes only texts that may be refused.

  Args:
    texts: texts to check.
    tokenizer: the checkpoint's own tokenizer.
    config: sizes of the text tower, with its EOT id.
    budget: most tokens of a text, EOT included.

  Raises:
    TokenizeError: see `tokenize`.
  """
  special_tokens = _special_tokens(tokenizer)

  def may_be_refused(text: str) -> bool:
    # Cleaning may lengthen a text that has "&" or is not ASCII: it resolves entities
    # and writes out ligatures.
    if not text.isascii() or "&" in text:
      return True
    # Every token takes at least one byte of the text, except EOT and a token that
    # sentencepiece puts in front.
    if len(text) + 1 >= budget:
      return True
    return any(token in text for token in special_tokens)

  suspects = [text for text in texts if may_be_refused(text)]
  if not suspects:
    # Tokenize at least one text, to check that tokenizer and configuration belong
    # together.
    suspects = list(texts[:1])
  tokenize(suspects, tokenizer, config, budget)


def _eot_position(row: Sequence[int], eos_token_id: int | None) -> int:
  """Position in a text at which the feature is read, by HuggingFace's rule.

  Args:
    row: token ids of the text.
    eos_token_id: id in the configuration; None if the last position is read.

  Raises:
    TokenizeError: the tokenizer does not write this id.
  """
  if eos_token_id is None:
    return len(row) - 1
  # Configurations older than transformers' pull request 24773 have the id 2 and mean
  # the highest id of the row, which EOT is in CLIP's vocabulary.
  if eos_token_id == 2:
    return int(np.argmax(row))
  # Newer configurations have the true id of EOT and mean its first occurrence.
  if eos_token_id not in row:
    raise TokenizeError(
      f"eos_token_id: got {eos_token_id}, which the tokenizer never writes; expected a"
      " configuration and a tokenizer of one checkpoint"
    )
  return row.index(eos_token_id)
