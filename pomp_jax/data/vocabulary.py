"""Class names, and their tokens under a CLIP's own tokenizer.

Shapes: N classes, L own tokens of the longest of them (name, ".", EOT).
"""

from collections.abc import Callable, Sequence
import dataclasses
import os
import pathlib

from jaxtyping import Int32
import numpy as np

from pomp_jax.errors import InputError
from pomp_jax.files.terminal import control_character, is_unicode, quoted

# N texts -> token ids [N,L] up to and with EOT, without SOS, and the lengths [N].
Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]

# ImageNet-21K's names take a megabyte; and no text tower has room for a name of 1000 letters.
_MAX_FILE_BYTES = 64 * 2**20
_MAX_NAME = 1000


class VocabularyError(InputError, ValueError):
  """A class list that can't be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The classes to tell apart.

  Attributes:
    names: one a class, as written by the user.
    token_ids: of name, ".", EOT; zero-padded.
    name_lengths: tokens of the name alone.
    lengths: tokens of the whole, EOT included.
  """

  names: tuple[str, ...]
  token_ids: Int32[np.ndarray, "N L"]
  name_lengths: Int32[np.ndarray, " N"]
  lengths: Int32[np.ndarray, " N"]

  def __len__(self) -> int:
    return len(self.names)


def make_vocabulary(names: Sequence[str], tokenize: Tokenize) -> Vocabulary:
  """Tokenizes "{name}." for every class, underscores as spaces.

  Args:
    names: the classes.
    tokenize: the CLIP's; raises ValueError for a name that its positions don't hold.

  Raises:
    VocabularyError: no names, or an empty one. A name that stands twice is two classes with the
      same tokens.
  """
  token_ids_NxL, lengths_N = tokenize([f"{name}." for name in normalized_names(names)])
  # The string's last two tokens are "." and EOT. (Where a name ends in punctuation the tokenizer
  # may join it with the "."; then that one token stands for both, behind the context.)
  return Vocabulary(tuple(names), token_ids_NxL, (lengths_N - 2).astype(np.int32), lengths_N)


def normalized_names(names: Sequence[str]) -> list[str]:
  """Names as they stand in a sentence: underscores are spaces, and no space is doubled.

  Raises:
    VocabularyError: no names, or one that can't be used; one that stands twice can.
  """
  words = [" ".join(name.replace("_", " ").split()) for name in names]
  check_names(words, distinct=False)
  return words


def check_names(
  names: Sequence[str], where: str = "the class list", *, distinct: bool = True
) -> None:
  """Refuses a list that can't be classified over.

  Args:
    names: the classes.
    where: they come from, for the message.
    distinct: refuse a name that stands twice.

  Raises:
    VocabularyError: no names; one that is empty, not Unicode, too long, or has a control character
      or a line's end in it; or one twice.
  """
  if not names:
    raise VocabularyError(f"{where} is empty; one class name a line is needed")
  first: dict[str, int] = {}
  for index, name in enumerate(names):
    if not name.strip():
      raise VocabularyError(f"{where}: name {index + 1} of {len(names)} is empty")
    if not is_unicode(name):
      raise VocabularyError(f"{where}: name {index + 1}, {quoted(name)}, is not Unicode text")
    if len(name) > _MAX_NAME:
      raise VocabularyError(
        f"{where}: name {index + 1}, {quoted(name)}, is too long; accepted: {_MAX_NAME} characters"
      )
    if control := control_character(name):
      raise VocabularyError(
        f"{where}: name {index + 1}, {quoted(name)}, has the control character {control}; lines end"
        " with \\n or \\r\\n"
      )
    if distinct and name in first:
      raise VocabularyError(
        f"{where}: {quoted(name)} stands twice, as name {first[name] + 1} and {index + 1};"
        " names must differ"
      )
    first[name] = index


def read_names(path: str | os.PathLike, *, distinct: bool = True) -> tuple[str, ...]:
  """Reads a text file of class names, UTF-8, one a line; blank lines at the end are dropped.

  Lines end with \\n or \\r\\n and with nothing else, so that all programs count the same lines.

  Raises:
    VocabularyError: as `read_text` and `check_names`.
  """
  text = read_text(path).rstrip()
  names = [line.strip() for line in text.split("\n")] if text else []
  check_names(names, str(path), distinct=distinct)
  return tuple(names)


def read_text(path: str | os.PathLike) -> str:
  """Reads a file of names, UTF-8 with or without a byte order mark.

  Raises:
    VocabularyError: no such file, larger than 64 MiB, or not UTF-8.
  """
  try:
    with pathlib.Path(path).open("rb") as file:
      content = file.read(_MAX_FILE_BYTES + 1)
  except OSError as error:
    raise VocabularyError(f"{path}: can't be read ({error.strerror})") from error
  if len(content) > _MAX_FILE_BYTES:
    raise VocabularyError(f"{path}: too large for class names; accepted: {_MAX_FILE_BYTES} bytes")
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise VocabularyError(f"{path}: not UTF-8 text ({error.reason})") from error
