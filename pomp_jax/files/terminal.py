"""Text that is safe to print, and output streams that survive a full disk."""

import contextlib
import logging
import os
import sys
from typing import Any, TextIO
import unicodedata

# Unicode categories of control characters and of line and paragraph separators.
_CONTROL = ("Cc", "Zl", "Zp")


def printable(text: str, limit: int | None = 300) -> str:
  """Cuts text to `limit` characters and replaces those that can't be printed on one line by "?"."""
  return "".join(letter if letter.isprintable() else "?" for letter in text[:limit])


def quoted(text: str, limit: int = 80) -> str:
  """Quotes text with its escapes; of a longer one the first `limit` characters and the length."""
  return repr(text) if len(text) <= limit else f"{text[:limit]!r}... ({len(text)} characters)"


def control_character(text: str) -> str | None:
  """Finds the first character that ends a line or controls a terminal, such as U+001B."""
  found = next((letter for letter in text if unicodedata.category(letter) in _CONTROL), None)
  return None if found is None else f"U+{ord(found):04X}"


def is_unicode(text: str) -> bool:
  """Whether UTF-8 can encode the text. JSON and file names can hold lone surrogates."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


class PrintableFormatter(logging.Formatter):
  """Formats log lines in which no name of a file or a class can control the terminal."""

  def format(self, record: logging.LogRecord) -> str:
    """Formats a record; each of its lines is `printable`."""
    return "\n".join(printable(line, None) for line in super().format(record).split("\n"))


class Output:
  """Text stream that drops what it can't write, after one warning on standard error.

  A full disk under a log file must not end a run. All other attributes are the stream's.
  """

  def __init__(self, stream: TextIO):
    """Wraps `sys.stdout` or `sys.stderr`."""
    self._stream = stream

  def write(self, text: str) -> int:
    """Writes or drops the text; returns its number of characters."""
    with self._drop_on_error():
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    """Flushes, or drops what was buffered."""
    with self._drop_on_error():
      self._stream.flush()

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  @contextlib.contextmanager
  def _drop_on_error(self):
    try:
      yield
    except OSError as error:
      name = self._stream.name
      # Python flushes the standard streams at exit, and would fail again.
      self._stream = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
      print(f"warning: {name} can't be written ({error.strerror}); output ends", file=sys.stderr)
