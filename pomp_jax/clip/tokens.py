"""Texts to token ids: CLIP's byte-pair tokenizer, and the position where a feature is
read.

As in OpenAI's code, a text is cleaned first: ftfy repairs it (mojibake, ligatures, curly quotes,
full width), HTML entities are resolved twice, white space becomes single spaces, letters lowercase.
HuggingFace's tokenizer of the same merges skips the repair and the entities. Unlike in both, no
text is read as SOS or EOT here: "<|endoftext|>" is plain text for `BytePairTokenizer`, and an error
where HuggingFace's tokenizers would read a special token, such as "</s>" or "[SEP]".
Shapes: N texts, L the longest of them in tokens.
"""

from collections.abc import Sequence
import gzip
import html
import string
from typing import Any

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

Tokenizer = Any  # HuggingFace's, or one of the two below, which have the same interface

MERGES = "merges.txt"
MERGES_FILES = ("bpe_simple_vocab_16e6.txt.gz", MERGES)

# OpenAI's file lists more merges than its vocabulary of 49,408 takes.
_N_OPENAI_MERGES = 49_408 - 2 * 256 - 2
_END = "</w>"
# open_clip pads CLIP's tokens with it, and writes it in the place of a stripped end
# token.
_ZERO = 0
_WORD = regex.compile(
  r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", flags=regex.IGNORECASE
)


class TokenizeError(InputError, ValueError):
  """A text that the tower cannot take; the message is one line."""


class BytePairTokenizer:
  """CLIP's tokenizer, with the interface of HuggingFace's.

  Ids: 256 bytes, the same at a word's end, a token for each merge, SOS, EOT.
  """

  pad_token_id = _ZERO

  def __init__(self, merges: Sequence[tuple[str, str]]):
    """Builds the vocabulary from pairs of tokens, the first to be joined first."""
    # CLIP's order of the bytes: visible ones in Latin-1 first, then stand-ins from
    # U+0100 on.
    letters = sorted(ByteLevel.alphabet())
    self._tokens = [
      *letters,
      *(letter + _END for letter in letters),
      *map("".join, merges),
    ]
    vocabulary = {token: i for i, token in enumerate(self._tokens)}
    self._bpe = tokenizers.Tokenizer(
      BPE(vocabulary, list(merges), end_of_word_suffix=_END)
    )
    # Words are cut here, by `regex`: the library's own tables of Unicode are older.
    self._bpe.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    self.bos_token_id, self.eos_token_id = len(self._tokens), len(self._tokens) + 1
    self._tokens += ["<|startoftext|>", "<|endoftext|>"]

  def __call__(
    self, texts: Sequence[str], add_special_tokens: bool = True
  ) -> dict[str, list[list[int]]]:
    """Returns `input_ids`, one list a text; SOS before and EOT after if
    `add_special_tokens`."""
    words = [_WORD.findall(clean(text)) for text in texts]
    rows = [row.ids for row in self._bpe.encode_batch(words, is_pretokenized=True)]
    if add_special_tokens:
      rows = [[self.bos_token_id, *row, self.eos_token_id] for row in rows]
    return {"input_ids": rows}

  def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
    """Tokens in HuggingFace's spelling: a letter for each byte, "</w>" at a word's
    end."""
    return [self._tokens[i] for i in ids]


class FileTokenizer:
  """Another tokenizer than CLIP's, from HuggingFace's files: SigLIP's, BERT's,
  XLM-V's."""

  def __init__(
    self, folder: str, *, clean: str = "whitespace", strip_sep_token: bool = False
  ):
    """Reads it, with open_clip's `tokenizer_kwargs`; the library raises bare
    Exceptions."""
    self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    self.clean, self._strips_end = _CLEANERS[clean], strip_sep_token
    self.pad_token_id = int(self._tokenizer.pad_token_id)
    self.all_special_tokens = list(self._tokenizer.all_special_tokens)
    # Tokens of an empty text: a start token or none, and one at the end.
    *start, end = self._tokenizer([""])["input_ids"][0]
    self.bos_token_id = start[0] if start else None
    # CLIPA's feature is read at the last position, which open_clip never gives to a
    # word: its tokenizer ends a text with [SEP], and then writes a zero over it.
    self.eos_token_id = _ZERO if strip_sep_token else end
    # Tokens of "." and the end token: canonical text has no punctuation.
    self.n_after_name = 1 if clean == "canonicalize" else 2

  def __call__(
    self, texts: Sequence[str], add_special_tokens: bool = True
  ) -> dict[str, list[list[int]]]:
    """Returns `input_ids`, one list a text; start and end tokens if
    `add_special_tokens`."""
    cleaned = [self.clean(text) for text in texts]
    rows = self._tokenizer(cleaned, add_special_tokens=add_special_tokens)["input_ids"]
    if add_special_tokens and self._strips_end:
      rows = [[*row[:-1], self.eos_token_id] for row in rows]
    return {"input_ids": rows}

  def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
    """The vocabulary's string of each id."""
    return self._tokenizer.convert_ids_to_tokens(list(ids))


def _basic(text: str) -> str:
  return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def clean(text: str) -> str:
  """Repairs, unescapes and lowercases a text, as in the training of CLIP's towers."""
  return _basic(text).lower()


def _canonical(text: str) -> str:
  """Without punctuation, in lowercase, as in SigLIP's training (Zhai et al., 2023)."""
  text = (
    _basic(text).replace("_", " ").translate(str.maketrans("", "", string.punctuation))
  )
  return " ".join(text.lower().split())


_CLEANERS = {"whitespace": _basic, "lower": clean, "canonicalize": _canonical}


def read_bpe(file: Path | None, n_tokens: int, where: str) -> BytePairTokenizer:
  """Reads the tokenizer from one of MERGES_FILES, for an embedding of `n_tokens` rows.

  `where` is the checkpoint, for messages. ClipError: no file, damage, or another number
  of tokens.
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
  if (found := tokenizer.eos_token_id + 1) != n_tokens:
    found_here = f"{len(merges)} merges make {found} tokens"
    raise ClipError(
      f"{file}: {found_here}, expected {n_tokens}, the embeddings of {where}"
    )
  return tokenizer


def _merges(file: Path) -> list[tuple[str, str]]:
  content = read_bytes(file)
  if file.suffix == ".gz":
    lines = gzip.decompress(content).decode().split("\n")[1 : 1 + _N_OPENAI_MERGES]
  else:
    lines = content.decode().split("\n")
    lines = [line for line in lines[lines[0].startswith("#version") :] if line]
  pairs: Any = [tuple(line.split()) for line in lines]
  for line, pair in zip(lines, pairs, strict=True):
    if len(pair) != 2:
      raise ValueError(f"{line[:40]!r} is no pair of tokens")
  return pairs


def tokenize(
  texts: Sequence[str],
  tokenizer: Tokenizer,
  config: CLIPTextConfig,
  budget: int | None = None,
  *,
  cut: bool = False,
) -> tuple[Int32[np.ndarray, "N L"], Int32[np.ndarray, " N"]]:
  """Token ids [N,L] of each text without SOS, up to and with EOT, zero-padded; and
  lengths [N].

  The feature of text i is read at ids[i, lengths[i] - 1]. The tokenizer is the
  checkpoint's own; `config.eos_token_id` selects HuggingFace's rule for EOT.
  TokenizeError: no texts, one that holds the text of a special token, or one with more
  tokens than `budget`, EOT included; all positions but SOS's if None. With `cut` it
  loses the last ones before EOT, as with OpenAI's `truncate`.

  Args:
    texts: the N texts.
    tokenizer: the checkpoint's own.
    config: text tower, with its positions and EOT.
    budget: most tokens of a text, EOT included; all positions but SOS's if None.
    cut: whether a text that is too long loses its last tokens before EOT.
  """
  if not texts:
    raise TokenizeError("no texts to tokenize, expected at least one")
  _check_plain(texts, tokenizer)
  budget = config.max_position_embeddings - 1 if budget is None else budget
  rows = tokenizer(list(texts), add_special_tokens=True)["input_ids"]
  n_start = 0 if getattr(tokenizer, "bos_token_id", 0) is None else 1
  lengths_N = np.array(
    [_eot_position(row, config.eos_token_id) for row in rows], np.int32
  )
  lengths_N += 1 - n_start
  for i in np.flatnonzero(lengths_N > budget).tolist() if cut else ():
    rows[i] = [*rows[i][: budget - 1 + n_start], rows[i][lengths_N[i] - 1 + n_start]]
    lengths_N[i] = budget
  longest = int(np.argmax(lengths_N))
  if lengths_N[longest] > budget:
    raise TokenizeError(
      f"{quoted(texts[longest])}: {lengths_N[longest]} tokens with EOT, expected at most {budget}:"
      f" the text tower's {config.max_position_embeddings} positions less SOS and the context"
    )
  ids_NxL = np.zeros((len(rows), lengths_N[longest]), np.int32)
  for i, (row, length) in enumerate(zip(rows, lengths_N, strict=True)):
    ids_NxL[i, :length] = row[n_start : length + n_start]
  return ids_NxL, lengths_N


def _special_tokens(tokenizer: Tokenizer) -> list[str]:
  """Texts that HuggingFace's tokenizers read as one token, wherever they stand."""
  # Some checkpoints pad with a letter, such as "!", which is no error in a name.
  return [
    token for token in getattr(tokenizer, "all_special_tokens", ()) if len(token) > 1
  ]


def _check_plain(texts: Sequence[str], tokenizer: Tokenizer) -> None:
  """TokenizeError for a text that holds a special token's: it would end or begin in
  between."""
  special = _special_tokens(tokenizer)
  # Entities and full width may hide one: look at what the tokenizer will read.
  cleaned = getattr(tokenizer, "clean", str)
  for text in texts if special else ():
    read = cleaned(text)
    for token in special:
      if token in read:
        raise TokenizeError(
          f"{quoted(text)}: {token!r} is a special token of this CLIP's tokenizer,"
          " expected a text without it"
        )


def check_token_counts(
  texts: Sequence[str], tokenizer: Tokenizer, config: CLIPTextConfig, budget: int
) -> None:
  """Raises what `tokenize` would; tokenizes only the texts that may be refused.

  Args:
    texts: texts to check.
    tokenizer: the checkpoint's own.
    config: text tower, with its positions and EOT.
    budget: most tokens of a text, EOT included.
  """
  # A token is at least a byte, but for one that sentencepiece puts in front. Cleaning
  # lengthens no ASCII text without HTML entities.
  special = _special_tokens(tokenizer)
  suspects = [
    text
    for text in texts
    if not text.isascii()
    or "&" in text
    or len(text) + 1 >= budget
    or any(token in text for token in special)
  ]
  # One text in any case: it shows whether the tokenizer is the configuration's.
  tokenize(suspects or texts[:1], tokenizer, config, budget)


def _eot_position(row: Sequence[int], eos_token_id: int | None) -> int:
  """The position whose feature is read: HuggingFace's, or the last where no id is
  known."""
  if eos_token_id is None:
    return len(row) - 1
  # Configurations older than transformers' pull request 24773 have eos_token_id=2 and
  # mean the highest id of the row. Newer ones have the true id and mean its first
  # occurrence.
  if eos_token_id == 2:
    return int(np.argmax(row))
  if eos_token_id not in row:
    raise TokenizeError(
      f"eos_token_id: got {eos_token_id}, which the tokenizer never writes; expected a"
      " configuration and a tokenizer of one checkpoint"
    )
  return row.index(eos_token_id)
