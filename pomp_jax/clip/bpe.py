"""CLIP's own tokenizer: byte pairs of lowercase text, with OpenAI's cleaning before.

Text is repaired (ftfy: mojibake, ligatures, curly quotes, full width), HTML entities are resolved
twice, white space becomes single spaces, letters lowercase. It is cut into words: runs of letters,
single digits, runs of anything else, English contractions. Each word's bytes, written as visible
letters with "</w>" behind the last, are joined pair by pair in the order of the merges.

HuggingFace's tokenizer of the same merges skips the repair and the entities, and equals this one on
text that has neither. Unlike both, nothing in a text stands for SOS or EOT here.
"""

from collections.abc import Callable, Sequence
import gzip
import html
from itertools import pairwise
import json
import pathlib
import zlib

import ftfy
import regex

from pomp_jax.clip.errors import ClipError

ZIPPED_MERGES, MERGES, VOCABULARY = "bpe_simple_vocab_16e6.txt.gz", "merges.txt", "vocab.json"
ACCEPTED_FILES = f"{ZIPPED_MERGES}, or {MERGES}"

# OpenAI's file lists more merges than its vocabulary of 49,408 takes.
_N_OPENAI_MERGES = 49_408 - 2 * 256 - 2
_MAX_BYTES = 64 * 2**20
_END = "</w>"
_WORD = regex.compile(
  r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", flags=regex.IGNORECASE
)


class BytePairTokenizer:
  """Texts to token ids; called as HuggingFace's tokenizers are.

  Ids: 256 bytes, the same at a word's end, a token for each merge, SOS, EOT.

  Attributes:
    bos_token_id: of SOS.
    eos_token_id: of EOT.
  """

  def __init__(self, merges: Sequence[tuple[str, str]]):
    """Makes the vocabulary.

    Args:
      merges: pairs of tokens, the first to be joined first.

    Raises:
      ValueError: a pair of which one is no token before it.
    """
    self._letters = _byte_letters()
    tokens = [*self._letters.values(), *(letter + _END for letter in self._letters.values())]
    self._tokens = tokens
    self._ids = {token: i for i, token in enumerate(tokens)}
    for pair in merges:
      for token in pair:
        if token not in self._ids:
          raise ValueError(f"merge {' '.join(pair)!r} needs {token!r}, which is no token before it")
      self._ids["".join(pair)] = len(tokens)
      tokens.append("".join(pair))
    self._ranks = {pair: rank for rank, pair in enumerate(merges)}
    self.bos_token_id, self.eos_token_id = len(tokens), len(tokens) + 1
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    self._known: dict[str, list[int]] = {}

  def __len__(self) -> int:
    """How many ids there are."""
    return self.eos_token_id + 1

  def __call__(
    self, texts: Sequence[str], add_special_tokens: bool = True
  ) -> dict[str, list[list[int]]]:
    """`input_ids`, one list a text; SOS before and EOT after if `add_special_tokens`."""
    rows = [[i for word in _WORD.findall(clean(text)) for i in self._word(word)] for text in texts]
    if add_special_tokens:
      rows = [[self.bos_token_id, *row, self.eos_token_id] for row in rows]
    return {"input_ids": rows}

  def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
    """Tokens as HuggingFace writes them: a letter for each byte, "</w>" at a word's end."""
    return [self._tokens[i] for i in ids]

  def _word(self, word: str) -> list[int]:
    if word not in self._known:
      symbols = [self._letters[byte] for byte in word.encode()]
      symbols[-1] += _END
      self._known[word] = [self._ids[symbol] for symbol in self._joined(symbols)]
    return self._known[word]

  def _joined(self, symbols: list[str]) -> list[str]:
    """The earliest merge that applies, everywhere at once, until none does."""
    while len(symbols) > 1:
      best = min(pairwise(symbols), key=lambda pair: self._ranks.get(pair, len(self._ids)))
      if best not in self._ranks:
        break
      joined, i = [], 0
      while i < len(symbols):
        take = 2 if tuple(symbols[i : i + 2]) == best else 1
        joined.append("".join(symbols[i : i + take]))
        i += take
      symbols = joined
    return symbols


def clean(text: str) -> str:
  """A text as CLIP's towers were trained on it: repaired, unescaped, single spaces, lowercase."""
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return " ".join(text.split()).lower()


def read_bpe(
  find: Callable[[str], pathlib.Path | None], n_tokens: int, where: str
) -> BytePairTokenizer:
  """The tokenizer out of the merges beside a checkpoint.

  Args:
    find: gives a file by its name, None if there is none.
    n_tokens: rows of the checkpoint's token embedding.
    where: the checkpoint, for messages.

  Raises:
    ClipError: no such file, one that is damaged, or of another vocabulary.
  """
  for name, read in ((ZIPPED_MERGES, _zipped_lines), (MERGES, _lines)):
    file = find(name)
    if file is None:
      continue
    try:
      merges = [_pair(line) for line in read(file)]
      tokenizer = BytePairTokenizer(merges)
    except (OSError, EOFError, zlib.error, ValueError) as error:
      raise ClipError(f"{file}: not the merges of a CLIP's tokenizer ({error})") from error
    if len(tokenizer) != n_tokens:
      raise ClipError(
        f"{file}: {len(merges)} merges make {len(tokenizer)} tokens; the checkpoint {where} has"
        f" embeddings of {n_tokens}"
      )
    _check_vocabulary(find(VOCABULARY), tokenizer)
    return tokenizer
  raise ClipError(f"{where}: no tokenizer beside the weights; accepted there: {ACCEPTED_FILES}")


def _zipped_lines(file: pathlib.Path) -> list[str]:
  with gzip.open(file) as stream:
    lines = stream.read(_MAX_BYTES).decode().split("\n")
  return lines[1 : 1 + _N_OPENAI_MERGES]


def _lines(file: pathlib.Path) -> list[str]:
  with open(file, encoding="utf-8", newline="\n") as stream:
    lines = stream.read(_MAX_BYTES).split("\n")
  return [line for line in lines[lines[0].startswith("#version") :] if line]


def _pair(line: str) -> tuple[str, str]:
  pair = tuple(line.split())
  if len(pair) != 2:
    raise ValueError(f"{line[:40]!r} is no pair of tokens")
  return pair


def _check_vocabulary(file: pathlib.Path | None, tokenizer: BytePairTokenizer) -> None:
  """HuggingFace's list of the same tokens, where it stands beside the merges."""
  if file is None:
    return
  try:
    size = len(json.loads(file.read_text(encoding="utf-8")))
  except (OSError, ValueError, TypeError) as error:
    raise ClipError(f"{file}: not a vocabulary ({error})") from error
  if size != len(tokenizer):
    raise ClipError(f"{file}: {size} tokens; the merges beside it make {len(tokenizer)}")


def _byte_letters() -> dict[int, str]:
  """A visible letter for each byte, in the order of the token ids.

  Bytes that are visible in Latin-1 stand for themselves, and come first; the others take the
  letters from U+0100 on.
  """
  visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = sorted(set(range(256)) - set(visible))
  return {byte: chr(byte) for byte in visible} | {
    byte: chr(256 + i) for i, byte in enumerate(others)
  }
