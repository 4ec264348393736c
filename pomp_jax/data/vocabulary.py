"""Class names, and their tokens under a CLIP's own tokenizer.

Shapes: N classes, L tokens of the longest name with "." and EOT.
"""

from collections.abc import Callable, Sequence
import dataclasses
import os
import pathlib

from jaxtyping import Int32
import numpy as np

from pomp_jax.errors import InputError
from pomp_jax.files.terminal import control_character, is_unicode, quoted

# N texts -> token ids [N,L] up to and including EOT, without SOS, and their lengths [N].
Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]

# ImageNet-21K's names take a megabyte, and no text tower has positions for 1000 letters.
_MAX_FILE_BYTES = 64 * 2**20
_MAX_NAME = 1000


class VocabularyError(InputError, ValueError):
  """Unusable class list; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Tokenized class names.

  Attributes:
    names: N class names as the user spells them.
    token_ids: tokens of name, ".", EOT, padded with zeros.
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
  """Tokenizes "{name}." for every class, with underscores as spaces.

  Args:
    names: class names. Repeated names are classes with the same tokens.
    tokenize: the CLIP's tokenizer; raises ValueError for a name that its positions can't hold.

  Raises:
    VocabularyError: no names, or an unusable one.
  """
  token_ids_NxL, lengths_N = tokenize([f"{name}." for name in normalized_names(names)])
  # The last two tokens are "." and EOT. (The tokenizer may join punctuation at a name's end with
  # the ".". Then one token stands for both, behind the context.)
  return Vocabulary(tuple(names), token_ids_NxL, (lengths_N - 2).astype(np.int32), lengths_N)


def normalized_name(name: str) -> str:
  """A name as it is written in a sentence: underscores become spaces, runs of spaces one."""
  return " ".join(name.replace("_", " ").split())


def normalized_names(names: Sequence[str]) -> list[str]:
  """Applies `normalized_name` to N names; repeated names are allowed.

  Raises:
    VocabularyError: no names, or an unusable one.
  """
  words = [normalized_name(name) for name in names]
  check_names(words, distinct=False)
  return words


def check_names(
  names: Sequence[str], where: str = "the class list", *, distinct: bool = True
) -> None:
  """Checks the names of a class list.

  Args:
    names: class names.
    where: origin of the names, for the error line.
    distinct: whether a repeated name is an error.

  Raises:
    VocabularyError: no names; an empty, non-Unicode or too long name, or one with a control
      character or line break; or a repeated name.
  """
  if not names:
    raise VocabularyError(f"{where} is empty, expected one class name a line")
  first: dict[str, int] = {}
  for number, name in enumerate(names, 1):
    problem = None
    if not name.strip():
      problem = f"is empty ({len(names)} names)"
    elif not is_unicode(name):
      problem = "is not Unicode text"
    elif len(name) > _MAX_NAME:
      problem = f"is too long, expected at most {_MAX_NAME} characters"
    elif control := control_character(name):
      problem = f"contains the control character {control}; lines end with \\n or \\r\\n"
    elif distinct and name in first:
      problem = f"repeats name {first[name]}"
    if problem:
      raise VocabularyError(f"{where}: name {number}, {quoted(name)}, {problem}")
    first[name] = number


def read_names(path: str | os.PathLike, *, distinct: bool = True) -> tuple[str, ...]:
  """Reads a text file of class names, UTF-8, one a line; blank lines at the end are dropped.

  Only \\n and \\r\\n end a line, so that all programs count the same lines.

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
    raise VocabularyError(f"{path}: too large, expected at most {_MAX_FILE_BYTES} bytes of names")
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise VocabularyError(f"{path}: not UTF-8 text ({error.reason})") from error
