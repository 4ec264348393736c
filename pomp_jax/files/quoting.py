"""What files and file names hold, as it may stand in a message or on a terminal."""

import logging
import unicodedata

# Unicode's categories of control characters, and of those that end a line or a paragraph.
_CONTROL = ("Cc", "Zl", "Zp")


def printable(found: str, limit: int | None = 300) -> str:
  """Text cut to `limit` characters, "?" for those that would break the line or can't be shown."""
  return "".join(letter if letter.isprintable() else "?" for letter in found[:limit])


def quoted(text: str, limit: int = 80) -> str:
  """Text in quotes, what can't be shown escaped; of a longer one its first `limit` characters."""
  return repr(text) if len(text) <= limit else f"{text[:limit]!r}... ({len(text)} characters)"


def control_character(text: str) -> str | None:
  """The first character that ends a line or directs a terminal, as U+001B; None without any."""
  found = next((letter for letter in text if unicodedata.category(letter) in _CONTROL), None)
  return None if found is None else f"U+{ord(found):04X}"


def is_unicode(text: str) -> bool:
  """Whether UTF-8 can hold it: JSON and file names can bring halves of characters."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


class PrintableFormatter(logging.Formatter):
  """Log lines in which no name of a file or a class can direct the terminal."""

  def format(self, record: logging.LogRecord) -> str:
    """The record's lines, each `printable`."""
    return "\n".join(printable(line, None) for line in super().format(record).split("\n"))
